"""Train and evaluate SCHN: `python run.py`, after editing `method_name` or with flags (`python run.py --help`)."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

import main_mmasia
import main_tomm
from utils.devices import choose_device, keep_freed_memory
from utils.errors import UserError
from utils.interrupt import Interrupted
from utils.progress import configure_logging, log, result_table
from utils.run_folder import RunFolder, command_line, require_writable
from utils.settings import Settings, parse_settings
from utils.splits import load_split
from utils.tensorboard import require_tensorboard

# The variant that trains when --method is not given: "main_mmasia" (MM Asia 2021) or "main_tomm" (TOMM 2022).
method_name = "main_mmasia"

TRAIN = {"main_mmasia": main_mmasia.train, "main_tomm": main_tomm.train}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with the given command line; returns the exit status: 0, or 2 for what the user can mend."""
    configure_logging()
    keep_freed_memory()
    try:
        settings, resume = parse_settings(sys.argv[1:] if arguments is None else arguments, method_name=method_name)
        device = choose_device(settings.device)
        require_writable(settings.logs)
        if settings.tensorboard:
            require_tensorboard()
        split = load_split(settings)
        if settings.num_samples == 0:
            settings = dataclasses.replace(settings, num_samples=min(Settings.num_samples, len(split.database)))
        if settings.num_samples > len(split.database):
            raise UserError(
                f"--num-samples {settings.num_samples}: the database of {settings.dataset} has only "
                f"{len(split.database)} images; give that many or fewer."
            )
        log.info("%s on %s: %d queries, %d database images, %d classes", settings.method, settings.dataset,
                 len(split.query), len(split.database), split.num_classes)  # fmt: skip
        run = RunFolder(settings, command_line(), device, resume)
        with run.stop:
            for code_length in settings.code_length:
                if not run.is_finished(code_length):
                    TRAIN[settings.method](settings, code_length, split, run)
        if settings.figures:
            from utils.figures import run_figures  # matplotlib is slow to import: only where it is wanted

            run_figures(run.path, split=split)
    except UserError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    except Interrupted as stopped:
        print(f"Stopped by {stopped}. Go on with: python run.py --resume {run.path}", file=sys.stderr)
        return stopped.status
    print(result_table(run.results))
    print(f"Written to {run.path}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
