"""CIFAR-10: 60,000 images of 32 x 32 pixels, all in memory, enlarged to S x S batch by batch.

The five training batches and the test batch are pooled in that order; 100 images a class, drawn by the seed, are
queries, the other 59,000 are the database. The files are Python pickles, which could run any code if they were
read as pickles are: here a reader that knows nothing but plain containers and arrays of bytes reads them.
"""

from __future__ import annotations

import io
import logging
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.image_dataset import Split, make_split
from data.options import Options
from data.pixels import MemoryPixels
from data.split import one_hot, per_class, stratified_split
from data.transform import shorter_side_for
from utils.errors import UserError

FOLDER = "cifar-10-batches-py"
BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
NUM_CLASSES = 10
NUM_QUERY = 1000
CLASS_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

logger = logging.getLogger(__name__)


class _Type:
    """Stands for numpy.dtype: keeps the name of the type, takes its byte order and does nothing with it."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        pass


class _Bytes:
    """Stands for numpy.ndarray: keeps what a pickled array of bytes consists of; `array` makes it one."""

    def __init__(self, shape: Any = None, kind: Any = None, raw: Any = None, fortran: Any = False) -> None:
        self.shape, self.kind, self.raw, self.fortran = shape, kind, raw, fortran

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.kind, self.fortran, self.raw = state

    def array(self) -> np.ndarray:
        raw = self.raw.encode("latin1") if isinstance(self.raw, str) else bytes(self.raw)
        if not isinstance(self.kind, _Type) or self.kind.name not in ("u1", "uint8", b"u1"):
            raise ValueError("not an array of bytes")
        return np.frombuffer(raw, dtype=np.uint8).reshape(self.shape, order="F" if self.fortran else "C")


def _reconstruct(*_: Any) -> _Bytes:
    return _Bytes()


def _frombuffer(raw: Any, kind: Any, shape: Any, order: Any) -> _Bytes:
    return _Bytes(shape, kind, raw, order == "F")


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    # How pickle's protocols 0 to 2 spell a bytes object.
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    # How pickle's protocols 0 to 2 spell b"". With an argument, bytes() could ask for any amount of memory.
    return b""


_ALLOWED = {
    ("__builtin__", "bytes"): _empty_bytes,
    ("builtins", "bytes"): _empty_bytes,
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Bytes,
    ("_codecs", "encode"): _encode,
} | {
    (module, name): stand_in
    for core in ("numpy.core", "numpy._core")
    for module, name, stand_in in (
        (f"{core}.multiarray", "_reconstruct", _reconstruct),
        (f"{core}.numeric", "_frombuffer", _frombuffer),
    )
}


class _PlainUnpickler(pickle.Unpickler):
    """Containers, numbers, strings, and arrays by stand-ins: nothing named in the file is ever imported."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def _require_modest_memo(content: bytes) -> None:
    # The reader makes room for as many remembered objects as the largest number in a file says: gigabytes for one
    # flipped bit. No file has more objects than bytes.
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= len(content):
            raise pickle.UnpicklingError("it numbers an object beyond its own length")


def read_plain_pickle(path: Path) -> dict[str, Any]:
    """The dictionary in a pickle of plain data, its keys as str.

    Raises:
        UserError: the file cannot be read, is cut short, or holds anything but plain data.
    """
    mend = f"Delete the folder {path.parent} and run again to download CIFAR-10 afresh."
    try:
        content = path.read_bytes()
        _require_modest_memo(content)
        loaded = _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # a damaged pickle may raise nearly anything
        raise UserError(f"{path} is damaged or is no CIFAR-10 file ({error}). {mend}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path} is no CIFAR-10 file: it holds no dictionary. {mend}")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in loaded.items()}


def read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(pixels uint8 [n, 3, 32, 32], classes int64 [n]) of one batch file; UserError where it is not one."""
    batch = read_plain_pickle(path)
    data, labels = batch.get("data"), batch.get("labels")
    if not isinstance(data, _Bytes) or not isinstance(labels, list):
        raise UserError(f"{path} is no CIFAR-10 batch: it needs the entries data and labels.")
    try:
        pixels = data.array()
    except (ValueError, TypeError, AttributeError, OverflowError, UnicodeError) as error:
        raise UserError(f"{path} is no CIFAR-10 batch: {error}.") from error
    if pixels.ndim != 2 or pixels.shape[1] != 3072 or len(pixels) != len(labels) or not labels:
        raise UserError(f"{path}: data of shape {list(pixels.shape)} with {len(labels)} labels is no CIFAR-10 batch.")
    if not all(type(label) is int and 0 <= label < NUM_CLASSES for label in labels):
        raise UserError(f"{path}: every label must be a class from 0 to {NUM_CLASSES - 1}.")
    return pixels.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64)


def _download(root: Path) -> None:
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import download_and_extract_archive

    logger.info("CIFAR-10 is not in %s: downloading it (163 MB)", root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        download_and_extract_archive(CIFAR10.url, str(root), filename=CIFAR10.filename, md5=CIFAR10.tgz_md5)
    except (OSError, RuntimeError, EOFError) as error:
        raise UserError(
            f"CIFAR-10 is not in {root / FOLDER} and cannot be downloaded ({error}): get {CIFAR10.filename} from "
            f"{CIFAR10.url} on another machine and unpack it in {root}, so that {root / FOLDER / BATCHES[0]} exists."
        ) from error


def _warn_unless_official(folder: Path) -> None:
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    official = dict((*CIFAR10.train_list, *CIFAR10.test_list))
    other = [name for name in BATCHES if not check_integrity(str(folder / name), official[name])]
    if other:
        logger.warning("%s: not the official CIFAR-10, the checksums of %s differ", folder, ", ".join(other))


def load_cifar10(root: Path, options: Options) -> Split:
    """CIFAR-10 from ``root/cifar-10-batches-py``, downloaded and verified where that folder is missing.

    Raises:
        UserError: no download, a file missing or damaged, or a number of queries that the classes cannot share.
    """
    folder = root / FOLDER
    if not folder.is_dir():
        _download(root)
    missing = [name for name in BATCHES if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder / missing[0]} is missing ({len(missing)} of {len(BATCHES)} batch files are): delete the folder "
            "and run again to download CIFAR-10 afresh."
        )
    _warn_unless_official(folder)
    batches = [read_batch(folder / name) for name in BATCHES]
    pixels = torch.from_numpy(np.concatenate([batch[0] for batch in batches]))
    targets = np.concatenate([batch[1] for batch in batches])

    counts = [per_class(options.num_query or NUM_QUERY, NUM_CLASSES, "cifar-10")] * NUM_CLASSES
    query, database = stratified_split(targets, counts, options.seed, "cifar-10", CLASS_NAMES)
    image_size = options.image_size or 224
    return make_split(
        "cifar-10",
        MemoryPixels(pixels),
        one_hot(targets, NUM_CLASSES),
        query,
        database,
        image_size=image_size,
        shorter_side=shorter_side_for(image_size),
        class_names=list(CLASS_NAMES),
        multi_label=False,
    )
