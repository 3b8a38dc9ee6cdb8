"""Ways to search an index: our exact search, and those of faiss if it is installed (docs/search.md).

``numpy`` is `Index.search`; ``flat``, ``ivf`` and ``multihash`` are IndexBinaryFlat, IndexBinaryIVF and
IndexBinaryMultiHash of faiss (https://github.com/facebookresearch/faiss/wiki/Binary-indexes). All sort by (distance,
row). faiss breaks ties in another way, so all codes that tie at the cut are fetched.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from search.exact import Rows
from search.index import Index
from search.index_files import FAISS, REBUILD, check_file, read_description
from utils.errors import UserError

BACKENDS = ("numpy", "flat", "ivf", "multihash")
EXACT = ("numpy", "flat")

MOST_FOR_EXACT = 50_000_000  # codes; to compare more takes one thread more than 0.05 s per query
_LEAST_KEY_BITS = 16
_MORE = 32  # fetched beyond k, so that most ties at the cut are complete at once
_TRAINING_CODES = 40  # for each centre; faiss warns below 39
_SEED = 1


class NumpyBackend:
    """`Index.search`."""

    name = "numpy"

    def __init__(self, index: Index) -> None:
        self.search = index.search

    def is_exact(self, radius: int | None) -> bool:
        """Whether a search misses nothing."""
        return True


class FaissBackend:
    """A faiss index over the codes of an index, in their order (`build_structure`).

    Args:
        nprobe: lists that a query reads (ivf); None: one in 32, at least 8.
        nflip: bits flipped in each key (multihash); None: 1, and within a radius as many as make the result exact.
    """

    def __init__(
        self, index: Index, name: str, structure: Any, nprobe: int | None = None, nflip: int | None = None
    ) -> None:
        self.index, self.name, self.structure, self.nflip = index, name, structure, nflip
        if name == "ivf":
            self.nprobe = min(nprobe or max(8, structure.nlist // 32), structure.nlist)

    def is_exact(self, radius: int | None) -> bool:
        """Whether a search within `radius` bits, or without a radius, misses nothing."""
        if self.name == "multihash":
            return radius is not None and self._flips(radius) >= min(radius // self.structure.nhash, self.structure.b)
        return self.name == "flat" or self.nprobe == self.structure.nlist

    def search(
        self, query_codes: npt.ArrayLike, k: int | None = None, radius: int | None = None
    ) -> list[tuple[Rows, Rows]]:
        """As `Index.search`; an approximate search may miss codes, but its distances are correct."""
        queries, most, limit = self.index.checked(query_codes, k, radius)
        queries = np.ascontiguousarray(queries)
        if self.name == "ivf":
            self.structure.nprobe = self.nprobe
        elif self.name == "multihash":
            self.structure.nflip = self._flips(radius)
        if radius is not None or most == len(self.index):
            return [first(*self._within(query, limit), most) for query in queries]
        fetched = min(most + _MORE, len(self.index))
        distances, rows = self.structure.search(queries, fetched)
        results = []
        for query, distance, row in zip(queries, distances, rows, strict=True):
            found = row >= 0  # -1: no further result
            near = row[found], distance[found]
            if found.all() and fetched < len(self.index) and distance[-1] == distance[most - 1]:
                near = self._within(query, int(distance[-1]))  # more ties than were fetched
            results.append(first(*near, most))
        return results

    def _within(self, query: npt.NDArray[np.uint8], radius: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Rows and distances of all codes found at distance ≤ radius, in no particular order."""
        _, distances, rows = self.structure.range_search(query[None], radius + 1)  # the limit of faiss is exclusive
        return rows, distances

    def _flips(self, radius: int | None) -> int:
        """Bits to flip in each key: of r different bits, one of the nhash pieces has at most ⌊r / nhash⌋."""
        if self.nflip is not None:
            return self.nflip
        flips = 1 if radius is None else radius // self.structure.nhash
        return min(flips, self.structure.b)


Backend = NumpyBackend | FaissBackend


def first(rows: npt.NDArray[Any], distances: npt.NDArray[Any], k: int) -> tuple[Rows, Rows]:
    """The first k by (distance, row)."""
    order = np.lexsort((rows, distances))[:k]
    return rows[order].astype(np.int64), distances[order].astype(np.int64)


def default_backend(count: int) -> str:
    """``ivf`` for more than `MOST_FOR_EXACT` codes if faiss is installed; otherwise ``numpy``, as fast as ``flat``."""
    return "ivf" if count > MOST_FOR_EXACT and has_faiss() else "numpy"


def has_faiss() -> bool:
    """Whether faiss is installed."""
    return importlib.util.find_spec("faiss") is not None


def open_backend(index: Index, name: str = "auto", nprobe: int | None = None, nflip: int | None = None) -> Backend:
    """One of `BACKENDS`; "auto": the one stored in the index, otherwise `default_backend`.

    A structure of faiss that is stored in the index is read; any other is built from the codes. `nprobe` and `nflip`
    are those of `FaissBackend`.

    Raises:
        UserError: an unknown name, faiss is not installed, or the stored structure is damaged.
    """
    if name not in ("auto", *BACKENDS):
        raise UserError(f"--backend {name}: must be one of auto, {', '.join(BACKENDS)}.")
    stored = None if index.folder is None else read_description(index.folder)["files"].get(FAISS)
    if name == "auto":
        name = stored["kind"] if stored is not None and has_faiss() else default_backend(len(index))
    if name == "numpy":
        return NumpyBackend(index)
    require_faiss(name)
    if stored is not None and stored["kind"] == name:
        assert index.folder is not None
        check_file(index.folder, FAISS, stored)
        import faiss  # optional: requirements-search.txt

        structure = faiss.read_index_binary(str(index.folder / FAISS))
        if structure.ntotal != len(index) or structure.d != 8 * index.codes.shape[1]:
            raise UserError(f"{index.folder / FAISS}: belongs to other codes; {REBUILD}.")
    else:
        structure = build_structure(name, index.codes)
    return FaissBackend(index, name, structure, nprobe, nflip)


def require_faiss(name: str) -> None:
    """UserError if faiss is not installed."""
    if not has_faiss():
        raise UserError(
            f"--backend {name}: needs faiss (pip install -r requirements-search.txt); or use --backend numpy."
        )


def build_structure(
    name: str, codes: npt.NDArray[np.uint8], nlist: int | None = None, tables: tuple[int, int] | None = None
) -> Any:
    """A faiss binary index, ``flat``, ``ivf`` or ``multihash``, over packed codes uint8 [n, bytes].

    Args:
        nlist: centres (ivf); None: `default_nlist`. They are learned from 40 codes each, drawn with a fixed seed.
        tables: their number and the bits of a key (multihash); None: `default_tables`.
    """
    import faiss  # optional: requirements-search.txt

    codes = np.ascontiguousarray(codes)
    width = 8 * codes.shape[1]
    structure: Any
    if name == "flat":
        structure = faiss.IndexBinaryFlat(width)
    elif name == "ivf":
        nlist = min(nlist or default_nlist(len(codes)), len(codes))
        quantizer: Any = faiss.IndexBinaryFlat(width)
        structure = faiss.IndexBinaryIVF(quantizer, width, nlist)
        quantizer.this.disown()  # the index owns it and frees it
        structure.own_fields = True
        structure.cp.seed = _SEED
        structure.cp.min_points_per_centroid = 1  # no warning on stderr for few codes
        number = min(len(codes), _TRAINING_CODES * nlist)
        chosen = np.sort(np.random.default_rng(_SEED).choice(len(codes), number, replace=False))
        structure.train(codes[chosen])
    else:
        structure = faiss.IndexBinaryMultiHash(width, *(tables or default_tables(len(codes), width)))
    structure.add(codes)
    return structure


def default_nlist(count: int) -> int:
    """Centres for n ≥ 1 codes: the largest power of two up to √n, so that a list has about as many codes."""
    return 1 << (math.isqrt(count).bit_length() - 1)


def default_tables(count: int, width: int) -> tuple[int, int]:
    """(tables, bits of a key) for n ≥ 1 codes of `width` bits; the keys do not overlap and cover almost all bits.

    Keys have 16 to 64 bits (the limit of faiss), so that a key has eight codes on average.
    """
    tables = max(1, width // max(_LEAST_KEY_BITS, count.bit_length() - 4))
    return tables, min(width // tables, 64)
