"""A collection's packed codes in one folder, with names and the model that made them, and exact search by distance.

The folder holds (docs/search.md):

    index.json    version, counts, settings, fingerprint of the model, sizes and SHA-256 of the other files, its own
    codes.npy     uint8 [n, ceil(K/8)], bits in the order of `np.packbits`
    names.bin     n names in UTF-8, a zero byte after each
    labels.bin    n labels in the same form, where there are any
    model.pt      the network (`write_model`), so that a query needs nothing else
    faiss.bin     a search structure of faiss, where one was asked for (`search.backends`)
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from search.exact import Rows, as_words, search_words
from search.index_files import (
    _REBUILD,
    CODES,
    DESCRIPTION,
    FAISS,
    FORMAT,
    LABELS,
    MODEL,
    NAMES,
    _put_in_place,
    _read_description,
    _read_strings,
    _sha256,
    _sha256_of_description,
    _synced,
    _write_strings,
    check_file,
    require_index_place,
    write_model,
)
from search.model import TrainedModel, load_model
from utils.errors import UserError

DEFAULT_K = 10


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
        fingerprint: of that model's weights (`search.model.fingerprint`).
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
