"""Encode images into a search index."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from search.backends import EXACT, build_structure, default_backend, require_faiss
from search.encode import Encoding, find_images
from search.encode_job import Job, encode_to_file, places_of
from search.index import Index
from search.index_files import require_index_place
from search.model import load_model
from utils.errors import UserError
from utils.files import Locked, locked


def build(
    run: str, images: Sequence[str], folder: Path, encoding: Encoding, code_length: int | None, backend: str
) -> tuple[Index, int]:
    """Encode images and write an index; the same call continues after a kill (`encode_to_file`).

    Args:
        run: the folder of a run or an export; its weights are stored in the index without a change.
        images: as for `find_images`.
        folder: the index; an old index there is replaced.
        encoding: how to encode.
        code_length: K, where the run has models of several lengths; otherwise None.
        backend: the structure of ``ivf`` or ``multihash`` is stored in the index; ``auto``: by the number of codes.

    Returns:
        The index, and the number of images left out.

    Raises:
        UserError: no image, no model, no readable image, another process builds the same index, or `folder` is not an
            index or cannot be written.
    """
    require_index_place(folder)
    if backend not in ("auto", "numpy"):
        require_faiss(backend)
    lock = folder.with_name(f".{folder.name}.lock")
    try:
        with locked(lock):  # of two builds, one would store its codes with the model of the other
            try:
                return _build(run, images, folder, encoding, code_length, backend)
            finally:
                lock.unlink(missing_ok=True)  # while it is held
    except Locked:
        raise UserError(f"{folder}: another process builds this index; wait for it or name another folder.") from None


def _build(
    run: str, images: Sequence[str], folder: Path, encoding: Encoding, code_length: int | None, backend: str
) -> tuple[Index, int]:
    """`build`, while no other process builds the same index."""
    sources, base = find_sources(images)
    trained = load_model(run, code_length)
    paths = [path for path, _, _ in sources]
    codes_file = folder.with_name(f".{folder.name}.codes.npz")
    _, skipped = encode_to_file(Job(trained, paths, codes_file, encoding))
    try:
        with np.load(codes_file, allow_pickle=False) as content:
            codes, seen = content["codes"], content["names"].tolist()
        kept = [sources[place] for place in places_of(seen, paths)]
        names, labels = [name for _, name, _ in kept], [label for _, _, label in kept]
        index = Index(
            codes,
            names,
            labels if any(labels) else None,
            trained.code_length,
            trained.settings,
            trained.fingerprint,
            images=base,
        )
        kind = default_backend(len(index)) if backend == "auto" else backend
        structure = (kind, build_structure(kind, codes)) if kind not in EXACT else None
        index.save(folder, trained, structure)
    finally:
        codes_file.unlink(missing_ok=True)
    return index, skipped


def find_sources(inputs: Sequence[str]) -> tuple[list[tuple[str, str, str]], Path]:
    """The images that `inputs` name, as for `find_images`, and the folder that their names are relative to.

    Each is (path that can be opened from here, name in the index, label). With a single folder, names are relative to
    it; otherwise they are the paths as given, relative to the current folder. The label is the first folder below an
    input folder; "" for images directly in it, for files and for lists.
    """
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
