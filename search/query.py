"""`python -m search query`: search a store for images (docs/search.md)."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from textwrap import indent
from typing import Any

from tabulate import tabulate

from data.image_paths import find_images
from search.encode import encode_all
from search.exact import Neighbours
from search.store import Store, default_probes
from utils.errors import UserError
from utils.log import printable

Found = Sequence[tuple[str, Neighbours]]  # the paths of queries, and what was found for them


def query(options: argparse.Namespace, store: Store) -> None:
    """Search and print, as the flags say. UserError: a flag is wrong, or no image can be read."""
    if options.exact and options.probes is not None:
        raise UserError("--exact, --probes: give only one of them.")
    if options.figure is not None:
        from plots.style import require_figure  # matplotlib takes a second, which the other queries need not wait

        require_figure(options.figure, "--figure")
    if options.label and options.label not in (labels := store.labels()):  # "": the images without one
        raise UserError(f"--label {options.label}: no image has this label; they are {', '.join(labels[:20])}.")
    paths, codes, unreadable = encode_all(store.model(options.device), find_images(options.images), options.encoding)
    results = store.search(codes, options.k, options.radius, options.label, options.exact, options.probes)
    found = list(zip(paths, results, strict=True))
    lists = store.lists() or 0  # 0: all codes are compared
    is_exact = options.exact or (options.probes or default_probes(lists)) >= lists
    if options.json:
        about: dict[str, Any] = {"store": store.uri, "images": len(store), "code_length": store.code_length}
        about |= {"fingerprint": store.fingerprint, "exact": is_exact, "queries": []}
        names = ("row", "distance", "name", "label", "path")
        for path, near in found:
            neighbours = [dict(zip(names, (*one, str(store.path_of(one[2]))), strict=True)) for one in near]
            about["queries"].append({"image": path, "neighbours": neighbours})
        about["unreadable"] = [{"image": path, "reason": reason} for path, reason in unreadable]
        print(json.dumps(about, indent=1))
    else:
        print(as_text(found))
        if not is_exact:
            print("\nSearched with an index, which may miss neighbours; --exact misses none.")
    if options.figure is not None:
        _draw(options.figure, store, found, options.max_pixels)


def as_text(found: Found) -> str:
    """A table of neighbours for each query."""
    texts = []
    for path, near in found:
        rows = [(bits, printable(label), printable(name)) for _, bits, name, label in near]
        columns, ranks = ["rank", "distance", "label", "name"], range(1, len(rows) + 1)
        lines = tabulate(rows, columns, tablefmt="plain", showindex=ranks, disable_numparse=True)
        texts.append(f"{printable(path)}\n{indent(lines if rows else 'nothing found', '  ')}")
    return "\n\n".join(texts)


def _draw(path: Path, store: Store, found: Found, most_pixels: int) -> None:
    """Draw queries and their neighbours."""
    from plots.file_gallery import draw_files  # imports torch

    shown = []
    for query_path, near in found:
        texts = [printable(label or os.path.basename(name)) for _, _, name, label in near]
        tiles = zip(map(store.path_of, near.names), near.distances.tolist(), texts, strict=True)
        shown.append((query_path, list(tiles)))
    draw_files(path, shown, most_pixels)
