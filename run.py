"""Train and evaluate: `python run.py`, after editing `method_name` or with flags (`python run.py --help`)."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence

from training.command_line import Command, parse_command
from training.settings import BASELINES, METHODS
from utils.command import run_command
from utils.errors import UserError
from utils.interrupt import Interrupted
from utils.log import configure_logging, log

# The method that trains when --method is not given: "main_mmasia" (MM Asia 2021), "main_tomm" (TOMM 2022), or one of
# the baselines "adsh", "dpsh", "hashnet", "csq", "greedyhash", "orthohash".
method_name = "main_mmasia"

# The module whose `train` trains a method. Modules that need torch are imported when a run starts: torch is slow to
# import, and --help does not need it.
MODULES = {
    **{method: method for method in METHODS},
    **dict.fromkeys(BASELINES, "baselines.symmetric"),
    "adsh": "baselines.adsh",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with the given command line; returns the exit status (`utils.command.run_command`)."""
    configure_logging()
    # OpenMP reads it when torch is imported. Threads that spin while they wait for one that another program has
    # displaced make training on a shared machine slower than with one thread (docs/performance.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    def work() -> int:
        command = parse_command(sys.argv[1:] if arguments is None else arguments, method_name=method_name)
        from training.sweep import failure_recorded, run_sweep
        from utils import distributed
        from utils.devices import keep_freed_memory

        keep_freed_memory()
        if command.grid is not None:
            if distributed.launched_size() > 1:
                raise UserError("A sweep starts one process per cell itself: start it with python, not torchrun.")
            return run_sweep(command.settings, command.grid)
        with failure_recorded(command.folder) if command.cell and command.folder else contextlib.nullcontext():
            train(command)
        return 0

    return run_command("run.py", work)


def train(command: Command) -> None:
    """One run: every code length of its settings that is not finished yet.

    Raises:
        UserError: bad settings, bad data, a run that another process trains, or a file that cannot be written.
        Interrupted: a signal has stopped the run.
    """
    from training.preflight import preflight, to_start
    from training.progress import result_table
    from training.run_folder import RunFolder, require_free
    from utils import distributed
    from utils.runs import is_run

    if command.folder is not None:
        require_free(command.folder)
    settings, device, split = preflight(command.settings, to_start(command.settings, command.folder))
    log.info("%s on %s: %d queries, %d database images, %d classes", settings.method, settings.dataset,
             len(split.query), len(split.database), split.num_classes)  # fmt: skip
    with distributed.process_group(device):
        run = RunFolder(settings, device, command.folder)
        try:
            with run:
                for code_length in settings.code_length:
                    if not run.is_finished(code_length):
                        importlib.import_module(MODULES[settings.method]).train(run, code_length, split)
        except Interrupted as stopped:
            if not command.cell and is_run(run.path):  # a sweep says itself how to resume
                stopped.add_note(f"resume with: python run.py --resume {run.path}")
            raise
    if run.writes:
        if settings.figures:
            from reports.figures import run_figures  # matplotlib is slow to import, and needed only with --figures

            run_figures(run.path, split=split)
        print(result_table(run.results))
        print(f"Written to {run.path}/")


if __name__ == "__main__":
    sys.exit(main())
