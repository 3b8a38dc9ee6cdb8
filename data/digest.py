"""One number that tells whether a run meets the same data again."""

from __future__ import annotations

import hashlib

from data.image_dataset import ImageDataset, Split

_ENTRIES = 2**24  # of the labels, hashed at once


def data_digest(split: Split) -> str:
    """SHA-256 (hexadecimal) of the names and labels of the queries, the database and the other parts, in order.

    Where the images have no names, their numbers in the source take their place. The pixels are not part of it.
    """
    digest = hashlib.sha256()
    for part in (split.query, split.database, split.validation, split.separate):
        digest.update(b"no such part\n" if part is None else f"{len(part)} {part.labels.shape[1]}\n".encode())
        if part is not None:
            _add(digest, part)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, part: ImageDataset) -> None:
    names = part.paths
    for name in part.rows.tolist() if names is None else names:
        digest.update(f"{name}\0".encode("utf-8", "surrogateescape"))
    for labels in part.labels.split(max(1, _ENTRIES // part.labels.shape[1])):
        digest.update((labels > 0).numpy().tobytes())
