"""Sweeps: a grid of methods, seeds and code lengths, with one process and one folder per cell (docs/runs.md).

A cell is a child process, `run.py ... --cell FOLDER`. Whatever ends it, such as an out-of-memory kill, ends no other
cell. Its results are those of a plain run: nothing in a run depends on what ran before it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from training.command_line import Grid, differences
from training.preflight import preflight
from training.progress import RESULT_HEADER, result_columns
from training.run_folder import command_line
from training.settings import FREE_TO_CHANGE, OWN_IMAGES, Settings, differing_settings
from utils.errors import UserError
from utils.files import Locked, locked, write_json
from utils.interrupt import SIGNALS, Interrupted, handled_by
from utils.log import log
from utils.runs import CONFIG, FAILURE, checkpoints, is_run, read_config, read_failure, read_results

RUN = Path(__file__).parents[1] / "run.py"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One method, one seed, one code length: `settings.code_length` holds one number."""

    settings: Settings
    folder: Path

    def result(self) -> dict[str, Any] | None:
        """Its row of results.json; None while it is not finished."""
        return next(
            (row for row in read_results(self.folder) if (row["code_length"],) == self.settings.code_length), None
        )

    def state(self) -> str:
        """ "finished", "failed before: ...", "to resume from iteration ..." or "to do"."""
        if self.result() is not None:
            return "finished"
        if (failure := read_failure(self.folder)) is not None:
            return f"failed before: {failure}"
        if is_run(self.folder):
            saved = checkpoints(self.folder, self.settings.code_length[0])
            return f"to resume from iteration {saved[-1][0] if saved else 0}"
        return "to do"

    def needs_weights(self) -> bool:
        """Whether it starts from the initial weights: it is not finished and has no checkpoint."""
        return self.result() is None and not checkpoints(self.folder, self.settings.code_length[0])

    def disagreement(self) -> list[str]:
        """What the run in the cell's folder has otherwise than the cell: "--lr 0.5 (the run has 0.1)"."""
        if not is_run(self.folder):
            return []
        free = set(FREE_TO_CHANGE) - ({"root"} if self.settings.dataset in OWN_IMAGES else set())
        if self.settings.num_samples == 0:  # set when the data are loaded
            free.add("num_samples")
        wanted = {
            field.name: getattr(self.settings, field.name)
            for field in dataclasses.fields(Settings)
            if field.name not in free
        }
        return differences(wanted, Settings.from_json(read_config(self.folder)["settings"], self.folder / CONFIG))


def sweep_name(settings: Settings) -> str:
    """A name that depends only on the dataset and the settings: `sweep-<dataset>-<hash>`.

    The hash covers what differs from the preset. Methods, seeds and code lengths are not part of it, so a larger grid
    finds the cells of a smaller one, and a setting that a later version adds changes no name.
    """
    text = json.dumps(differing_settings(settings.as_json()), sort_keys=True)
    return f"sweep-{settings.dataset}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def sweep_folder(settings: Settings, grid: Grid) -> Path:
    """The folder that holds the folders of the cells."""
    return Path(settings.logs) / (grid.name or sweep_name(settings))


def cells_of(settings: Settings, grid: Grid) -> list[Cell]:
    """The cells in the order in which they run: seed by seed, so that an interrupted sweep can be compared.

    Raises:
        UserError: a cell's folder holds a run with other settings, or the sweep's folder is the folder of a run.
    """
    folder = sweep_folder(settings, grid)
    if is_run(folder):
        raise UserError(f"--sweep {folder.name}: {folder} is the folder of a run; choose another name.")
    cells = []
    for seed, method, code_length in itertools.product(grid.seeds, grid.methods, settings.code_length):
        own = dataclasses.replace(settings, method=method, seed=seed, code_length=(code_length,))
        cells.append(Cell(own, folder / f"{method}-{settings.dataset}-{code_length}bits-seed{seed}"))
    for cell in cells:
        if differing := cell.disagreement():
            raise UserError(
                f"{cell.folder}: holds a run with other settings than this command: {', '.join(differing)}; give the "
                "same flags, or choose another name with --sweep."
            )
    return cells


def run_sweep(settings: Settings, grid: Grid) -> int:
    """Run every cell that is not finished, `grid.jobs` at once, and print a table; returns 1 where a cell failed.

    Raises:
        UserError: bad settings, cells with other settings, or another process runs this sweep.
        Interrupted: a signal has stopped the sweep.
    """
    cells, folder = cells_of(settings, grid), sweep_folder(settings, grid)
    if grid.dry_run:
        print(_listing(folder, cells))
        return 0
    if any(cell.result() is None for cell in cells):
        preflight(settings, {cell.settings.code_length[0] for cell in cells if cell.needs_weights()})
    folder.mkdir(parents=True, exist_ok=True)
    relay = Relay()
    try:
        with locked(folder / ".lock"), handled_by(relay), ThreadPoolExecutor(grid.jobs) as executor:
            list(executor.map(lambda cell: _run_cell(cell, relay, grid.jobs), cells))
    except Locked:
        raise UserError(f"{folder}: another process runs this sweep; wait until it ends, or stop it.") from None
    missing = [cell for cell in cells if cell.result() is None]
    if missing and relay.stopped_by is not None:
        stopped = Interrupted(relay.stopped_by)
        stopped.add_note(f"{len(cells) - len(missing)} of {len(cells)} cells are finished")
        stopped.add_note(f"resume with the same command: {shlex.join(command_line())}")
        raise stopped
    print(_table(cells))
    print(f"{len(cells) - len(missing)} of {len(cells)} cells are finished. Written to {folder}/")
    if missing:
        print(f"Tracebacks are in the cells' {FAILURE}; the same command runs the failed cells again.")
    return 1 if missing else 0


def start_process(cell: Cell, threads: int | None = None) -> subprocess.Popen[bytes]:
    """Start the child process of a cell; `threads` of torch, None: its default."""
    command = [sys.executable, os.path.relpath(RUN), *cell.settings.as_flags(), "--cell", str(cell.folder)]
    sys.stdout.flush()
    return subprocess.Popen(command, env=os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)}))


class Relay:
    """A handler of the sweep: the signal is recorded in `stopped_by` and reaches the running cells.

    Ctrl-C in a terminal signals sweep and cells alike, since they are one process group: SIGINT is not sent on, or a
    cell would count it twice and stop at once. SIGTERM reaches the sweep alone and is sent on.
    """

    def __init__(self) -> None:
        self.stopped_by: int | None = None
        self.processes: set[subprocess.Popen[bytes]] = set()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.stopped_by = self.stopped_by or number
        if number == signal.SIGTERM:
            for process in self.processes.copy():
                process.send_signal(number)


def _run_cell(cell: Cell, relay: Relay, jobs: int) -> None:
    """Run a cell that is not finished; where it fails without a failed.json of its own, write one."""
    if cell.result() is None and relay.stopped_by is None:
        log.info("%s: %s", cell.folder.name, cell.state())
        _run_process(cell, relay, None if jobs == 1 else max(1, torch.get_num_threads() // jobs))
    if cell.result() is not None:
        (cell.folder / FAILURE).unlink(missing_ok=True)


def _run_process(cell: Cell, relay: Relay, threads: int | None) -> None:
    before = _failure_time(cell)
    process = start_process(cell, threads)
    relay.processes.add(process)
    if relay.stopped_by == signal.SIGTERM:  # it came before there was a process to send it to
        process.send_signal(signal.SIGTERM)
    status = process.wait()
    relay.processes.discard(process)
    if cell.result() is not None or relay.stopped_by is not None:
        return
    if _failure_time(cell) == before:
        if status < 0:
            name = signal.Signals(-status).name
            reason = f"was killed by {name}" + (" (often an out-of-memory kill)" if -status == signal.SIGKILL else "")
        elif status - 128 in SIGNALS:
            reason = f"was stopped by {signal.Signals(status - 128).name}, which the sweep did not receive"
        else:
            reason = f"ended with status {status} and left no result"
        record_failure(cell.folder, f"The process of the cell {reason}.", "")
    log.error("%s failed: %s", cell.folder.name, read_failure(cell.folder) or "its failed.json could not be written")


def _failure_time(cell: Cell) -> int | None:
    path = cell.folder / FAILURE
    return path.stat().st_mtime_ns if path.exists() else None


def record_failure(folder: Path, message: str, trace: str) -> None:
    """Write failed.json; where it cannot be written, the sweep continues."""
    content = {
        "message": " ".join(message.split()),
        "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "traceback": trace,
    }
    with contextlib.suppress(UserError, OSError):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FAILURE, content)


@contextlib.contextmanager
def failure_recorded(folder: Path) -> Iterator[None]:
    """Around a cell: write an error with its traceback to failed.json, and raise it as a UserError without."""
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        record_failure(folder, message, traceback.format_exc())
        raise UserError(" ".join(message.split())) from error


def _listing(folder: Path, cells: list[Cell]) -> str:
    width = max(len(cell.folder.name) for cell in cells)
    finished = sum(cell.result() is not None for cell in cells)
    lines = [f"{folder}: {len(cells)} cells, {finished} finished"]
    return "\n".join(lines + [f"{cell.folder.name:<{width}}  {cell.state()}" for cell in cells])


def _table(cells: list[Cell]) -> str:
    """One line per cell: the expected mAP of each database code, or the reason of a failure."""
    header = f"{'method':<12} {'seed':>10} {'bits':>4} {RESULT_HEADER}"
    lines = [header, "-" * len(header)]
    for cell in cells:
        row, settings = cell.result(), cell.settings
        failure = read_failure(cell.folder) or "its failed.json could not be written"
        columns = f"failed: {failure}" if row is None else result_columns(row)
        lines.append(f"{settings.method:<12} {settings.seed:>10} {settings.code_length[0]:>4} {columns}")
    return "\n".join(lines)
