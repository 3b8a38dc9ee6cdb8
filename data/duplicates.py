"""Images that are both query and database: they make a retrieval figure look better than it is."""

from __future__ import annotations

import hashlib
import logging

from data.image_dataset import ImageDataset, Split
from data.parallel import in_parallel

logger = logging.getLogger(__name__)

_NAMED = 10


def content_hashes(dataset: ImageDataset, threads: int) -> list[bytes]:
    """A hash of each image's content: of its file where there are files, of its pixels otherwise."""
    source = dataset.source

    def digest(row: int) -> bytes:
        if source.root is None or source.names is None:
            return hashlib.blake2b(source.image(row).numpy().tobytes(), digest_size=16).digest()
        content = (source.root / source.names[row]).read_bytes()
        return hashlib.blake2b(content, digest_size=16).digest()

    rows = dataset.rows.tolist()
    return list(in_parallel(digest, rows, threads=threads, count=len(rows), bar="Comparing images"))


def find_duplicates(split: Split, threads: int = 1) -> list[tuple[int, int]]:
    """Pairs (query, database) of images with the same content, the first such database image of each query."""
    first: dict[bytes, int] = {}
    for row, key in enumerate(content_hashes(split.database, threads)):
        first.setdefault(key, row)
    queries = enumerate(content_hashes(split.query, threads))
    return [(row, first[key]) for row, key in queries if key in first]


def report_duplicates(split: Split, threads: int = 1) -> list[tuple[int, int]]:
    """`find_duplicates`, said in the log: how many queries, the first ten by name."""
    pairs = find_duplicates(split, threads)
    if not pairs:
        logger.info("%s: no image is both query and database", split.name)
        return pairs
    query, database = split.query.paths, split.database.paths
    shown = ", ".join(
        f"{query[one] if query else f'query {one}'} = {database[other] if database else f'database {other}'}"
        for one, other in pairs[:_NAMED]
    )
    logger.warning(
        "%s: %d of %d queries are in the database too: %s%s",
        split.name,
        len(pairs),
        len(split.query),
        shown,
        f" and {len(pairs) - _NAMED} more" if len(pairs) > _NAMED else "",
    )
    return pairs
