"""A collection's packed codes in one folder, with names and the model that made them, and exact search by distance.

The folder holds (docs/search.md):

    index.json    version, counts, settings, fingerprint of the model, sizes and SHA-256 of the other files, its own
    codes.npy     uint8 [n, ceil(K/8)], bits in the order of `np.packbits`
    names.bin     n names in UTF-8, a zero byte after each
    labels.bin    n labels in the same form, where there are any
    model.pt      the network (`write_model`), so that a query needs nothing else
    faiss.bin     a search structure of faiss, where one was asked for (`utils.search_backends`)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch

from .errors import UserError
from .trained import EXPORT_FORMAT, TrainedModel, load_model

FORMAT = "schn-index-1"
DEFAULT_K = 10

DESCRIPTION, CODES, NAMES, LABELS, MODEL, FAISS = (
    "index.json",
    "codes.npy",
    "names.bin",
    "labels.bin",
    "model.pt",
    "faiss.bin",
)
_ROWS_AT_ONCE = 1 << 16  # what a query looks at together stays in the processor's cache
_REBUILD = "build the index again"

Rows = npt.NDArray[np.int64]


@dataclass
class Index:
    """The codes of n images, and whose they are.

    Attributes:
        codes: uint8 [n, ceil(K/8)]; bit k of a code is bit 7 - k % 8 of byte k // 8, bits behind K are 0. Of a loaded
            index a read-only `np.memmap`.
        names: n file names, absolute or relative to `images`.
        labels: n names of class folders, "" where there was none; None: nowhere.
        code_length: K.
        settings: `TrainedModel.summary` of the model that made the codes.
        fingerprint: of that model's weights (`utils.trained.fingerprint`).
        folder: where the index was loaded from or saved to; None: nowhere yet.
        images: the folder that relative names start from; None: the current one.
    """

    codes: npt.NDArray[np.uint8]
    names: Sequence[str]
    labels: Sequence[str] | None
    code_length: int
    settings: dict[str, Any]
    fingerprint: str
    folder: Path | None = None
    images: Path | None = None
    _words: list[np.ndarray] | None = field(default=None, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.codes)

    @classmethod
    def load(cls, folder: str | Path) -> Index:
        """Read an index that `save` wrote; the codes stay on the disk until they are searched.

        Raises:
            UserError: it is no index, of another version, truncated, or changed since it was written.
        """
        folder = Path(folder)
        description = _read_description(folder)
        files = description["files"]
        for name in (CODES, NAMES, LABELS):
            if name in files:
                check_file(folder, name, files[name])
        count, code_length = description["count"], description["code_length"]
        try:
            codes = np.load(folder / CODES, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{folder / CODES}: holds no array of codes ({error}); {_REBUILD}.") from error
        names = _read_strings(folder / NAMES)
        labels = _read_strings(folder / LABELS) if LABELS in files else None
        images = description["images"]
        index = cls(
            codes,
            names,
            labels,
            code_length,
            description["settings"],
            description["fingerprint"],
            folder,
            None if images is None else Path(images),
        )
        index._check(str(folder))
        if len(index) != count:
            raise UserError(
                f"{folder}: {DESCRIPTION} promises {count:,} codes, {CODES} holds {len(index):,}; {_REBUILD}."
            )
        return index

    def save(
        self, folder: str | Path, trained: TrainedModel | None = None, structure: tuple[str, Any] | None = None
    ) -> None:
        """Write the whole index: to a folder beside `folder`, which is then renamed. An index of that name is replaced.

        Args:
            folder: where; its parent folder is there.
            trained: the model that made the codes, kept beside them.
            structure: (backend's name, a faiss binary index of these codes in their order), kept too.

        Raises:
            UserError: `folder` is something else than an index, cannot be written, or `trained` made other codes.
        """
        folder = Path(folder)
        self._check(str(folder))
        if trained is not None:
            self.matches(trained)
        require_index_place(folder)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            self._write(temporary, trained, structure)
            os.chmod(temporary, 0o755)  # mkdtemp makes folders that only their owner can enter
            _put_in_place(temporary, folder)
        except (OSError, RuntimeError) as error:  # torch.save and faiss report a full disk as a RuntimeError
            raise UserError(f"{folder}: could not be written ({error}); free some space or name another.") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self.folder = folder

    def search(
        self, query_codes: npt.ArrayLike, k: int | None = None, radius: int | None = None
    ) -> list[tuple[Rows, Rows]]:
        """The nearest codes of each query by Hamming distance, ties by row: exact, and the same on every machine.

        Args:
            query_codes: uint8 [q, ceil(K/8)], packed as `codes`.
            k: at most so many; None: 10, or with a radius all within it.
            radius: only codes at most so far.

        Returns:
            For each query (rows int64 [m], distances int64 [m]), by (distance, row) ascending.

        Raises:
            UserError: codes of another length, or k < 1, or radius < 0.
        """
        queries, k, radius = self.checked(query_codes, k, radius)
        if self._words is None:
            self._words = as_words(self.codes)
        return search_words(self._words, as_words(queries), len(self), k, radius)

    def checked(
        self, query_codes: npt.ArrayLike, k: int | None, radius: int | None
    ) -> tuple[npt.NDArray[np.uint8], int, int]:
        """The arguments of `search`, as numbers: without a limit k is n and the radius is K. UserError as there."""
        queries = np.asarray(query_codes)
        width = self.codes.shape[1]
        if queries.dtype != np.uint8 or queries.ndim != 2 or queries.shape[1] != width:
            raise UserError(
                f"Query codes must be uint8 [q, {width}] for {self.code_length} bits, "
                f"not {queries.dtype} {list(queries.shape)}."
            )
        if k is not None and k < 1:
            raise UserError(f"-k {k}: must be 1 or more.")
        if radius is not None and radius < 0:
            raise UserError(f"--radius {radius}: must be 0 or more.")
        if k is None:
            k = DEFAULT_K if radius is None else len(self)
        return queries, min(k, len(self)), self.code_length if radius is None else min(radius, self.code_length)

    def path_of(self, row: int) -> Path:
        """The file of image `row`; whether it is still there is not looked at."""
        name = Path(self.names[int(row)])
        return name if self.images is None else self.images / name

    def matches(self, trained: TrainedModel) -> None:
        """Prove that codes of `trained` may be compared with these.

        Raises:
            UserError: it has another code length or other weights.
        """
        where = "the index" if self.folder is None else str(self.folder)
        if trained.code_length != self.code_length:
            raise UserError(
                f"{where}: holds codes of {self.code_length} bits, the model makes {trained.code_length}; "
                f"take the run that the index was built with, or {_REBUILD}."
            )
        if trained.fingerprint != self.fingerprint:
            raise UserError(
                f"{where}: was built with another model (fingerprint {self.fingerprint[:12]}, not "
                f"{trained.fingerprint[:12]}), so that distances mean nothing; take that one, or {_REBUILD}."
            )

    def model(self) -> TrainedModel:
        """The model kept beside the codes.

        Raises:
            UserError: there is none, or it is not the one that made the codes.
        """
        if self.folder is None or not (self.folder / MODEL).is_file():
            raise UserError(f"{self.folder}: holds no {MODEL}; name the run's folder with --run.")
        trained = load_model(self.folder / MODEL)
        self.matches(trained)
        return trained

    def _check(self, where: str) -> None:
        """UserError unless the parts fit together; `where` begins the sentence."""
        codes, width = self.codes, -(-self.code_length // 8)
        if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != width:
            raise UserError(
                f"{where}: codes of {self.code_length} bits must be uint8 [n, {width}], "
                f"not {codes.dtype} {list(codes.shape)}; {_REBUILD}."
            )
        if not len(codes):
            raise UserError(f"{where}: an index needs at least one code.")
        for what, strings in (("names", self.names), ("labels", self.labels)):
            if strings is not None and len(strings) != len(codes):
                raise UserError(f"{where}: has {len(codes):,} codes but {len(strings):,} {what}; {_REBUILD}.")
        unused = 8 * width - self.code_length
        if unused and np.bitwise_and(codes[:, -1], (1 << unused) - 1).any():
            raise UserError(f"{where}: has bits set behind the {self.code_length} of a code; {_REBUILD}.")

    def _write(self, folder: Path, trained: TrainedModel | None, structure: tuple[str, Any] | None) -> None:
        files: dict[str, dict[str, Any]] = {}
        with _synced(folder / CODES) as file:
            np.save(file, np.ascontiguousarray(self.codes), allow_pickle=False)
        _write_strings(folder / NAMES, self.names)
        if self.labels is not None:
            _write_strings(folder / LABELS, self.labels)
        if structure is not None:
            import faiss

            faiss.write_index_binary(structure[1], str(folder / FAISS))
            with (folder / FAISS).open("rb+") as file:
                os.fsync(file.fileno())
        for name in (CODES, NAMES, LABELS, FAISS):
            if (folder / name).exists():
                files[name] = {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)}
        if structure is not None:
            files[FAISS]["kind"] = structure[0]
        if trained is not None:
            with _synced(folder / MODEL) as file:
                write_model(file, trained)
        description = {
            "format": FORMAT,
            "count": len(self),
            "code_length": self.code_length,
            "settings": self.settings,
            "fingerprint": self.fingerprint,
            "images": None if self.images is None else str(self.images),
            "files": files,
        }
        description["sha256"] = _sha256_of_description(description)
        with _synced(folder / DESCRIPTION) as file:
            file.write((json.dumps(description, indent=1) + "\n").encode())


def as_words(codes: npt.NDArray[np.uint8]) -> list[np.ndarray]:
    """Packed codes uint8 [n, bytes] as words: one array [n] of the shortest type, or several of uint64.

    Without a copy where a code has 1, 2, 4 or 8 bytes. The order of bits in a word is of no account for distances.
    """
    codes = np.asarray(codes)
    width = codes.shape[1]
    size = next((size for size in (1, 2, 4, 8) if width <= size), 8)
    words = -(-width // size)
    if width != words * size:
        padded = np.zeros((len(codes), words * size), np.uint8)
        padded[:, :width] = codes
        codes = padded
    columns = np.ascontiguousarray(codes).view(f"u{size}")
    return [np.ascontiguousarray(columns[:, word]) for word in range(words)]


def search_words(
    words: Sequence[np.ndarray], queries: Sequence[np.ndarray], count: int, k: int, radius: int
) -> list[tuple[Rows, Rows]]:
    """`Index.search` on words (`as_words`), for k ≥ 1 and a radius ≥ 0.

    Rows come in ascending order, so a later one at the distance of the k-th found so far has lost the tie: only what is
    strictly nearer is looked at again, which after a few blocks is next to nothing.
    """
    num_queries = len(queries[0])
    limits = [radius + 1] * num_queries  # only distances below it can still matter
    found: list[list[tuple[Rows, npt.NDArray[Any]]]] = [[] for _ in range(num_queries)]
    held = [0] * num_queries
    for start in range(0, count, _ROWS_AT_ONCE):
        block = [word[start : start + _ROWS_AT_ONCE] for word in words]
        for query in range(num_queries):
            distance = _distances(block, [word[query] for word in queries])
            near = np.flatnonzero(distance < limits[query])
            if len(near) > 2 * k:  # the first block: sorting it would take longer than all the others
                counts = np.cumsum(np.bincount(distance[near]))
                near = near[distance[near] <= np.searchsorted(counts, k)]
            if not len(near):
                continue
            found[query].append((near + start, distance[near]))
            held[query] += len(near)
            if held[query] >= 2 * k:  # not at every find: with a large k sorting would cost more than counting
                found[query] = [_nearest(found[query], k)]
                held[query] = k
                limits[query] = int(found[query][0][1][-1])
    return [_nearest(parts, k) for parts in found]


def _nearest(parts: Sequence[tuple[Rows, npt.NDArray[Any]]], k: int) -> tuple[Rows, Rows]:
    """The first k by (distance, row) of parts whose rows at one distance ascend."""
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    rows, distances = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(distances, kind="stable")[:k]  # of short integers, numpy sorts by radix
    return rows[order], distances[order].astype(np.int64)


def _distances(block: Sequence[np.ndarray], query: Sequence[np.unsignedinteger]) -> np.ndarray:
    """Hamming distances [n] of words to one query."""
    total: np.ndarray | None = None
    for word, own in zip(block, query, strict=True):
        ones = _count_ones(word ^ own)
        total = ones if total is None else np.add(total, ones, dtype=np.int32)
    assert total is not None
    return total


_ONES = np.array([bin(value).count("1") for value in range(1 << 8)], np.uint8)


def ones_by_table(words: np.ndarray) -> npt.NDArray[np.uint8]:
    """The number of ones of each word [n], for numpy 1, which has no `bitwise_count`."""
    return _ONES[words[:, None].view(np.uint8)].sum(axis=1, dtype=np.uint8)


_count_ones = getattr(np, "bitwise_count", ones_by_table)


def write_model(file: IO[bytes], trained: TrainedModel) -> None:
    """Write the network so that `load_model` reads the very same numbers, to the last bit.

    An export (`utils.trained.export_model`) in the run's full precision; tensors that lose nothing by it are kept in
    float16, so that the model of an export stays as small as the export was.
    """
    state = {}
    for name, value in trained.model.state_dict().items():
        value = value.detach().cpu().contiguous()
        if value.dtype == torch.float32 and torch.equal(value.half().float(), value):
            value = value.half()
        state[name] = value
    torch.save({"format": EXPORT_FORMAT, "settings": trained.summary, "state": state}, file)


def require_index_place(folder: Path) -> None:
    """Prove that `folder` can become an index before anything is computed; UserError where it cannot."""
    if folder.exists() and not (folder / DESCRIPTION).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder}: is there already and is no index; name a new folder.")
    parent = folder.absolute().parent
    if not parent.is_dir():
        raise UserError(f"{folder}: there is no folder {parent}; make it or name another.")
    try:
        with tempfile.TemporaryDirectory(dir=parent):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot write there ({error.strerror}); name another folder.") from error


def check_file(folder: Path, name: str, expected: dict[str, Any]) -> None:
    """UserError unless the file `name` of an index is as it was written; `expected` is its entry in index.json."""
    path = folder / name
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise UserError(
                f"{path}: has {size:,} bytes, not {expected['bytes']:,}: truncated or of another index; {_REBUILD}."
            )
        if _sha256(path) != expected["sha256"]:
            raise UserError(f"{path}: has changed since the index was written (checksum); {_REBUILD}.")
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; {_REBUILD}.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error


def described_file(folder: Path, name: str) -> dict[str, Any] | None:
    """The entry of a file in an index's index.json; None where the index was written without it."""
    return _read_description(folder)["files"].get(name)


_KINDS: dict[str, Any] = {
    "count": int,
    "code_length": int,
    "settings": dict,
    "fingerprint": str,
    "images": (str, type(None)),
    "files": dict,
}


def _read_description(folder: Path) -> dict[str, Any]:
    """index.json, checked; UserError where it is none of ours or was changed."""
    path = folder / DESCRIPTION
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; name one that `python -m utils.search build` wrote.")
    if not path.is_file():
        raise UserError(f"{folder}: is no index, it holds no {DESCRIPTION}.")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: truncated or damaged ({error}); {_REBUILD}.") from error
    version = description.get("format") if isinstance(description, dict) else None
    if version != FORMAT:
        if isinstance(version, str) and version.startswith("schn-index-"):
            raise UserError(f"{folder}: an index of version {version}, this is {FORMAT}; {_REBUILD}.")
        raise UserError(f"{folder}: is no index, {DESCRIPTION} is something else.")
    given = description.pop("sha256", None)
    if given != _sha256_of_description(description):
        raise UserError(f"{path}: has changed since the index was written (checksum); {_REBUILD}.")
    for name, kind in _KINDS.items():
        if not isinstance(description.get(name), kind):
            raise UserError(f"{path}: has {name} {description.get(name)!r}, which cannot be; {_REBUILD}.")
    if description["code_length"] < 1 or not {CODES, NAMES} <= description["files"].keys():
        raise UserError(f"{path}: describes no codes; {_REBUILD}.")
    return description


def _sha256_of_description(description: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _synced(path: Path):
    """A new file, on the disk when the block ends."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _write_strings(path: Path, strings: Sequence[str]) -> None:
    with _synced(path) as file:
        for string in strings:
            encoded = str(string).encode("utf-8", "surrogateescape")  # names of files need not be UTF-8
            if b"\0" in encoded:
                raise UserError(f"{path.name}: {string!r} holds a zero byte, which no name of a file can.")
            file.write(encoded + b"\0")


def _read_strings(path: Path) -> list[str]:
    content = path.read_bytes()
    return content[:-1].decode("utf-8", "surrogateescape").split("\0") if content else []


def _put_in_place(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; what was there before is kept until that is done."""
    if not folder.exists():
        os.rename(new, folder)
        return
    old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.old."))
    os.rename(folder, old)  # onto an empty folder, which a rename may replace
    try:
        os.rename(new, folder)
    except OSError:
        os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
