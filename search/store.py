"""A store: the codes, names and labels of images, and the model that made them, in LanceDB (docs/search.md).

Every change makes a new version of the table of images, so that a reader, or a crash, sees it before or after it.
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.decode import DECODING
from data.image_paths import labelled_images
from search.encode import Encoding, encode_files
from search.exact import Codes, Collection, Neighbours, as_words, search_words
from search.model import Model
from utils.errors import UserError
from utils.files import Locked, locked, require_writable, write_file
from utils.interrupt import Interrupted

os.environ.setdefault("LANCEDB_LOG", "error")  # read at the import; it would warn of every empty list of an index
import lancedb
from lancedb.index import IvfFlat

FORMAT = "schn-store-1"
DEFAULT_K = 10
MOST_FOR_EXACT = 20_000_000  # codes; to compare more takes one thread more than 0.02 s per query

_OWN = {"model.lance", "images.lance", ".lock"}  # what the folder of a store holds
_STABLE = "new_table_enable_stable_row_ids"
_ROW = "_rowid"  # LanceDB numbers the images in the order in which they come, and never changes or repeats a number
_IMAGES_IN_VERSION = 4096  # a crash loses what was encoded after the last one
_KEPT = timedelta(hours=1)  # old versions, for programs that still read them
_ROWS_IN_BATCH = 1 << 16  # to read batches of 1,024, the default of LanceDB, takes ten times as long
_MORE = 32  # fetched from an index beyond k, so that most ties at the cut are complete at once
_INDEX = "lists_"  # the name of an index is this and its number of lists
_CODES_A_LIST = 64  # place a list as well as the 256 of LanceDB, in less time
_RECALL_QUERIES = 1000
_NO_STORE = "there is no store; name one that `python -m search build` wrote."

_Image = tuple[str, str, int, int]  # what the table has of an image beside its code: name, label, size, modified


class NoStore(UserError):
    """There is no store at this place."""


class Added(NamedTuple):
    """How many images `Store.add` added, encoded again since their file changed, left as they were, and left out."""

    added: int
    changed: int
    unchanged: int
    skipped: int


class Store:
    """A store. Several threads may use one object and several processes read one store; one at a time may write.

    Every method raises a UserError where LanceDB cannot read or write. Attributes: `uri`, a folder or an address like
    s3://bucket/path; `code_length`, K; `settings` and `fingerprint` of the model; `images`, where relative names start.
    """

    def __init__(self, uri: str) -> None:
        """Open a store; NoStore if there is none, UserError if it is of an earlier version."""
        self.uri, self._folder = uri, _folder(uri)
        if self._folder and (self._folder / "index.json").is_file():
            raise UserError(f"{uri}: an index of an earlier version; run `python -m search build` with a new --store.")
        if self._folder and not (self._folder / "images.lance").is_dir():
            raise NoStore(f"{uri}: {_NO_STORE}")
        with _explained(uri):
            delay = timedelta(seconds=0 if self._folder else 5)  # until this object sees a change by another process
            self._database = lancedb.connect(str(self._folder or uri), read_consistency_interval=delay)
            try:
                self._table: Any = self._database.open_table("images")
            except ValueError as error:
                if "not found" not in str(error):
                    raise
                raise NoStore(f"{uri}: {_NO_STORE}") from error  # or a program was killed before it was made
        about = json.loads((self._table.schema.metadata or {}).get(b"about", "{}"))
        if (about.get("format"), about.get("decoding")) != (FORMAT, DECODING):
            raise UserError(f"{uri}: not a store, or one of another version of this program; build it again.")
        self.settings: dict[str, Any] = about["settings"]
        self.code_length, self.fingerprint = int(self.settings["code_length"]), about["fingerprint"]
        self.images, self._labels_from_names = Path(about["images"]), about["labels_from_names"]
        self._lock = threading.Lock()
        self._collection: tuple[int, Collection] | None = None  # with the version of the table
        self._model: Model | None = None

    @classmethod
    def create(cls, uri: str, model: Model, images: Path | None = None) -> Store:
        """Make an empty store with a model in it; UserError if something else is there.

        `images`: names start from this folder, and the first folder of a name is the label; None: names start from the
        current folder, and the label is the first folder below a folder given to `add`.
        """
        folder = _folder(uri)
        if folder:
            if folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= _OWN):
                raise UserError(f"{uri}: already exists and is not a store; name a new folder.")
            require_writable(folder.parent, uri)
        with suppress(NoStore):
            cls(uri)
            raise UserError(f"{uri}: is a store already; add to it, or name another.")
        columns = {
            "name": pa.large_string(),  # more than 2 GiB of names
            "label": pa.string(),  # "": none
            "size": pa.int64(),  # of the file, bytes
            "modified": pa.int64(),  # nanoseconds since 1970
            "code": pa.list_(pa.uint8(), -(-model.code_length // 8)),  # bits in the order of np.packbits
        }
        about = {"format": FORMAT, "decoding": DECODING, "settings": model.settings, "fingerprint": model.fingerprint}
        about |= {"images": os.path.realpath(images or "."), "labels_from_names": images is not None}
        content = pa.table({"content": pa.array([model.content], pa.large_binary())})
        with _explained(uri):
            database = lancedb.connect(str(folder or uri))
            database.create_table("model", content, mode="overwrite")  # a program may have been killed here
            schema = pa.schema(columns, {"about": json.dumps(about)})
            database.create_table("images", schema=schema, storage_options={_STABLE: "true"})
        return cls(uri)

    def model(self, device: str = "auto") -> Model:
        """The model that made the codes, loaded once. UserError if it is damaged, or there is no such device."""
        with self._lock, _explained(self.uri):
            if self._model is None:
                [content] = self._database.open_table("model").to_arrow()["content"]
                self._model = Model.from_bytes(content.as_buffer().to_pybytes(), self.uri, device)
                if self._model.fingerprint != self.fingerprint:
                    raise UserError(f"{self.uri}: holds another model than that of its codes; build it again.")
            return self._model

    def __len__(self) -> int:
        with _explained(self.uri):
            return int(self._table.count_rows())

    def path_of(self, name: str) -> Path:
        """The file of an image, which may no longer exist."""
        return self.images / name

    def labels(self) -> list[str]:
        """The labels, sorted, without ""."""
        return sorted({*pc.unique(self.collection().labels).to_pylist()} - {""})

    def collection(self) -> Collection:
        """All images in memory, read again when the store has changed."""
        with self._lock, _explained(self.uri):
            version = self._table.version
            if self._collection is None or self._collection[0] != version:
                table = self._read("code", "name", "label")
                if (np.diff(table["row"]) < 0).any():  # images that have changed are behind the others
                    table = table.sort_by("row")
                rows, names, labels = (table[column].combine_chunks() for column in ("row", "name", "label"))
                self._collection = version, Collection(rows.to_numpy(), _codes_of(table), names, labels)
            return self._collection[1]

    def lists(self) -> int | None:
        """The number of lists of the index; None: there is no index."""
        with _explained(self.uri):
            names = [index.name for index in self._table.list_indices()]
            return int(names[-1].removeprefix(_INDEX)) if names else None

    def search(
        self,
        codes: npt.ArrayLike,
        k: int | None = None,
        radius: int | None = None,
        label: str | None = None,
        exact: bool = False,
        probes: int | None = None,
    ) -> list[Neighbours]:
        """The nearest images to each of the codes uint8 [q, ceil(K/8)] by Hamming distance, ties by row.

        They are at most `k` (None: 10, or with a radius all), at most `radius` bits away, and have the `label`. `exact`
        compares all codes in memory, as without an index; `probes` is how many lists of the index a query reads (None:
        `default_probes`). UserError: codes of another shape or dtype, k < 1, radius < 0.
        """
        queries, width = np.asarray(codes), -(-self.code_length // 8)
        if queries.dtype != np.uint8 or queries.shape[1:] != (width,):
            shape = f"{queries.dtype} {list(queries.shape)}"
            raise UserError(f"Query codes must be uint8 [q, {width}] for {self.code_length} bits, not {shape}.")
        if (k is not None and k < 1) or (radius is not None and radius < 0):
            raise UserError(f"-k {k}, --radius {radius}: must be at least 1 and 0.")
        count = len(self)
        most = max(1, min(count, k or (DEFAULT_K if radius is None else count)))
        limit = self.code_length if radius is None else min(radius, self.code_length)
        lists = None if exact or not count else self.lists()
        if lists is None:
            return self.collection().search(queries, most, limit, label)
        how = most, limit, label, probes or default_probes(lists), count
        return [self._by_index(query, *how) for query in queries]

    def _by_index(self, query: Codes, k: int, radius: int, label: str | None, probes: int, count: int) -> Neighbours:
        """`search` for one code uint8 [bytes], in `count`. LanceDB also compares images that are not in a list yet."""
        with _explained(self.uri):
            search = self._table.search(query, vector_column_name="code").distance_type("hamming").nprobes(probes)
            search = search.with_row_id(True).select(["name", "label", "_distance"])
            if label is not None:
                quoted = label.replace("'", "''")
                search = search.where(f"label = '{quoted}'", prefilter=True)
            fetched = min(k + _MORE, count)
            found = search.distance_range(0, radius + 1).limit(fetched).to_arrow()
            if len(found) == fetched < count and found["_distance"][-1] == found["_distance"][k - 1]:  # more ties
                found = search.distance_range(0, found["_distance"][-1].as_py() + 1).limit(count).to_arrow()
        found = found.sort_by([("_distance", "ascending"), (_ROW, "ascending")]).slice(0, k)
        rows, distances = (found[name].to_numpy().astype(np.int64) for name in (_ROW, "_distance"))
        return Neighbours(rows, distances, found["name"].to_pylist(), found["label"].to_pylist())

    def _read(self, *columns: str) -> pa.Table:
        """The columns, and `row`, of all images."""
        with _explained(self.uri):
            batches = self._table.search().with_row_id(True).select(list(columns)).to_batches(_ROWS_IN_BATCH)
            table = pa.Table.from_batches(batches, batches.schema)
        return table.append_column("row", table[_ROW].cast(pa.int64()))

    def add(self, inputs: Sequence[str] | dict[str, str], encoding: Encoding) -> Added:
        """Encode images and add them, but those whose file has the size and time that the store has.

        `inputs`: as for `find_images`, or what `labelled_images` found. A changed image keeps its row. One that cannot
        be read is named on stderr, and what the store has of it stays. UserError: no image, or another process writes.
        """
        paths = inputs if isinstance(inputs, dict) else labelled_images(inputs)
        with self._writing():
            new, changed = self._to_encode(paths)
            added, again = self._encode(new, encoding, True), self._encode(changed, encoding, False)
        waiting = len(new) + len(changed)
        return Added(added, again, len(paths) - waiting, waiting - added - again)

    def _to_encode(self, paths: dict[str, str]) -> tuple[dict[str, _Image], dict[str, _Image]]:
        """By path, the images that are new, and those that have changed."""
        base = os.path.join(os.path.realpath(self.images), "")
        names = [path.removeprefix(base) for path in paths]
        known = self._read("name", "size", "modified")
        places = pc.index_in(pa.array(names, pa.large_string()), value_set=known["name"].combine_chunks()).to_pylist()
        sizes, times = known["size"].to_numpy(), known["modified"].to_numpy()
        new: dict[str, _Image] = {}
        changed: dict[str, _Image] = {}
        for (path, label), name, place in zip(paths.items(), names, places, strict=True):
            if self._labels_from_names and name != path:
                label = name.split(os.sep)[0] if os.sep in name else ""
            size, modified = _size_and_time(path) or (-1, -1)  # reading it will say why
            if place is None or (size, modified) != (sizes[place], times[place]):
                found = new if place is None else changed
                found[path] = (name, label, size, modified)
        return new, changed

    def _encode(self, images: dict[str, _Image], encoding: Encoding, are_new: bool) -> int:
        """Encode and write the images of paths; returns how many could be read."""
        batches = encode_files(self.model(), list(images), encoding) if images else iter(())
        number = 0
        while group := list(islice(batches, max(1, _IMAGES_IN_VERSION // encoding.batch_size))):
            read = [images[path] for paths, _, _ in group for path in paths]
            if read:
                self._write(read, np.concatenate([codes for _, codes, _ in group]), are_new)
            number += len(read)
        return number

    def _write(self, images: Sequence[_Image], codes: Codes, are_new: bool) -> None:
        """Make one version of the table with images and their codes uint8 [n, bytes]."""
        with _explained(self.uri):
            names, labels, sizes, times = zip(*images, strict=True)
            columns = {"name": names, "label": labels, "size": sizes, "modified": times, "code": _list_array(codes)}
            table = pa.table(columns, self._table.schema)
            if are_new:
                self._table.add(table)
            else:
                self._table.merge_insert("name").when_matched_update_all().execute(table)

    def remove(self, names: Sequence[str] | None = None) -> list[str]:
        """Remove images by their names in the store, or (None) those whose files no longer exist; returns their names.

        UserError: another process writes to the store, or no file exists: the folder was moved, or is not mounted.
        """
        with self._writing():
            images = self._read("name")
            if names is not None:
                chosen = pc.is_in(images["name"], value_set=pa.array(names, pa.large_string()))
            else:
                gone = [_size_and_time(self.path_of(name)) is None for name in images["name"].to_pylist()]
                chosen = pa.array(gone, pa.bool_())
                if len(images) and all(gone):
                    problem = f"none of its {len(images):,} images is in {self.images}, and nothing was removed"
                    raise UserError(f"{self.uri}: {problem}; name their folder of today with --images-folder.")
            images = images.filter(chosen)
            if len(images):
                with _explained(self.uri):
                    self._table.delete(f"{_ROW} in ({', '.join(map(str, images['row'].to_pylist()))})")
        return list(images["name"].to_pylist())

    def optimize(self, index: bool | None = None, lists: int | None = None) -> float | None:
        """Put the parts together that many changes leave, remove old versions, and make or drop the index IVF_FLAT.

        `index`: whether to make it anew, with `lists` lists, at most as many as there are different codes, or to drop
        it. None: make it where there are more than `MOST_FOR_EXACT` codes and none yet.

        Returns the recall of an index that was made: for 1,000 stored codes, the share of the 10 images found that are
        no farther than the tenth of the exact search.
        """
        with self._writing(), _explained(self.uri):
            self._table.optimize(cleanup_older_than=_KEPT)
            if index is None and (len(self) <= MOST_FOR_EXACT or self.lists()):
                return None
            kept, recall = ("", None) if index is False else self._make_index(lists)
            for other in self._table.list_indices():
                if other.name != kept:
                    self._table.drop_index(other.name)
            return recall

    def _make_index(self, lists: int | None) -> tuple[str, float]:
        """The name of a new index, and its recall (`optimize`)."""
        codes = _codes_of(self._read("code"))
        if not len(codes):
            raise UserError(f"{self.uri}: has no images for an index; add some first.")
        lists = lists or 1 << (math.isqrt(len(codes)).bit_length() - 1)  # √n, rounded down to a power of two
        drawn = codes[np.random.default_rng(1).permutation(len(codes))]
        lists = min(lists, len(np.unique(drawn[: _CODES_A_LIST * lists], axis=0)))
        name, probes = f"{_INDEX}{lists}", default_probes(lists)
        config = IvfFlat(distance_type="hamming", num_partitions=lists, sample_rate=_CODES_A_LIST, max_iterations=20)
        self._table.create_index("code", config=config, name=name, replace=True)
        queries, most = drawn[:_RECALL_QUERIES], min(DEFAULT_K, len(codes))
        exact = search_words(as_words(codes), as_words(queries), most, self.code_length)
        found = [self._by_index(query, most, self.code_length, None, probes, len(codes)) for query in queries]
        right = sum(int((near.distances <= best[-1]).sum()) for near, (_, best) in zip(found, exact, strict=True))
        return name, right / (most * len(queries))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Keep other processes from writing to a store in a folder; on object storage nothing does."""
        if self._folder:
            require_writable(self._folder, self.uri)
        try:
            with locked(self._folder / ".lock") if self._folder else nullcontext():
                yield
        except Locked:
            raise UserError(f"{self.uri}: another process writes to this store; wait for it.") from None
        except (Interrupted, KeyboardInterrupt) as stopped:
            stopped.add_note("the store is whole; run the same command again to continue")
            raise

    def write_parquet(self, path: Path) -> int:
        """Write row, name, label, code (uint8 [bytes]) and hex (the same as text) to a file; returns how many rows."""
        images = self.collection()
        digits = np.frombuffer(images.codes.tobytes().hex().encode(), f"S{2 * images.codes.shape[1]}")
        columns: dict[str, Any] = {"row": pa.array(images.rows), "name": images.names, "label": images.labels}
        columns |= {"code": _list_array(images.codes), "hex": pa.array(digits).cast(pa.string())}
        fields = [pa.field(name, column.type, nullable=False) for name, column in columns.items()]  # for ClickHouse
        about = {"code_length": str(self.code_length), "fingerprint": self.fingerprint}
        table = pa.table(columns, pa.schema(fields, about))
        write_file(path, lambda file: pq.write_table(table, file), "-o")
        return len(table)


def build(uri: str, model: Model, inputs: Sequence[str], encoding: Encoding) -> tuple[Store, Added]:
    """Make a store of images, or continue one, as after a kill. Names start from a single folder, or the current one.

    UserError: no image, none that can be read, something else is there, or the store is of another model.
    """
    paths = labelled_images(inputs)
    try:
        store = Store(uri)
    except NoStore:
        alone = len(inputs) == 1 and os.path.isdir(inputs[0])
        store = Store.create(uri, model, Path(inputs[0]) if alone else None)
    if store.fingerprint != model.fingerprint:
        raise UserError(f"{uri}: its codes are of another model; name another store, or the model that made it.")
    added = store.add(paths, encoding)
    if not len(store):
        raise UserError(f"{uri}: none of the {len(paths):,} images could be read, and the store is empty.")
    return store, added


def default_probes(lists: int) -> int:
    """Lists that a query reads: one in eight, at least eight."""
    return min(lists, max(8, lists // 8))


def _list_array(codes: Codes) -> pa.FixedSizeListArray:
    """uint8 [n, bytes] as a column."""
    return pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1)), codes.shape[1])


def _codes_of(table: pa.Table) -> Codes:
    """Its codes, uint8 [n, bytes]."""
    column = table["code"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), column.type.list_size)


def _size_and_time(path: str | Path) -> tuple[int, int] | None:
    """Of a file, in bytes and nanoseconds; None: it does not exist; -1: the system does not tell."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:  # it may exist, in a folder that may not be read or on a disk that does not answer
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _folder(uri: str) -> Path | None:
    """The folder of a store; None for an address such as s3://bucket/path."""
    return None if "://" in uri else Path(uri).absolute()


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """An error of LanceDB becomes a UserError that names the store."""
    try:
        yield
    except (UserError, Interrupted, BrokenPipeError):
        raise
    except Exception as error:  # LanceDB raises several types, and one for a panic of its compiled part
        reason = re.sub(r", /\S+\.rs:\d+:\d+", "", " ".join(str(error).split()))  # without places in its source
        raise UserError(f"{uri}: LanceDB cannot read or write it ({reason:.500}); check the place.") from error
