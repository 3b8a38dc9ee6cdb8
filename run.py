"""Train and evaluate SCHN: `python run.py`, after editing `method_name` or with flags (`python run.py --help`)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import main_mmasia
import main_tomm
from utils import distributed
from utils.devices import keep_freed_memory
from utils.errors import UserError
from utils.interrupt import Interrupted
from utils.preflight import preflight
from utils.progress import configure_logging, log, result_table
from utils.run_folder import RunFolder, command_line
from utils.settings import Command, parse_command

# The variant that trains when --method is not given: "main_mmasia" (MM Asia 2021) or "main_tomm" (TOMM 2022).
method_name = "main_mmasia"

TRAIN = {"main_mmasia": main_mmasia.train, "main_tomm": main_tomm.train}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with the given command line; returns the exit status: 0, or 2 for what the user can mend."""
    configure_logging()
    keep_freed_memory()
    try:
        command = parse_command(sys.argv[1:] if arguments is None else arguments, method_name=method_name)
        if command.grid is not None:
            if distributed.launched_size() > 1:
                raise UserError("A sweep starts its own processes, one a cell: start it with python, not torchrun.")
            from utils.sweep import run_sweep  # file locks and signals of POSIX: only where they are wanted

            return run_sweep(command.settings, command.grid)
        if command.cell and command.folder is not None:
            from utils.sweep import failure_noted

            with failure_noted(command.folder):
                return train(command)
        return train(command)
    except UserError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2


def train(command: Command) -> int:
    """One run: every code length of its settings that is not finished yet; returns the exit status."""
    settings, device, split = preflight(command.settings)
    log.info("%s on %s: %d queries, %d database images, %d classes", settings.method, settings.dataset,
             len(split.query), len(split.database), split.num_classes)  # fmt: skip
    with distributed.process_group(device):
        run = RunFolder(settings, command_line(), device, command.folder)
        try:
            with run.stop:
                for code_length in settings.code_length:
                    if not run.is_finished(code_length):
                        TRAIN[settings.method](settings, code_length, split, run)
        except Interrupted as stopped:
            if run.writes and not command.cell:  # the sweep says how to go on
                print(f"Stopped by {stopped}. Go on with: python run.py --resume {run.path}", file=sys.stderr)
            return stopped.status
    if run.writes:
        if settings.figures:
            from utils.figures import run_figures  # matplotlib is slow to import: only where it is wanted

            run_figures(run.path, split=split)
        print(result_table(run.results))
        print(f"Written to {run.path}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
