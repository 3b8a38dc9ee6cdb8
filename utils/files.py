"""Files: read JSON and tensors safely, write a file whole or not at all, lock a file."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import filelock
import torch

from utils.errors import UserError
from utils.log import log


def read_json(path: Path, kind: type) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: it is missing, damaged, or does not hold a `kind`.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; name the folder of a run.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); restore the file.") from error
    if not isinstance(content, kind):
        raise UserError(f"{path}: not the file of a run; restore the file.")
    return content


def load_tensors(path: Path, what: str) -> Any:
    """The content of a file written by `torch.save`, on the CPU: tensors and plain containers only.

    Nothing else is unpickled, so the file cannot run code
    (https://docs.pytorch.org/docs/stable/generated/torch.load.html, `weights_only`).

    Raises:
        UserError: the file is missing, damaged, or holds other objects.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file.") from None
    except Exception as error:  # torch raises many types here: pickle, zip, EOF and runtime errors
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{path}: damaged, or not {what} saved by torch.save ({reason}).") from error


def write_file(path: Path, write: Callable[[IO[bytes]], Any], flag: str = "") -> None:
    """Call `write(file)` on a temporary file in the same folder, flush it to the disk and rename it to `path`.

    A reader, or a crash, sees the old file or the new file, never a part of one. A link, a pipe or a device, such as
    /dev/stdout, is written in place.

    Raises:
        UserError: the disk is full or the folder is not writable; `path` has not changed.
    """
    temporary = None
    try:
        if _in_place(path):
            with path.open("wb") as file:
                write(file)
            return
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        raise not_written(path, error, flag) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def not_written(path: Path, error: OSError | RuntimeError, flag: str = "") -> UserError:
    """The error for a file that could not be written; without a `flag` it is a file of a run."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    where = f"{flag} {path}".strip()
    other = "choose another --logs" if not flag else "name another file"
    return UserError(f"{where}: could not be written ({reason}); free some space or {other}.")


def _in_place(path: Path) -> bool:
    """Whether the file must not be replaced by another one."""
    return path.is_symlink() or (path.exists() and not path.is_file())


def write_json(path: Path, content: Any, flag: str = "") -> None:
    """`write_file` of `content` as indented JSON."""
    text = json.dumps(content, indent=2) + "\n"
    write_file(path, lambda file: file.write(text.encode()), flag)


def require_writable(folder: Path, flag: str, create: bool = False) -> None:
    """Check that files can be created in `folder`; only the folder itself stays, where it was missing and `create`.

    Raises:
        UserError: they cannot.
    """
    try:
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{flag}: cannot write there ({error.strerror}); name another folder.") from error


def require_place(path: Path, flag: str) -> None:
    """Check before the computation that the file `path` can be written.

    Raises:
        UserError: it cannot.
    """
    if path.is_dir():
        raise UserError(f"{flag} {path}: is a folder; name a file.")
    if _in_place(path):
        return
    if not path.parent.is_dir():
        raise UserError(f"{flag} {path}: there is no folder {path.parent}; make it or name another file.")
    require_writable(path.parent, f"{flag} {path}")


class Locked(Exception):
    """Another process holds the lock."""


@contextlib.contextmanager
def locked(path: Path, waiting: str | None = None) -> Iterator[None]:
    """Hold the lock file `path` while entered; the system releases it when the process ends, however it ends.

    The library is filelock. On a file system without locks it uses the existence of the file instead, with a warning.

    `waiting`: log this and wait while another process holds the lock; None: do not wait.

    Raises:
        Locked: another process holds the lock, and `waiting` is None.
        OSError: the lock file cannot be created.
    """
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if waiting is None:
            raise Locked(str(path)) from None
        log.info("%s", waiting)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
