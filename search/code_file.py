"""The file of codes that `python -m search encode` writes (docs/encode.md): an npz archive."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from search.model import TrainedModel

_BYTES_AT_ONCE = 1 << 18


def request_key(trained: TrainedModel, names: Iterable[str]) -> str:
    """SHA-256, 64 hexadecimal digits, of a model and of the names of all images that it is to hash."""
    digest = hashlib.sha256(model_key(trained).encode())
    for name in names:
        digest.update(name.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def model_key(trained: TrainedModel) -> str:
    """SHA-256, 64 hexadecimal digits, of the weights and of the settings that an image's code depends on besides."""
    return hashlib.sha256(f"{trained.fingerprint}\n{json.dumps(trained.summary)}".encode()).hexdigest()


def write_codes(
    file: IO[bytes],
    names: Callable[[], Iterable[Sequence[str]]],
    codes: Iterable[np.ndarray],
    trained: TrainedModel,
    request: str,
) -> None:
    """Write the npz: the same content gives the same bytes, however it is cut into blocks.

    Args:
        file: what to write to.
        names: called twice; gives the n names in blocks, of which only one is made an array at a time.
        codes: packed, uint8 [N, ceil(K/8)] each, n in all; only one is in memory at a time.
        trained: what made the codes.
        request: of `request_key`.
    """
    count, longest = 0, 1
    for block in names():
        count += len(block)
        longest = max([longest, *map(len, block)])
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        _write_array(archive, "codes", np.dtype(np.uint8), (count, -(-trained.code_length // 8)), codes)
        # Every name takes as many characters as the longest: a million of them at once would fill the memory.
        dtype = np.dtype(f"<U{longest}")
        _write_array(archive, "names", dtype, (count,), (np.array(block, dtype=dtype) for block in names()))
        for name, value in (
            ("code_length", trained.code_length),
            ("settings", json.dumps(trained.summary)),
            ("fingerprint", trained.fingerprint),
            ("request", request),
        ):
            array = np.array(value)
            _write_array(archive, name, array.dtype, (), [array])


def _write_array(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], parts: Iterable[np.ndarray]
) -> None:
    info = zipfile.ZipInfo(f"{name}.npy")  # its time is a constant
    info.compress_type = zipfile.ZIP_DEFLATED
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(info, "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        # The compressor is not bound to give the same bytes for the same content in other pieces.
        waiting = bytearray()
        for part in parts:
            waiting += part.tobytes()
            while len(waiting) >= _BYTES_AT_ONCE:
                member.write(bytes(waiting[:_BYTES_AT_ONCE]))
                del waiting[:_BYTES_AT_ONCE]
        member.write(bytes(waiting))


def num_codes(path: Path, request: str) -> int | None:
    """How many codes a finished file has; None where there is none, or it is of another request."""
    try:
        with np.load(path, allow_pickle=False) as content:
            return len(content["codes"]) if str(content["request"]) == request else None
    except Exception:  # missing, damaged, without a request: numpy and zipfile raise many kinds here
        return None
