"""Files: read JSON and tensors safely, write a file whole or not at all, lock a file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import re
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import filelock

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
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); restore the file.") from error
    if not isinstance(content, kind):
        raise UserError(f"{path}: not the file of a run; restore the file.")
    return content


def fits(content: Any, kind: Any) -> bool:
    """Whether JSON content has the types of `kind`: a type, or a dictionary of kinds for the entries that are there.

    A number must be finite, and one that a float can hold.
    """
    if isinstance(kind, dict):
        return isinstance(content, dict) and all(fits(content[name], kind[name]) for name in kind if name in content)
    if isinstance(content, bool):  # Python counts it as a whole number
        return kind is bool
    if isinstance(content, int | float) and not abs(content) <= sys.float_info.max:
        return False
    return isinstance(content, kind)


# Behind what torch.save writes, `save_tensors` appends this and the SHA-256 of everything before it, in 64 hexadecimal
# digits, and a line end. torch.load and unzip look for the end of the zip archive and pass over the rest.
_MARK = b"\nschn-sha256 "
_FOOTER = len(_MARK) + 64 + 1
_ZIP_END = 22  # bytes of the last record of a zip archive without a comment, as torch.save writes it


class _Damaged(Exception):
    """Why a file is not one that torch.save wrote, in words."""


def save_tensors(path: Path, content: Any, flag: str = "") -> None:
    """`write_file` of what `torch.save` makes of `content`, and behind it a checksum that `load_tensors` compares.

    Raises:
        UserError: as `write_file`.
    """
    import torch  # here and below: most who write or lock a file need no torch, which takes a second to import

    def write(file: IO[bytes]) -> None:
        hashed = _Hashed(file)
        try:
            torch.save(content, hashed)  # type: ignore[arg-type]  # it needs no more than `write` and `flush`
        except RuntimeError as error:  # torch hides the error of the file
            raise hashed.error or error from error
        file.write(_MARK + hashed.digest.hexdigest().encode() + b"\n")

    write_file(path, write, flag)


class _Hashed:
    """Passes what is written on to a file, and hashes it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def load_tensors(path: Path, what: str) -> Any:
    """The content of a file written by `torch.save`, on the CPU: dense tensors and plain containers only.

    Nothing else is unpickled, so the file cannot run code
    (https://docs.pytorch.org/docs/stable/generated/torch.load.html, `weights_only`). The SHA-256 of `save_tensors` is
    compared; in a file without one, the CRC-32 of each part, which torch.load does not look at.

    Raises:
        UserError: the file is missing, damaged, or holds other objects.
    """
    import torch

    try:
        with path.open("rb") as file:
            _require_whole(file)
        with warnings.catch_warnings():  # of torch, about its own formats; they name no file
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
        _require_dense(content)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except Exception as error:  # torch raises many types here: pickle, zip, EOF and runtime errors
        raise UserError(f"{path}: damaged, or not {what} saved by torch.save ({_in_words(error)}).") from error
    return content


def _require_whole(file: IO[bytes]) -> None:
    """Raise _Damaged where a file has changed since it was written, or its zip archive is not one of torch.save."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise _Damaged("it is empty")
    file.seek(max(0, size - _FOOTER))
    footer = file.read()
    file.seek(0)
    if footer.startswith(_MARK) and size >= _FOOTER:
        if footer != _MARK + _sha256(file, size - _FOOTER).encode() + b"\n":
            raise _Damaged("it has changed since it was written: its SHA-256 differs")
    elif file.read(2) == b"PK":  # else it is of a torch before 1.6, or no such file at all
        if footer[-_ZIP_END:][:4] != b"PK\5\6":
            raise _Damaged("it is cut short, or its end has changed")
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if len(set(names)) < len(names):
                raise _Damaged("two of its parts have the same name")
            if sum(part.file_size for part in archive.infolist()) > size:  # torch.save compresses nothing
                raise _Damaged("its parts are larger than the file")
            if changed := archive.testzip():
                raise _Damaged(f"its part {changed} has changed: its CRC-32 differs")


def _sha256(file: IO[bytes], size: int) -> str:
    digest, block = hashlib.sha256(), memoryview(bytearray(2**20))
    while size > 0:
        count = file.readinto(block[: min(size, len(block))])  # type: ignore[attr-defined]
        if not count:
            break
        digest.update(block[:count])
        size -= count
    return digest.hexdigest()


def _require_dense(content: Any) -> None:
    """Raise _Damaged where a container holds tensors that the code of this project cannot use."""
    import torch

    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list | tuple | set):
        for value in content:
            _require_dense(value)
    elif isinstance(content, torch.Tensor):
        if content.layout != torch.strided or content.is_nested or content.is_quantized or content.is_meta:
            kind = "quantised" if content.is_quantized else str(content.layout).removeprefix("torch.")
            raise _Damaged(f"it holds a tensor of the layout {kind}; save dense ones, such as tensor.to_dense()")
        if content.numel() * content.element_size() > content.untyped_storage().nbytes():
            raise _Damaged("it holds an expanded tensor; save tensor.contiguous()")


def _in_words(error: Exception) -> str:
    """Why a file could not be loaded; torch's own messages advise what is not safe."""
    if isinstance(error, _Damaged):
        return str(error)
    if isinstance(error, pickle.UnpicklingError) and (found := re.search(r"GLOBAL ([\w.]+)", str(error))):
        if found[1].startswith("numpy"):
            return "it holds NumPy arrays; save torch.from_numpy(array)"
        return f"it holds other objects than tensors, such as {found[1]}"
    return "its content is not that of torch.save"


def write_file(path: Path, write: Callable[[IO[bytes]], Any], flag: str = "") -> None:
    """Call `write(file)` on a temporary file in the same folder, flush it to the disk and rename it to `path`.

    A reader, or a crash, sees the old file or the new file, never a part of one. A link stays, and the file that it
    leads to is replaced. A pipe or a device, such as /dev/stdout, is written in place.

    Raises:
        UserError: the disk is full or the folder is not writable; `path` has not changed.
    """
    temporary = None
    try:
        if _in_place(path):
            with path.open("wb") as file:
                write(file)
            return
        target = path.resolve()
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(temporary, target)
    except BrokenPipeError:
        raise  # a reader of the output that has gone, see `utils.command.run_command`
    except OSError as error:
        raise not_written(path, error, flag) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of `write_file` that a killed process has left in the folder of a run.

    Call it only where no other process writes in the folder. Those of earlier versions end in eight letters.
    """
    for path in folder.glob(".*"):
        if re.fullmatch(r"\..+\.(json|jsonl|pt|t)\.[a-z0-9_]{8}(\.tmp)?", path.name):
            path.unlink(missing_ok=True)


def not_written(path: Path, error: OSError, flag: str = "") -> UserError:
    """The error for a file that could not be written; without a `flag` it is a file of a run."""
    reason = error.strerror or error
    where = f"{flag} {path}".strip()
    other = "choose another --logs" if not flag else "name another file"
    return UserError(f"{where}: could not be written ({reason}); free some space or {other}.")


def _in_place(path: Path) -> bool:
    """Whether it is a pipe or a device, which no file can replace; /dev/stdout may stand for a file that is open."""
    in_system = path.parent.resolve().parts[1:2] in (("dev",), ("proc",))
    return (in_system and path.exists()) or (path.exists() and not path.is_file())


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
    parent = (path.resolve() if path.is_symlink() else path).parent
    if not parent.is_dir():
        raise UserError(f"{flag} {path}: there is no folder {parent}; make it or name another file.")
    require_writable(parent, f"{flag} {path}")


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
