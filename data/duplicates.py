"""Images that are both query and database; they make retrieval metrics look better than they are."""

from __future__ import annotations

import hashlib
import os

from data.image_dataset import ImageDataset, Split
from data.parallel import in_parallel
from utils.log import log

_NAMED = 10  # duplicates that the log names; it counts the others


def content_hashes(dataset: ImageDataset, threads: int) -> list[bytes]:
    """A hash of the content of each image: of its file where there are files, otherwise of its pixels."""
    files = dataset.source.files

    def digest(row: int) -> bytes:
        if files is None:
            content = dataset.source.image(row).numpy().tobytes()
        else:
            content = (files.root / files.names[row]).read_bytes()
        return hashlib.blake2b(content, digest_size=16).digest()

    rows = dataset.rows.tolist()
    return list(in_parallel(digest, rows, threads=threads, count=len(rows), bar="Comparing images"))


def find_duplicates(split: Split, threads: int = 1) -> list[tuple[int, int]]:
    """Pairs (query, database) of positions of images with the same content; of each query the first such image."""
    first: dict[bytes, int] = {}
    for row, key in enumerate(content_hashes(split.database, threads)):
        first.setdefault(key, row)
    queries = enumerate(content_hashes(split.query, threads))
    return [(row, first[key]) for row, key in queries if key in first]


def report_shared_names(split: Split) -> None:
    """Warn of queries that are in the database or the training pool under the same name, and name the first ten."""
    queries = split.query.paths
    for what, part in (("the database", split.database), ("the training pool", split.separate)):
        names = None if part is None else part.paths
        if queries is None or names is None:
            continue
        listed = set(map(os.path.normpath, names))
        shared = [name for name in queries if os.path.normpath(name) in listed]
        if shared:
            counts = f"{len(shared)} of {len(queries)} queries are in {what} too"
            more = f" and {len(shared) - _NAMED} more" if len(shared) > _NAMED else ""
            log.warning(
                "%s: %s, so that the metrics are too good: %s%s", split.name, counts, ", ".join(shared[:_NAMED]), more
            )


def report_duplicates(split: Split, threads: int) -> None:
    """Log how many queries are in the database too, and the first ten by name."""
    pairs = find_duplicates(split, threads)
    if not pairs:
        log.info("%s: no image is both query and database", split.name)
        return
    query, database = split.query.paths, split.database.paths
    shown = ", ".join(
        f"{query[one] if query else f'query {one}'} = {database[other] if database else f'database {other}'}"
        for one, other in pairs[:_NAMED]
    )
    more = f" and {len(pairs) - _NAMED} more" if len(pairs) > _NAMED else ""
    counts = f"{len(pairs)} of {len(split.query)} queries are in the database too"
    log.warning("%s: %s: %s%s", split.name, counts, shown, more)
