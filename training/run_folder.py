"""The folder of a run, `logs/<method>-<dataset>-<time>/`, and everything that a run writes there (docs/runs.md).

`utils.runs` has the names of the files and reads them.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor

from training.settings import Settings
from utils import distributed
from utils.errors import UserError
from utils.files import Locked, locked, not_written, remove_leftovers, save_tensors, write_file, write_json
from utils.interrupt import StopRequest, handled_by
from utils.log import launched_rank
from utils.runs import (
    CONFIG,
    METRICS,
    RESULTS,
    ROLES,
    checkpoint_file,
    checkpoints,
    code_set_name,
    has_result,
    is_run,
    model_file,
    read_config,
    read_metrics,
    read_results,
)

CHECKPOINTS_KEPT = 2


class RunFolder:
    """The folder of one run. Nothing is created on disk before `open`.

    While it is entered (`with run:`), no other process can train in the folder, and a signal during an iteration lets
    it finish (`stop`).

    `path` is the folder to create, or of the run to resume; None: a new one in `settings.logs`, named by method,
    dataset and time. UserError where its results.json is damaged.
    """

    def __init__(self, settings: Settings, device: torch.device, path: Path | None = None) -> None:
        self.settings = settings
        self.device = device
        self.stop = StopRequest()
        self.started = datetime.datetime.now().astimezone()
        name = f"{settings.method}-{settings.dataset}-{self.started:%Y%m%d-%H%M%S}"
        self.is_new = path is None
        self.path: Path = Path(settings.logs) / name if path is None else path
        self.data = ""  # of `data_digest`; `open` sets it
        self.writes = distributed.rank() == 0  # one process of a job writes, all read
        self.results = [] if self.is_new else read_results(self.path)
        self._opened = self._locked = False
        self._held = contextlib.ExitStack()

    def __enter__(self) -> RunFolder:
        if not self.is_new and self.path.is_dir():
            self._lock()
            self.results = distributed.of_first(read_results(self.path))  # nobody adds to them from now on
        self._held.enter_context(handled_by(self.stop))
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()
        self._locked = False

    def _lock(self) -> None:
        if self._locked or not self.writes:
            return
        self._held.enter_context(_owned(self.path))
        self._locked = True
        remove_leftovers(self.path)

    def open(self, data: str) -> None:
        """Create the folder and write config.json, or add to it that the run was resumed; only the first call acts.

        `data` is the `data_digest` of the split.

        Raises:
            UserError: another process trains in the folder, or the run began with other data.
        """
        if self._opened:
            return
        self._opened, self.data = True, data
        if self.writes:
            try:
                if self.is_new:
                    self.path = _new_folder(self.path)
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise not_written(self.path, error) from error
            self._lock()
            self._write_config()
        self.path = distributed.of_first(self.path)

    def _write_config(self) -> None:
        origin = {
            "command": shlex.join(command_line()),
            "started": self.started.isoformat(timespec="seconds"),
            "commit": git_state(),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
                "numpy": np.__version__,
                "cuda": torch.version.cuda,
            },
            "device": device_name(self.device),
            "threads": torch.get_num_threads(),
            "processes": distributed.size(),
        }
        config: dict[str, Any] = {"settings": self.settings.as_json(), "data": self.data, **origin}
        if is_run(self.path):
            began = read_config(self.path)
            require_same_data(self.path / CONFIG, began.get("data"), self.data)
            if began["settings"].get("max_iter") != self.settings.max_iter:  # it is to train longer
                began["settings"] = config["settings"]
            config = {**began, "data": self.data, "resumed": [*began.get("resumed", []), origin]}
        write_json(self.path / CONFIG, config)

    def initial_weights(self, code_length: int) -> str:
        """--weights; "none" where a checkpoint is loaded over them."""
        has_checkpoint = not self.is_new and checkpoints(self.path, code_length)
        return "none" if has_checkpoint else self.settings.weights

    def is_finished(self, code_length: int) -> bool:
        """Whether results.json has the row of this code length, after all iterations."""
        return has_result(self.results, code_length, self.settings.max_iter)

    def log(self, row: dict[str, Any]) -> None:
        """Append the row of an iteration to metrics.jsonl."""
        if not self.writes:
            return
        path = self.path / METRICS
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise not_written(path, error) from error

    def forget_metrics(self, code_length: int, iteration: int) -> None:
        """Remove the rows of a code length after `iteration`: a resumed run writes them again."""
        if not self.writes or not (self.path / METRICS).exists():
            return
        kept = []
        for row in read_metrics(self.path):
            if row["code_length"] == code_length:
                if row["iteration"] > iteration:
                    continue
                if row["iteration"] % self.settings.eval_iter and row["iteration"] != self.settings.max_iter:
                    # The end of a shorter run, which is now trained longer: no iteration to evaluate any more.
                    row = {name: value for name, value in row.items() if name not in ("map", "validation_map")}
            kept.append(row)
        text = "".join(json.dumps(row) + "\n" for row in kept)
        write_file(self.path / METRICS, lambda file: file.write(text.encode()))

    def add_result(self, row: dict[str, Any]) -> None:
        """Add the row of a finished code length to results.json; it replaces that of fewer iterations."""
        self.results = [old for old in self.results if old["code_length"] != row["code_length"]] + [row]
        if self.writes:
            write_json(self.path / RESULTS, self.results)

    def save_codes(self, code_length: int, database_map: float, codes: dict[str, Tensor]) -> None:
        """Write query_code [Q, K], database_code [D, K], query_targets [Q, C], database_targets [D, C]."""
        name = code_set_name(self.settings.dataset, code_length, database_map)
        for role in ROLES:
            path = self.path / f"{name}-{role}.t"
            self._save(path, codes[role].cpu())
            if self.writes:  # a run that has ended before, after fewer iterations, has left codes with another mAP
                for old in self.path.glob(f"{self.settings.dataset}-{code_length}bits-*-{role}.t"):
                    if old != path:
                        old.unlink()

    def save_model(self, code_length: int, state: dict[str, Tensor]) -> None:
        """Write the state dict of the trained image network."""
        self._save(model_file(self.path, code_length), state)

    def save_checkpoint(self, code_length: int, iteration: int, state: dict[str, Any]) -> None:
        """Write a checkpoint; the newest `CHECKPOINTS_KEPT` of the folder stay."""
        self._save(checkpoint_file(self.path, code_length, iteration), state)
        if self.writes:  # other processes must not look at files that this one removes
            by_age = sorted((path for _, path in checkpoints(self.path)), key=lambda path: path.stat().st_mtime_ns)
            for path in by_age[:-CHECKPOINTS_KEPT]:
                path.unlink()

    def _save(self, path: Path, content: Any) -> None:
        if self.writes:
            save_tensors(path, content)


@contextlib.contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """While entered, no other process trains in `folder`; UserError where one does."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(folder / ".lock"))
        except Locked:
            raise UserError(f"{folder}: another process trains in this folder; wait until it ends.") from None
        except OSError as error:
            raise not_written(folder, error) from error
        yield


def require_free(folder: Path) -> None:
    """UserError where another process trains in `folder`: said before the data are loaded."""
    if folder.is_dir() and launched_rank() == 0:
        with _owned(folder):
            pass


def _new_folder(path: Path) -> Path:
    """Make the folder `path`, with -2, -3, ... added where another run of the same second has made it."""
    for number in itertools.count(1):
        free = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            free.mkdir(parents=True)
        except FileExistsError:
            continue
        return free
    raise AssertionError


def require_same_data(path: Path, began: str | None, now: str) -> None:
    """UserError where the file `path` says that the run began with other data; older files do not say it: None."""
    if began not in (None, now):
        raise UserError(
            f"{path}: the images' names, labels or split have changed since the run began; restore them (the images, "
            "folders and lists in --root) to resume it, or start a new run."
        )


def git_state() -> dict[str, Any] | None:
    """{"hash", "dirty"} of the project's checkout; None where it is not a checkout or git is missing."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        return {"hash": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def device_name(device: torch.device) -> str:
    """The device in words, e.g. "cuda:0 (NVIDIA H100)" or "cpu (2 cores, x86_64)"."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({os.cpu_count()} cores, {platform.machine()})"


def command_line() -> list[str]:
    """The command that started this process, as a user would type it again."""
    return ["python", *sys.argv]
