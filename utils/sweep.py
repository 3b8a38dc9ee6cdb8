"""Sweeps: a grid of methods, seeds and code lengths, a process and a folder each cell (docs/runs.md).

A cell runs as a child process, `run.py … --cell FOLDER`, so that whatever ends it, the kernel's out-of-memory killer
included, ends no other cell. Its figures are those of a plain run: nothing in a run depends on what ran before it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
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
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from modules.pretrained import read_state

from .checkpoint import checkpoints
from .errors import UserError
from .interrupt import SIGNALS
from .json_files import read_json
from .preflight import preflight
from .progress import log
from .run_folder import command_line, write_atomically
from .settings import FREE_TO_CHANGE, OWN_IMAGES, Grid, Settings, differing_settings, resumed_settings

FAILURE = "failed.json"
RUN = Path(__file__).parents[1] / "run.py"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One method, one seed, one code length: `settings.code_length` holds one number."""

    settings: Settings
    folder: Path

    def result(self) -> dict[str, Any] | None:
        """Its row of results.json; None while it is not finished."""
        path = self.folder / "results.json"
        rows = read_json(path, list) if path.exists() else []
        return next((row for row in rows if (row["code_length"],) == self.settings.code_length), None)

    def failure(self) -> str | None:
        """The sentence of failed.json; None where the cell has not failed."""
        path = self.folder / FAILURE
        return str(read_json(path, dict).get("message")) if path.exists() else None

    def state(self) -> str:
        """ "finished", "failed before: …", "to resume from iteration …" or "to do"."""
        if self.result() is not None:
            return "finished"
        if (failure := self.failure()) is not None:
            return f"failed before: {failure}"
        if (self.folder / "config.json").exists():
            saved = checkpoints(self.folder, self.settings.code_length[0])
            done = int(saved[-1].stem.rpartition("-")[2]) if saved else 0
            return f"to resume from iteration {done}"
        return "to do"

    def disagreement(self) -> list[str]:
        """What the run in the cell's folder has otherwise than the cell: "--lr 0.5 (the cell has 0.1)"."""
        if not (self.folder / "config.json").exists():
            return []
        saved = resumed_settings(self.folder, {})
        differing = []
        for field in dataclasses.fields(Settings):
            wanted, found = getattr(self.settings, field.name), getattr(saved, field.name)
            free = field.name in FREE_TO_CHANGE and not (field.name == "root" and saved.dataset in OWN_IMAGES)
            decided_by_the_data = field.name == "num_samples" and wanted == 0
            if wanted != found and not free and not decided_by_the_data:
                differing.append(f"--{field.name.replace('_', '-')} {_shown(wanted)} (the cell has {_shown(found)})")
        return differing


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def sweep_name(settings: Settings) -> str:
    """A name that the same dataset and the same settings always give: `sweep-<dataset>-<hash>`.

    Only what differs from the preset enters, and neither methods, seeds nor code lengths do: a wider grid finds the
    cells of a narrower one, and a setting that a later version adds changes no name.
    """
    text = json.dumps(differing_settings(settings.as_json()), sort_keys=True)
    return f"sweep-{settings.dataset}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def sweep_folder(settings: Settings, grid: Grid) -> Path:
    """The folder that holds the cells' folders."""
    return Path(settings.logs) / (grid.name or sweep_name(settings))


def cells_of(settings: Settings, grid: Grid) -> list[Cell]:
    """The cells in the order in which they run: seed by seed, so that a broken-off sweep can be compared.

    Raises:
        UserError: a cell's folder holds a run of other settings, or the sweep's folder is that of a run.
    """
    folder = sweep_folder(settings, grid)
    if (folder / "config.json").exists():
        raise UserError(f"--sweep {folder.name}: {folder} is the folder of a run; choose another name.")
    cells = []
    for seed, method, code_length in itertools.product(grid.seeds, grid.methods, settings.code_length):
        own = dataclasses.replace(settings, method=method, seed=seed, code_length=(code_length,))
        cells.append(Cell(own, folder / f"{method}-{settings.dataset}-{code_length}bits-seed{seed}"))
    for cell in cells:
        if differing := cell.disagreement():
            raise UserError(
                f"{cell.folder}: holds a run of other settings than this command's: {', '.join(differing)}; give its "
                "own flags, or choose another name with --sweep."
            )
    return cells


def run_sweep(settings: Settings, grid: Grid) -> int:
    """Run every cell that is not finished, one after the other, and print a table of all.

    Args:
        settings: what the cells share.
        grid: methods, seeds, name; `dry_run` only lists the cells.

    Returns:
        The exit status: 0, all cells are finished; 1, a cell failed; 128 + a signal's number, stopped by it.

    Raises:
        UserError: the settings are refused, do not agree with the cells that are there, or the sweep runs already.
    """
    cells, folder = cells_of(settings, grid), sweep_folder(settings, grid)
    if grid.dry_run:
        print(_listing(folder, cells))
        return 0
    if any(cell.result() is None for cell in cells):
        if settings.weights not in ("imagenet", "none"):
            read_state(Path(settings.weights))
        preflight(settings)
    with _lock(folder) as lock, Relay() as relay:
        for number, cell in enumerate(cells, 1):
            if cell.result() is None and relay.stopped_by is None:
                log.info("cell %d of %d: %s, %s", number, len(cells), cell.folder.name, cell.state())
                _run_cell(cell, lock, relay)
            if cell.result() is not None:
                (cell.folder / FAILURE).unlink(missing_ok=True)
    missing = [cell for cell in cells if cell.result() is None]
    if missing and relay.stopped_by is not None:
        print(
            f"Stopped by {signal.Signals(relay.stopped_by).name}; {len(cells) - len(missing)} of {len(cells)} cells "
            f"are finished. Go on with the same command: {shlex.join(command_line())}",
            file=sys.stderr,
        )
        return 128 + relay.stopped_by
    print(_table(cells))
    print(f"{len(cells) - len(missing)} of {len(cells)} cells are finished. Written to {folder}/")
    if missing:
        print(f"Tracebacks are in the cells' {FAILURE}; the same command tries the failed cells again.")
    return 1 if missing else 0


def start_process(cell: Cell, lock: int) -> Process:
    """Start the child process of a cell.

    It gets a process group of its own: Ctrl-C in a terminal signals the whole foreground group, and the cell would see
    the signal twice, from the terminal and from the sweep. It holds the sweep's lock too, so that the sweep counts as
    running as long as a cell outlives it.
    """
    command = [sys.executable, os.path.relpath(RUN), *cell.settings.as_flags(), "--cell", str(cell.folder)]
    sys.stdout.flush()
    return subprocess.Popen(command, process_group=0, pass_fds=(lock,))


class Process(Protocol):
    """A started cell."""

    def wait(self) -> int:
        """The exit status, or minus the number of the signal that killed it."""

    def send_signal(self, sig: int, /) -> None: ...


class Relay:
    """While entered, passes a signal that asks to stop on to the running cell; the first stays in `stopped_by`.

    SIGINT goes on as SIGTERM, which a cell answers alike, but which leaves no traceback of a cell that has only begun
    to import. SIGHUP, the closed terminal, ends a run at once, and does so here.
    """

    def __init__(self) -> None:
        self.stopped_by: int | None = None
        self.process: Process | None = None
        self.waiting: list[int] = []  # signals that are still to be passed on

    def __enter__(self) -> Relay:
        # nohup has SIGHUP ignored, and it stays so.
        hangup = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
        self._before = {number: signal.signal(number, self._note) for number in (*SIGNALS, *hangup)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wait(self, process: Process) -> int:
        """Wait for a cell's end; returns its status."""
        self.process = process
        self._pass_on()
        status = process.wait()
        self.process = None
        return status

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.stopped_by is None:
            self.stopped_by = number
        self.waiting.append(number if number == signal.SIGHUP else signal.SIGTERM)
        self._pass_on()

    def _pass_on(self) -> None:
        while self.process is not None and self.waiting:
            self.process.send_signal(self.waiting.pop())


def _run_cell(cell: Cell, lock: int, relay: Relay) -> None:
    """Run a cell to its end; where it fails without noting why, note what is known."""
    noted_before = _noted(cell)
    status = relay.wait(start_process(cell, lock))
    if cell.result() is not None or relay.stopped_by is not None:
        return
    if _noted(cell) == noted_before:
        if status < 0:
            name = signal.Signals(-status).name
            reason = f"was killed by {name}" + (" (often: no memory was left)" if -status == signal.SIGKILL else "")
        elif status - 128 in SIGNALS:
            reason = f"was stopped by {signal.Signals(status - 128).name}, which the sweep itself did not get"
        else:
            reason = f"ended with status {status} and left no result"
        note_failure(cell.folder, f"The cell's process {reason}.", "")
    log.error("%s failed: %s", cell.folder.name, cell.failure() or "the disk takes no note of it")


def _noted(cell: Cell) -> int | None:
    path = cell.folder / FAILURE
    return path.stat().st_mtime_ns if path.exists() else None


def note_failure(folder: Path, message: str, trace: str) -> None:
    """Write failed.json: {"message", "time", "traceback"}; a disk that refuses it is no reason to stop a sweep."""
    content = {
        "message": " ".join(message.split()),
        "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "traceback": trace,
    }
    with contextlib.suppress(UserError, OSError):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / FAILURE, lambda file: file.write((json.dumps(content, indent=2) + "\n").encode()))


@contextlib.contextmanager
def failure_noted(folder: Path) -> Iterator[None]:
    """Around a cell: what it raises is noted in its folder, the traceback there alone.

    Args:
        folder: the cell's.

    Raises:
        UserError: in the place of any error, with its kind and its message.
    """
    try:
        yield
    except Exception as error:
        message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        note_failure(folder, message, traceback.format_exc())
        raise UserError(" ".join(message.split())) from error


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[int]:
    """Hold the sweep's lock; two processes at work in one cell would spoil its files.

    Raises:
        UserError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder}: another process is at work on this sweep, or a cell of one that was killed; wait for its "
                "end, or stop it."
            ) from None
        except OSError as error:  # some network file systems have no locks
            log.warning("%s cannot be locked (%s): do not start this sweep twice.", folder, error.strerror)
        yield file.fileno()


def _listing(folder: Path, cells: list[Cell]) -> str:
    width = max(len(cell.folder.name) for cell in cells)
    finished = sum(cell.result() is not None for cell in cells)
    lines = [f"{folder}: {len(cells)} cells, {finished} finished"]
    return "\n".join(lines + [f"{cell.folder.name:<{width}}  {cell.state()}" for cell in cells])


def _table(cells: list[Cell]) -> str:
    """A line a cell: expected mAP of learned, learned_filled and network codes, or why there is none."""
    header = f"{'method':<12} {'seed':>10} {'bits':>4}"
    header += "".join(f" {column:>8}" for column in ("learned", "filled", "network", "best", "seconds"))
    lines = [header, "-" * len(header)]
    for cell in cells:
        row, settings = cell.result(), cell.settings
        line = f"{settings.method:<12} {settings.seed:>10} {settings.code_length[0]:>4} "
        if row is None:
            lines.append(line + f"failed: {cell.failure() or 'the disk took no note of it'}")
            continue
        figures = [row["map"][kind]["expected"] for kind in ("learned", "learned_filled", "network")]
        figures.append(row["best"]["expected"])
        lines.append(line + " ".join(f"{value:>8.4f}" for value in figures) + f" {row['seconds']:>8.0f}")
    return "\n".join(lines)
