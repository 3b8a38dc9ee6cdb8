"""The packed codes of images in one folder, with names and the model that made them, and exact search.

docs/search.md describes the files.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.decode import DECODING
from search.exact import Rows, as_words, search_words
from search.index_files import (
    CODES,
    DESCRIPTION,
    FAISS,
    FORMAT,
    LABELS,
    MODEL,
    NAMES,
    REBUILD,
    check_file,
    put_in_place,
    read_description,
    read_strings,
    require_index_place,
    sha256_of_description,
    sha256_of_file,
    write_model,
    write_strings,
)
from search.model import TrainedModel, load_model
from utils.errors import UserError

DEFAULT_K = 10


@dataclass
class Index:
    """The codes, names and labels of n images.

    Attributes:
        codes: uint8 [n, ceil(K/8)], as from `encode_files`; in a loaded index a read-only `np.memmap`.
        names: n file names, absolute or relative to `images`.
        labels: n names of class folders, "" for an image without one; None: no image has one.
        code_length: K.
        settings, fingerprint: `settings` and `fingerprint` of the `TrainedModel` that made the codes.
        folder: where the index was loaded from or saved to.
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
            UserError: it is not an index, of another version, truncated, or changed since it was written.
        """
        folder = Path(folder)
        description = read_description(folder)
        files = description["files"]
        for name in (CODES, NAMES, LABELS):
            if name in files:
                check_file(folder, name, files[name])
        try:
            codes = np.load(folder / CODES, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{folder / CODES}: is not an array of codes ({error}); {REBUILD}.") from error
        index = cls(
            codes,
            read_strings(folder / NAMES),
            read_strings(folder / LABELS) if LABELS in files else None,
            description["code_length"],
            description["settings"],
            description["fingerprint"],
            folder,
            None if description["images"] is None else Path(description["images"]),
        )
        index._check(str(folder))
        count = description["count"]
        if len(index) != count:
            raise UserError(f"{folder}: {DESCRIPTION} says {count:,} codes, {CODES} has {len(index):,}; {REBUILD}.")
        return index

    def save(
        self, folder: str | Path, trained: TrainedModel | None = None, structure: tuple[str, Any] | None = None
    ) -> None:
        """Write the index to a temporary folder beside `folder` and rename it; an old index of that name is replaced.

        Args:
            folder: its parent folder must exist.
            trained: the model that made the codes, to store it with them.
            structure: (name of a backend, its faiss index of these codes), to store it too.

        Raises:
            UserError: `folder` is not an index, cannot be written, or `trained` did not make the codes.
        """
        folder = Path(folder)
        self._check(str(folder))
        if trained is not None:
            self.matches(trained)
        require_index_place(folder)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            self._write(temporary, trained, structure)
            put_in_place(temporary, folder)
        except (OSError, RuntimeError) as error:  # torch.save and faiss report a full disk as a RuntimeError
            raise UserError(f"{folder}: could not be written ({error}); free some space or name another.") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self.folder = folder

    def search(
        self, query_codes: npt.ArrayLike, k: int | None = None, radius: int | None = None
    ) -> list[tuple[Rows, Rows]]:
        """The nearest codes to each query by Hamming distance, ties by row: exact.

        Args:
            query_codes: uint8 [q, ceil(K/8)].
            k: the largest number of results; None: 10, or with a radius all within it.
            radius: the largest distance in bits.

        Returns:
            For each query (rows int64 [m], distances int64 [m]), by (distance, row) ascending.

        Raises:
            UserError: codes of another length or dtype, k < 1, or radius < 0.
        """
        queries, k, radius = self.checked(query_codes, k, radius)
        if self._words is None:
            self._words = as_words(self.codes)
        return search_words(self._words, as_words(queries), len(self), k, radius)

    def checked(
        self, query_codes: npt.ArrayLike, k: int | None, radius: int | None
    ) -> tuple[npt.NDArray[np.uint8], int, int]:
        """The arguments of `search`, checked; without a limit k becomes n and the radius K. Raises as `search`."""
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
        """The file of image `row`, which may no longer exist."""
        name = Path(self.names[int(row)])
        return name if self.images is None else self.images / name

    def matches(self, trained: TrainedModel) -> None:
        """UserError unless codes of `trained` can be compared with these: the same code length and weights."""
        where = "the index" if self.folder is None else str(self.folder)
        if trained.code_length != self.code_length:
            raise UserError(
                f"{where}: has codes of {self.code_length} bits, the model makes {trained.code_length}; "
                f"use the run that the index was built with, or {REBUILD}."
            )
        if trained.fingerprint != self.fingerprint:
            raise UserError(
                f"{where}: was built with another model (fingerprint {self.fingerprint[:12]}, not "
                f"{trained.fingerprint[:12]}), so distances would mean nothing; use that model, or {REBUILD}."
            )

    def model(self, run: str | None = None) -> TrainedModel:
        """The model of `run`, or the stored one; UserError if there is none, or it did not make the codes."""
        if run is not None:
            trained = load_model(run, self.code_length)
        elif self.folder is not None and (self.folder / MODEL).is_file():
            trained = load_model(self.folder / MODEL)
        else:
            raise UserError(f"{self.folder}: has no {MODEL}; name the folder of the run with --run.")
        self.matches(trained)
        return trained

    def _check(self, where: str) -> None:
        """UserError unless the parts fit together; `where` starts the message."""
        codes, width = self.codes, -(-self.code_length // 8)
        if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != width:
            raise UserError(
                f"{where}: codes of {self.code_length} bits must be uint8 [n, {width}], "
                f"not {codes.dtype} {list(codes.shape)}; {REBUILD}."
            )
        if not len(codes):
            raise UserError(f"{where}: an index needs at least one code; give it an image.")
        for what, strings in (("names", self.names), ("labels", self.labels)):
            if strings is not None and len(strings) != len(codes):
                raise UserError(f"{where}: has {len(codes):,} codes but {len(strings):,} {what}; {REBUILD}.")
        unused = 8 * width - self.code_length
        if unused and np.bitwise_and(codes[:, -1], (1 << unused) - 1).any():
            raise UserError(f"{where}: has bits set after the {self.code_length} of a code; {REBUILD}.")

    def _write(self, folder: Path, trained: TrainedModel | None, structure: tuple[str, Any] | None) -> None:
        np.save(folder / CODES, np.ascontiguousarray(self.codes), allow_pickle=False)
        write_strings(folder / NAMES, self.names)
        if self.labels is not None:
            write_strings(folder / LABELS, self.labels)
        if structure is not None:
            import faiss  # optional: requirements-search.txt

            faiss.write_index_binary(structure[1], str(folder / FAISS))
        files: dict[str, dict[str, Any]] = {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
            for path in (folder / name for name in (CODES, NAMES, LABELS, FAISS))
            if path.exists()
        }
        if structure is not None:
            files[FAISS]["kind"] = structure[0]
        if trained is not None:
            write_model(folder / MODEL, trained)
        description = {
            "format": FORMAT,
            "count": len(self),
            "code_length": self.code_length,
            "settings": self.settings,
            "fingerprint": self.fingerprint,
            "decoding": DECODING,
            "images": None if self.images is None else str(self.images),
            "files": files,
        }
        description["sha256"] = sha256_of_description(description)
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
