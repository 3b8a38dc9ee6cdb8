"""The files of an index's folder: written, read and checked."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import torch

from search.model import EXPORT_FORMAT, TrainedModel
from utils.errors import UserError

FORMAT = "schn-index-1"


DESCRIPTION, CODES, NAMES, LABELS, MODEL, FAISS = (
    "index.json",
    "codes.npy",
    "names.bin",
    "labels.bin",
    "model.pt",
    "faiss.bin",
)


_REBUILD = "build the index again"


def write_model(file: IO[bytes], trained: TrainedModel) -> None:
    """Write the network so that `load_model` reads the very same numbers, to the last bit.

    An export (`search.model.export_model`) in the run's full precision; tensors that lose nothing by it are kept in
    float16, so that the model of an export stays as small as the export was.
    """
    state = {}
    for name, value in trained.model.state_dict().items():
        value = value.detach().cpu().contiguous()
        if value.dtype == torch.float32 and torch.equal(value.half().float(), value):
            value = value.half()
        state[name] = value
    torch.save({"format": EXPORT_FORMAT, "settings": trained.summary, "state": state}, file)


def require_index_place(folder: Path) -> None:
    """Prove that `folder` can become an index before anything is computed; UserError where it cannot."""
    if folder.exists() and not (folder / DESCRIPTION).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder}: is there already and is no index; name a new folder.")
    parent = folder.absolute().parent
    if not parent.is_dir():
        raise UserError(f"{folder}: there is no folder {parent}; make it or name another.")
    try:
        with tempfile.TemporaryDirectory(dir=parent):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot write there ({error.strerror}); name another folder.") from error


def check_file(folder: Path, name: str, expected: dict[str, Any]) -> None:
    """UserError unless the file `name` of an index is as it was written; `expected` is its entry in index.json."""
    path = folder / name
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise UserError(
                f"{path}: has {size:,} bytes, not {expected['bytes']:,}: truncated or of another index; {_REBUILD}."
            )
        if _sha256(path) != expected["sha256"]:
            raise UserError(f"{path}: has changed since the index was written (checksum); {_REBUILD}.")
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; {_REBUILD}.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error


def described_file(folder: Path, name: str) -> dict[str, Any] | None:
    """The entry of a file in an index's index.json; None where the index was written without it."""
    return _read_description(folder)["files"].get(name)


_KINDS: dict[str, Any] = {
    "count": int,
    "code_length": int,
    "settings": dict,
    "fingerprint": str,
    "images": (str, type(None)),
    "files": dict,
}


def _read_description(folder: Path) -> dict[str, Any]:
    """index.json, checked; UserError where it is none of ours or was changed."""
    path = folder / DESCRIPTION
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; name one that `python -m search build` wrote.")
    if not path.is_file():
        raise UserError(f"{folder}: is no index, it holds no {DESCRIPTION}.")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: truncated or damaged ({error}); {_REBUILD}.") from error
    version = description.get("format") if isinstance(description, dict) else None
    if version != FORMAT:
        if isinstance(version, str) and version.startswith("schn-index-"):
            raise UserError(f"{folder}: an index of version {version}, this is {FORMAT}; {_REBUILD}.")
        raise UserError(f"{folder}: is no index, {DESCRIPTION} is something else.")
    given = description.pop("sha256", None)
    if given != _sha256_of_description(description):
        raise UserError(f"{path}: has changed since the index was written (checksum); {_REBUILD}.")
    for name, kind in _KINDS.items():
        if not isinstance(description.get(name), kind):
            raise UserError(f"{path}: has {name} {description.get(name)!r}, which cannot be; {_REBUILD}.")
    if description["code_length"] < 1 or not {CODES, NAMES} <= description["files"].keys():
        raise UserError(f"{path}: describes no codes; {_REBUILD}.")
    return description


def _sha256_of_description(description: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _synced(path: Path):
    """A new file, on the disk when the block ends."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _write_strings(path: Path, strings: Sequence[str]) -> None:
    with _synced(path) as file:
        for string in strings:
            encoded = str(string).encode("utf-8", "surrogateescape")  # names of files need not be UTF-8
            if b"\0" in encoded:
                raise UserError(f"{path.name}: {string!r} holds a zero byte, which no name of a file can.")
            file.write(encoded + b"\0")


def _read_strings(path: Path) -> list[str]:
    content = path.read_bytes()
    return content[:-1].decode("utf-8", "surrogateescape").split("\0") if content else []


def _put_in_place(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; what was there before is kept until that is done."""
    if not folder.exists():
        os.rename(new, folder)
        return
    old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.old."))
    os.rename(folder, old)  # onto an empty folder, which a rename may replace
    try:
        os.rename(new, folder)
    except OSError:
        os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
