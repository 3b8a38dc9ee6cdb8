"""The folder of a run, `logs/<method>-<dataset>-<time>/`, and everything that a run writes there (docs/runs.md).

`utils.runs` has the names of the files and reads them.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor

from training.settings import Settings
from utils import distributed
from utils.errors import UserError
from utils.files import Locked, locked, not_written, write_file, write_json
from utils.interrupt import StopRequest, handled_by
from utils.runs import (
    CONFIG,
    METRICS,
    RESULTS,
    ROLES,
    checkpoint_file,
    checkpoints,
    code_set_name,
    is_run,
    model_file,
    read_config,
    read_metrics,
    read_results,
)

CHECKPOINTS_KEPT = 2


class RunFolder:
    """The folder of one run. Nothing is created on disk before `open`.

    While it is entered (`with run:`), a signal lets the current iteration finish (`stop`), and from `open` on no other
    process can train in the folder.

    `path` is the folder to create, or of the run to resume; None: a new one in `settings.logs`, named by method,
    dataset and time. UserError where its results.json is damaged.
    """

    def __init__(self, settings: Settings, device: torch.device, path: Path | None = None) -> None:
        self.settings = settings
        self.device = device
        self.stop = StopRequest()
        self.started = datetime.datetime.now().astimezone()
        name = f"{settings.method}-{settings.dataset}-{self.started:%Y%m%d-%H%M%S}"
        self.path: Path = distributed.of_first(path or _free_name(Path(settings.logs), name))
        self.writes = distributed.rank() == 0  # one process of a job writes, all read
        self.results = read_results(self.path)
        self._opened = False
        self._held = contextlib.ExitStack()

    def __enter__(self) -> RunFolder:
        self._held.enter_context(handled_by(self.stop))
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def open(self) -> None:
        """Create the folder and write config.json, or add to it that the run was resumed; only the first call acts.

        Raises:
            UserError: another process trains in the folder; two would damage its files.
        """
        if self._opened or not self.writes:
            return
        self._opened = True
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._held.enter_context(locked(self.path / ".lock"))
        except Locked:
            raise UserError(f"{self.path}: another process trains in this folder; wait until it ends.") from None
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
        if is_run(self.path):
            config = read_config(self.path)
            config.setdefault("resumed", []).append(origin)
        else:
            config = {"settings": self.settings.as_json(), **origin}
        write_json(self.path / CONFIG, config)

    def is_finished(self, code_length: int) -> bool:
        """Whether results.json already has the row of this code length."""
        return any(row["code_length"] == code_length for row in self.results)

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
        kept = [
            row for row in read_metrics(self.path) if row["code_length"] != code_length or row["iteration"] <= iteration
        ]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        write_file(self.path / METRICS, lambda file: file.write(text.encode()))

    def add_result(self, row: dict[str, Any]) -> None:
        """Add the row of a finished code length to results.json."""
        self.results.append(row)
        if self.writes:
            write_json(self.path / RESULTS, self.results)

    def save_codes(self, code_length: int, database_map: float, codes: dict[str, Tensor]) -> None:
        """Write query_code [Q, K], database_code [D, K], query_targets [Q, C], database_targets [D, C]."""
        name = code_set_name(self.settings.dataset, code_length, database_map)
        for role in ROLES:
            self._save(self.path / f"{name}-{role}.t", codes[role].cpu())

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
            write_file(path, lambda file: torch.save(content, file))


def _free_name(parent: Path, name: str) -> Path:
    """parent/name, with -2, -3, ... added where another run of the same second has taken the name."""
    path, number = parent / name, 1
    while path.exists():
        number += 1
        path = parent / f"{name}-{number}"
    return path


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
