"""What the evaluation accepts as codes and labels, and how it reads them (docs/evaluation.md)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch

from utils.hamming import Matrices, to_numpy

Array = torch.Tensor | np.ndarray
NAMES = ("query_code", "database_code", "query_labels", "database_labels")


def checked(query_code: Array, database_code: Array, query_labels: Array, database_labels: Array) -> Matrices:
    """The four inputs on the CPU, in the one form that `utils.hamming` counts.

    Args:
        query_code, database_code: [Q, K] and [D, K] of −1 and +1, or of 0 and 1; a row of zeros in a matrix with −1 was
            never encoded.
        query_labels, database_labels: [Q, C] and [D, C] multi-hot, or class numbers: [Q] and [D], or one column each.

    Warns:
        UserWarning: codes of 0 and 1 (bool, unsigned, or no −1 in them) are read as bits, 0 for −1; labels of one
            column are read as class numbers.

    Raises:
        ValueError: the shapes do not fit together, or a value is none of these.
    """
    codes = _checked_codes(query_code, database_code)
    labels = _checked_labels(query_labels, database_labels)
    if codes[0].shape[1] != codes[1].shape[1]:
        raise ValueError(
            f"The code length of queries ({codes[0].shape[1]}) and database ({codes[1].shape[1]}) differs."
        )
    for what, code, label in zip(("query", "database"), codes, labels, strict=True):
        if len(code) != len(label):
            raise ValueError(f"{len(code)} {what} codes but {len(label)} rows of {what} labels.")
    return Matrices(*codes, *labels)


def chunks(tensor: torch.Tensor) -> Iterator[np.ndarray]:
    """The rows of a matrix as arrays of about 2¹⁸ numbers."""
    return (to_numpy(rows) for rows in tensor.split(max(1, (1 << 18) // tensor.shape[1])))


# ---- Codes ----


def _checked_codes(*arrays: Array) -> list[torch.Tensor]:
    codes = [_matrix(array, name) for array, name in zip(arrays, NAMES[:2], strict=True)]
    for code, name in zip(codes, NAMES[:2], strict=True):
        rule = "hold only -1, 0 and +1; take the sign of the network's output first."
        _require(code, name, np.sign, rule)
    negative = [any((rows < 0).any() for rows in chunks(code)) for code in codes]
    partial = [any(_zero_in_part(rows).any() for rows in chunks(code)) for code in codes]
    bits = [
        not minus and (part or not code.dtype.is_signed)
        for minus, part, code in zip(negative, partial, codes, strict=True)
    ]
    for i, name in enumerate(NAMES[:2]):
        if negative[i] and partial[i]:
            raise ValueError(
                f"{name} has rows with both 0 and -1; 0 stands for an item that was never encoded, so a row must be "
                "0 in all bits or in none."
            )
        if any(bits) and not negative[i]:
            codes[i] = 2 * codes[i].to(torch.int8) - 1
    if any(bits):
        which = " and ".join(name for name, minus in zip(NAMES[:2], negative, strict=True) if not minus)
        warnings.warn(f"{which} without -1: read as bits, 0 as -1 and 1 as +1.", stacklevel=4)
    return codes


def _zero_in_part(rows: np.ndarray) -> np.ndarray:
    zeros = rows == 0
    return zeros.any(axis=1) & ~zeros.all(axis=1)


# ---- Labels ----


def _checked_labels(*arrays: Array) -> list[torch.Tensor]:
    labels = [_tensor(array, name) for array, name in zip(arrays, NAMES[2:], strict=True)]
    numbers = [label.ndim == 1 or (label.ndim == 2 and label.shape[1] == 1) for label in labels]
    if any(numbers) and not all(numbers):
        raise ValueError(
            f"{NAMES[2 + numbers.index(True)]} are class numbers and {NAMES[2 + numbers.index(False)]} are not; "
            "give both as class numbers or both as multi-hot rows."
        )
    if all(numbers):
        if any(label.ndim == 2 for label in labels):
            warnings.warn("labels of one column: read as class numbers, not as multi-hot rows.", stacklevel=4)
        return _renumbered([label.flatten() for label in labels])
    labels = [_matrix(label, name) for label, name in zip(labels, NAMES[2:], strict=True)]
    for label, name in zip(labels, NAMES[2:], strict=True):
        _require(label, name, np.square, "be multi-hot, only 0 and 1, or one class number per item.")
    if labels[0].shape[1] != labels[1].shape[1]:
        counts = f"{labels[0].shape[1]}) and database ({labels[1].shape[1]}"
        raise ValueError(f"The number of classes of queries ({counts}) differs.")
    return labels


def _renumbered(labels: list[torch.Tensor]) -> list[torch.Tensor]:
    """The same classes as numbers from 0 on, int64, however large the given ones are."""
    arrays = [to_numpy(label) for label in labels]
    for array, name in zip(arrays, NAMES[2:], strict=True):
        if not len(array) or not ((array >= 0) & (array == np.floor(array))).all():
            raise ValueError(f"{name} must hold a class number for each item: whole numbers, 0 or more.")
    _, numbers = np.unique(np.concatenate(arrays), return_inverse=True)
    return list(torch.from_numpy(numbers).split([len(array) for array in arrays]))


# ---- Both ----


def _tensor(array: Array, name: str) -> torch.Tensor:
    tensor = torch.as_tensor(array).detach()
    if tensor.layout != torch.strided:
        raise ValueError(f"{name} is sparse; give a dense tensor (to_dense).")
    return tensor.cpu()


def _matrix(array: Array, name: str) -> torch.Tensor:
    tensor = _tensor(array, name)
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise ValueError(f"{name} must be a matrix with one row per item, not of shape {tuple(tensor.shape)}.")
    return tensor


def _require(matrix: torch.Tensor, name: str, unchanged: Callable[..., np.ndarray], rule: str) -> None:
    """`unchanged` must not change the numbers, which breaks the `rule`."""
    if not all(np.array_equal(unchanged(rows), rows) for rows in chunks(matrix)):
        raise ValueError(f"{name} must {rule}")
