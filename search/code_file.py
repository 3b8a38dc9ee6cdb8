"""The npz file that `python -m search encode` writes (docs/encode.md)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from data.decode import DECODING
from search.model import TrainedModel


def request_key(trained: TrainedModel, names: Iterable[str]) -> str:
    """SHA-256 (hexadecimal) of a model and the names of all images that it has to encode."""
    digest = hashlib.sha256(model_key(trained).encode())
    for name in names:
        digest.update(name.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def model_key(trained: TrainedModel) -> str:
    """SHA-256 (hexadecimal) of what the code of an image depends on: weights, settings and how files are decoded."""
    return hashlib.sha256(f"{trained.fingerprint}\n{json.dumps(trained.settings)}\n{DECODING}".encode()).hexdigest()


def write_codes(file: IO[bytes], names: Sequence[str], codes: np.ndarray, trained: TrainedModel, request: str) -> None:
    """Write n names and codes, uint8 [n, ceil(K/8)], of a model for a request (`request_key`).

    The same content gives the same bytes, since numpy gives every member of the archive a constant date.
    """
    np.savez_compressed(
        file,
        codes=codes,
        names=np.array(names),
        code_length=np.array(trained.code_length),
        settings=np.array(json.dumps(trained.settings)),
        fingerprint=np.array(trained.fingerprint),
        request=np.array(request),
    )


def num_codes(path: Path, request: str) -> int | None:
    """The number of codes in a finished file; None if there is none, or it belongs to another request."""
    try:
        with np.load(path, allow_pickle=False) as content:
            return len(content["codes"]) if str(content["request"]) == request else None
    except Exception:  # missing, damaged, without a request: numpy and zipfile raise many types here
        return None
