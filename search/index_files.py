"""The files in the folder of an index: how they are written, read and checked."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data.decode import DECODING
from search.model import EXPORT_FORMAT, TrainedModel
from utils.errors import UserError
from utils.files import require_writable, save_tensors

FORMAT = "schn-index-1"
DESCRIPTION, CODES, NAMES, LABELS = "index.json", "codes.npy", "names.bin", "labels.bin"
MODEL, FAISS = "model.pt", "faiss.bin"
REBUILD = "build the index again"  # how to fix a damaged index

_KINDS: dict[str, Any] = {
    "count": int,
    "code_length": int,
    "settings": dict,
    "fingerprint": str,
    "images": (str, type(None)),
    "files": dict,
}


def write_model(path: Path, trained: TrainedModel) -> None:
    """Write the network so that `load_model` reads exactly the same numbers, in the format of `export_model`.

    Tensors that lose nothing are stored in float16, so that the model of an export stays as small as the export.
    """
    state = {}
    for name, value in trained.model.state_dict().items():
        value = value.detach().cpu().contiguous()
        if value.dtype == torch.float32 and torch.equal(value.half().float(), value):
            value = value.half()
        state[name] = value
    save_tensors(path, {"format": EXPORT_FORMAT, "settings": trained.settings, "state": state}, "INDEX")


def require_index_place(folder: Path) -> None:
    """UserError if `folder` is neither an index nor empty, or its parent folder is missing or not writable."""
    if folder.exists() and not (folder / DESCRIPTION).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder}: already exists and is not an index; name a new folder.")
    parent = folder.absolute().parent
    if not parent.is_dir():
        raise UserError(f"{folder}: there is no folder {parent}; make it or name another.")
    require_writable(parent, str(folder))


def check_file(folder: Path, name: str, expected: dict[str, Any]) -> None:
    """UserError if a file of an index is missing or is not as `expected`, its entry in index.json."""
    path = folder / name
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise UserError(
                f"{path}: has {size:,} bytes, not {expected['bytes']:,}: truncated or from another index; {REBUILD}."
            )
        if sha256_of_file(path) != expected["sha256"]:
            raise UserError(f"{path}: has changed since the index was written (checksum); {REBUILD}.")
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; {REBUILD}.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {REBUILD}.") from error


def read_description(folder: Path) -> dict[str, Any]:
    """The content of index.json; UserError if `folder` is not an index of this version, or the file has changed."""
    path = folder / DESCRIPTION
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; name one that `python -m search build` wrote.")
    if not path.is_file():
        raise UserError(f"{folder}: is not an index, it has no {DESCRIPTION}; name one of `python -m search build`.")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: truncated or damaged ({error}); {REBUILD}.") from error
    version = description.get("format") if isinstance(description, dict) else None
    if version != FORMAT:
        if isinstance(version, str) and version.startswith("schn-index-"):
            raise UserError(f"{folder}: an index of version {version}, not {FORMAT}; {REBUILD}.")
        raise UserError(f"{folder}: is not an index, its {DESCRIPTION} has other content; name an index.")
    given = description.pop("sha256", None)
    if given != sha256_of_description(description):
        raise UserError(f"{path}: has changed since the index was written (checksum); {REBUILD}.")
    for name, kind in _KINDS.items():
        if not isinstance(description.get(name), kind):
            raise UserError(f"{path}: has the wrong {name} {description.get(name)!r}; {REBUILD}.")
    if description.get("decoding") != DECODING:
        raise UserError(f"{folder}: its images were decoded in another way (transparent ones, for example); {REBUILD}.")
    if description["code_length"] < 1 or not {CODES, NAMES} <= description["files"].keys():
        raise UserError(f"{path}: describes no codes; {REBUILD}.")
    return description


def sha256_of_description(description: dict[str, Any]) -> str:
    """The checksum of index.json without the checksum itself."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def sha256_of_file(path: Path) -> str:
    """The checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_strings(path: Path, strings: Sequence[str]) -> None:
    """Write strings in UTF-8, a zero byte after each; UserError where one has a zero byte."""
    with path.open("wb") as file:
        for string in strings:
            encoded = str(string).encode("utf-8", "surrogateescape")  # names of files need not be UTF-8
            if b"\0" in encoded:
                raise UserError(f"{path.name}: {string!r} has a zero byte, which no file name can have; rename it.")
            file.write(encoded + b"\0")


def read_strings(path: Path) -> list[str]:
    """The strings of `write_strings`."""
    content = path.read_bytes()
    return content[:-1].decode("utf-8", "surrogateescape").split("\0") if content else []


def put_in_place(new: Path, folder: Path) -> None:
    """Flush the files of `new` to the disk and rename it to `folder`; an old folder is kept until that is done."""
    for path in new.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    os.chmod(new, 0o755)  # mkdtemp makes folders that only their owner can enter
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
