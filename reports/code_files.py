"""Files of codes and labels, ours or those of another project: torch, numpy or Matlab (docs/evaluation.md)."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from reports.read_mat import IS_HDF5
from utils.errors import UserError
from utils.files import load_tensors
from utils.runs import ROLES

SUFFIXES = (".t", ".npy")  # of files that are named by their role


class CodeFile(NamedTuple):
    """A file, and the name of the array in it where it can hold several (npz, mat)."""

    path: Path
    array: str | None = None

    @classmethod
    def parse(cls, text: str) -> CodeFile:
        """Read `FILE` or `FILE:ARRAY`."""
        path, colon, array = text.rpartition(":")
        return cls(Path(text)) if Path(text).exists() or not colon else cls(Path(path), array)


class CodeSet(NamedTuple):
    """The four files of one code length, by role; `name` is what their names share."""

    name: str
    files: Mapping[str, CodeFile]

    @property
    def folder(self) -> Path:
        """Where the files are; with files of a run, its folder."""
        return self.files[ROLES[0]].path.parent


def find_code_sets(paths: Sequence[Path]) -> list[CodeSet]:
    """Sets of four files `<name>-<role>.t` or `.npy`, from one folder or from the files themselves.

    Raises:
        UserError: a path is missing or is not such a file, or a set is incomplete.
    """
    if len(paths) == 1 and paths[0].is_dir():
        files = sorted(path for path in paths[0].iterdir() if _role(path) is not None)
        if not files:
            raise UserError(f"{paths[0]}: has no code files (*-query_code.t ...); name the folder of a finished run.")
    else:
        files = list(paths)
    sets: dict[tuple[Path, str], dict[str, CodeFile]] = {}
    for path in files:
        role = _role(path)
        if role is None:
            raise UserError(
                f"{path}: name the folder of one run, or code files that end in {', '.join(ROLES)} and .t or .npy, "
                "or give each file with --query-codes and the other three flags."
            )
        if not path.is_file():
            raise UserError(f"{path}: there is no such file.")
        sets.setdefault((path.parent, path.stem.removesuffix(role).rstrip("-")), {})[role] = CodeFile(path)
    for (folder, name), found in sets.items():
        if missing := [role for role in ROLES if role not in found]:
            raise UserError(f"{folder / name}: the file {missing[0]}.t of this set is missing; give all four.")
    return [CodeSet(name, found) for (_, name), found in sets.items()]


def _role(path: Path) -> str | None:
    if path.suffix not in SUFFIXES:
        return None
    return next((role for role in ROLES if path.stem == role or path.stem.endswith(f"-{role}")), None)


def load_code_set(code_set: CodeSet) -> list[torch.Tensor]:
    """The tensors of the `ROLES`, as `utils.evaluation_input.checked` takes them.

    Raises:
        UserError: a file is damaged, or does not hold such an array.
    """
    return [read_array(code_set.files[role]) for role in ROLES]


def read_array(file: CodeFile) -> torch.Tensor:
    """The array of a file saved by torch, numpy (npy, npz) or Matlab (mat, up to version 7).

    An npz file of `python -m search encode` gives its codes as −1 and +1, int8 [n, K]. Nothing is unpickled that could
    run code.

    Raises:
        UserError: the file is missing or damaged, or it holds several arrays and none of them is named.
    """
    path = file.path
    if not path.is_file():
        raise UserError(f"{path}: there is no such file.")
    if path.suffix not in (".npy", ".npz", ".mat"):
        tensor = load_tensors(path, "a tensor")
        if not isinstance(tensor, torch.Tensor):
            raise UserError(f"{path}: holds a {type(tensor).__name__}, not a tensor.")
        return tensor
    arrays = _read_mat(path) if path.suffix == ".mat" else _read_numpy(path, path)
    if file.array is None and {"codes", "code_length"} <= arrays.keys():
        codes, length = arrays["codes"], arrays["code_length"]
        if codes.dtype != np.uint8 or codes.ndim != 2 or length.dtype.kind != "i" or length.ndim:
            raise UserError(f"{path}: not a file of `python -m search encode`; name one of its arrays.")
        return torch.from_numpy(2 * np.unpackbits(codes, axis=1, count=int(length)).astype(np.int8) - 1)
    name = next(iter(arrays)) if file.array is None and len(arrays) == 1 else file.array
    if name not in arrays:
        raise UserError(f"{path}: name one of its arrays, such as {path}:{next(iter(arrays), '')} ({_some(arrays)}).")
    array = arrays[name]
    if array.dtype.kind not in "biuf":
        raise UserError(f"{path}: the array {name} holds no numbers ({array.dtype}).")
    return torch.from_numpy(np.ascontiguousarray(array))


def _read_numpy(file: Path | io.BytesIO, path: Path) -> dict[str, np.ndarray]:
    try:
        content = np.load(file, allow_pickle=False)
        return {"": content} if isinstance(content, np.ndarray) else dict(content)
    except Exception as error:  # numpy and zipfile raise many types here
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: damaged, or not saved by numpy without pickled objects ({reason}).") from error


def _read_mat(path: Path) -> dict[str, np.ndarray]:
    command = [sys.executable, "-m", "reports.read_mat", str(path.resolve())]
    done = subprocess.run(command, capture_output=True, cwd=Path(__file__).parents[1])
    if done.returncode == IS_HDF5:
        raise UserError(f"{path}: is a version 7.3 file, which is HDF5; save it in Matlab with -v7.")
    if done.returncode:
        raise UserError(f"{path}: damaged, or not a mat file; save it again in Matlab with -v7.")
    return _read_numpy(io.BytesIO(done.stdout), path)


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
