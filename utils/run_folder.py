"""A run's folder: `logs/<method>-<dataset>-<time>/` and everything a run writes there (docs/runs.md)."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor

from . import distributed
from .errors import UserError
from .evaluate_command import ROLES
from .interrupt import StopRequest
from .json_files import read_json
from .settings import Settings


def require_writable(logs: str | os.PathLike[str]) -> None:
    """Make the logs folder and prove that files can be made there, before anything is computed.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    try:
        Path(logs).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=logs):
            pass
    except OSError as error:
        raise UserError(f"--logs {logs}: cannot write there ({error.strerror}); name another folder.") from error


def write_atomically(path: Path, write: Any) -> None:
    """Call `write(file)` on a temporary file beside `path`, flush it to the disk and rename it to `path`.

    A reader, or a crash, sees the old file or the new one, never half of one.

    Raises:
        UserError: the disk is full or the folder cannot be written to; `path` is then as it was.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _not_written(path, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        raise _not_written(path, error) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _not_written(path: Path, error: Exception) -> UserError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return UserError(f"{path}: could not be written ({reason}); free some space or choose another --logs.")


class RunFolder:
    """The folder of one run. Nothing is made on disk before `open`.

    Args:
        settings: the run's settings.
        command: the command line, for config.json.
        device: what trains.
        path: the folder to make, or of an earlier run to go on with; None: a new one below `settings.logs`, named by
            method, dataset and time.

    Raises:
        UserError: `path` holds a damaged results.json.
    """

    def __init__(self, settings: Settings, command: list[str], device: torch.device, path: Path | None = None) -> None:
        self.settings = settings
        self.command = command
        self.device = device
        self.stop = StopRequest()
        self.started = datetime.datetime.now().astimezone()
        name = f"{settings.method}-{settings.dataset}-{self.started:%Y%m%d-%H%M%S}"
        self.path = distributed.of_first(path or _free_name(Path(settings.logs), name))
        self.writes = distributed.rank() == 0  # one process of a job writes, all read
        self.results: list[dict[str, Any]] = []
        if (self.path / "results.json").exists():
            self.results = read_json(self.path / "results.json", list)
        self._opened = False

    def open(self) -> None:
        """Make the folder and write config.json, or note in it that the run goes on; only the first call acts."""
        if self._opened or not self.writes:
            return
        self._opened = True
        self.path.mkdir(parents=True, exist_ok=True)
        origin = {
            "command": shlex.join(self.command),
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
        if (self.path / "config.json").exists():
            config = read_json(self.path / "config.json", dict)
            config.setdefault("resumed", []).append(origin)
        else:
            config = {"settings": self.settings.as_json(), **origin}
        self.write_json("config.json", config)

    def is_finished(self, code_length: int) -> bool:
        """Whether results.json has the row of this code length already."""
        return any(row["code_length"] == code_length for row in self.results)

    def log(self, row: dict[str, Any]) -> None:
        """Append one line, an iteration, to metrics.jsonl."""
        if not self.writes:
            return
        path = self.path / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise _not_written(path, error) from error

    def forget_metrics(self, code_length: int, iteration: int) -> None:
        """Drop a code length's lines after `iteration`: a resumed run writes them again."""
        path = self.path / "metrics.jsonl"
        if not self.writes or not path.exists():
            return
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        kept = [row for row in rows if row["code_length"] != code_length or row["iteration"] <= iteration]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        write_atomically(path, lambda file: file.write(text.encode()))

    def add_result(self, row: dict[str, Any]) -> None:
        """Add the row of a finished code length to results.json."""
        self.results.append(row)
        self.write_json("results.json", self.results)

    def write_json(self, name: str, content: Any) -> None:
        """Write `content` as indented JSON, atomically."""
        if not self.writes:
            return
        text = json.dumps(content, indent=2) + "\n"
        write_atomically(self.path / name, lambda file: file.write(text.encode()))

    def save(self, name: str, content: Any) -> None:
        """torch.save `content`, atomically."""
        if self.writes:
            write_atomically(self.path / name, lambda file: torch.save(content, file))

    def save_codes(self, code_length: int, learned_map: float, codes: dict[str, Tensor]) -> None:
        """The four files of a code length: `{dataset}-{K}bits-{mAP}-{name}.t`.

        Args:
            code_length: K.
            learned_map: expected mAP of the learned codes, written into the names.
            codes: query_code [Q, K], database_code [D, K], query_targets [Q, C], database_targets [D, C].
        """
        for name in ROLES:
            self.save(f"{self.settings.dataset}-{code_length}bits-{learned_map:.4f}-{name}.t", codes[name].cpu())


def _free_name(parent: Path, name: str) -> Path:
    """parent/name, or with -2, -3, ... behind it where another run of the same second has taken it."""
    path, number = parent / name, 1
    while path.exists():
        number += 1
        path = parent / f"{name}-{number}"
    return path


def git_state() -> dict[str, Any] | None:
    """{"hash", "dirty"} of the project's checkout; None where it is not one, or git is missing."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True, timeout=10
        ).stdout.strip()

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
