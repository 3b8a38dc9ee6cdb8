"""Hash a folder of images into a search index."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from search.backends import EXACT, build_structure, default_backend, require_faiss
from search.encode_command import encode_to_file, find_images
from search.index import Index
from search.index_files import require_index_place
from search.model import load_model


def build(
    run: str | Path,
    images: Iterable[str],
    folder: Path,
    *,
    code_length: int | None = None,
    batch_size: int = 64,
    device: Any = "cpu",
    num_workers: int = 0,
    backend: str = "auto",
) -> tuple[Index, int]:
    """Hash images and write an index. Returns (index, images left out); those are named on stderr.

    The codes are made in parts beside `folder`, so that the same command goes on after a kill
    (`search.encode_command.encode_to_file`).

    Args:
        run: a run's folder or an export; its weights are kept in the index as they are.
        images: files, folders, lists, as for `search.encode_command.find_images`.
        folder: the index; one that is there is replaced.
        code_length: K, where the run has models of several.
        batch_size, device, num_workers: as for `search.encode.encode_files`.
        backend: ``ivf`` and ``multihash`` are stored with the index; ``auto`` chooses by the number of codes.

    Raises:
        UserError: no image, no such model, none readable, `folder` is something else, or cannot be written.
    """
    require_index_place(folder)
    if backend not in ("auto", "numpy"):
        require_faiss(backend)
    sources, base = find_sources(images)
    trained = load_model(run, code_length)
    codes_file = folder.with_name(f".{folder.name}.codes.npz")
    paths = [path for path, _, _ in sources]
    _, skipped = encode_to_file(
        trained, paths, codes_file, batch_size=batch_size, device=device, num_workers=num_workers
    )
    try:
        with np.load(codes_file, allow_pickle=False) as content:
            codes, seen = content["codes"], content["names"].tolist()
        kept = list(_of_names(sources, seen))
        labels = [label for _, _, label in kept]
        index = Index(
            codes,
            [name for _, name, _ in kept],
            labels if any(labels) else None,
            trained.code_length,
            trained.summary,
            trained.fingerprint,
            images=base,
        )
        kind = default_backend(len(index)) if backend == "auto" else backend
        structure = (kind, build_structure(kind, codes)) if kind not in EXACT else None
        index.save(folder, trained, structure)
    finally:
        codes_file.unlink(missing_ok=True)
    return index, skipped


def find_sources(inputs: Iterable[str]) -> tuple[list[tuple[str, str, str]], Path]:
    """The images that `inputs` stand for: (path that opens from here, name in the index, label), and the names' base.

    Of a single folder the names are relative to it; else they are the paths as given, relative to the current folder.
    The label is the first folder below an input folder, "" for images that lie directly in it, for files and lists.
    """
    inputs = list(inputs)
    alone = len(inputs) == 1 and os.path.isdir(inputs[0])
    sources = []
    for given in inputs:
        for path in find_images([given]):
            label = ""
            inside = path
            if os.path.isdir(given):
                inside = os.path.relpath(path, given)
                label = inside.split(os.sep)[0] if os.sep in inside else ""
            sources.append((path, inside if alone else path, label))
    return sources, Path(inputs[0]).resolve() if alone else Path.cwd()


def _of_names(sources: Iterable[tuple[str, str, str]], names: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """The sources whose paths are `names`, a subsequence of theirs."""
    rest = iter(sources)
    for name in names:
        yield next(source for source in rest if source[0] == name)
