"""`python -m utils.encode`: codes of any images by a trained run (docs/encode.md)."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from data.class_folders import images_below
from data.decode import EXTENSIONS
from data.text_lists import read_names

from .devices import choose_device
from .encode_files import encode_files
from .errors import UserError
from .interrupt import Interrupted
from .trained import TrainedModel, export_model, load_model, require_place, write_file

_LABELS = re.compile(r"(\s+\d+)+$")
_NAMES_AT_ONCE = 4096


def find_images(inputs: Iterable[str]) -> list[str]:
    """File names of all images that `inputs` stand for, each such that it can be opened from here.

    Args:
        inputs: image files, taken as they are; folders, with every image below them, sorted; lists (`.txt`), a path a
            line, relative to the list's folder.

    Raises:
        UserError: an input is not there, a list is malformed (`data.text_lists.read_names`), or there is no image.
    """
    inputs = list(inputs)
    found: list[str] = []
    for given in inputs:
        if os.path.isdir(given):
            found += [os.path.join(given, name) for name in images_below(Path(given), "")]
        elif not os.path.exists(given):
            raise UserError(f"{given}: there is no such file or folder.")
        elif given.lower().endswith(".txt"):
            folder = os.path.dirname(given)
            found += [os.path.join(folder, without_labels(name)) for name in read_names(Path(given))]
        else:
            found.append(given)
    if not found:
        raise UserError(f"{', '.join(inputs)}: no image found; name image files, folders that hold some, or lists.")
    return found


def without_labels(line: str) -> str:
    """A list's line without the whole numbers behind the name: ``a b.jpg 0 1 0`` → ``a b.jpg``."""
    name = _LABELS.sub("", line)
    is_image = os.path.splitext(name)[1].lower() in EXTENSIONS
    return name if is_image else line


def write_codes(file: IO[bytes], names: Sequence[str], codes: np.ndarray, trained: TrainedModel) -> None:
    """Write the npz (docs/encode.md): the same content gives the same bytes. `codes` is uint8 [n, ceil(K/8)]."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        _write_array(archive, "codes", codes.dtype, codes.shape, [codes])
        # Every name takes as many characters as the longest: a million of them at once would fill the memory.
        dtype = np.dtype(f"<U{max(map(len, names), default=1)}")
        chunks = (names[start : start + _NAMES_AT_ONCE] for start in range(0, len(names), _NAMES_AT_ONCE))
        _write_array(archive, "names", dtype, (len(names),), (np.array(chunk, dtype=dtype) for chunk in chunks))
        for name, value in (
            ("code_length", trained.code_length),
            ("settings", json.dumps(trained.summary)),
            ("fingerprint", trained.fingerprint),
        ):
            array = np.array(value)
            _write_array(archive, name, array.dtype, (), [array])


def _write_array(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], parts: Iterable[np.ndarray]
) -> None:
    info = zipfile.ZipInfo(f"{name}.npy")  # its time is a constant
    info.compress_type = zipfile.ZIP_DEFLATED
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(info, "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for part in parts:
            member.write(part.tobytes())


def encode_to_file(
    trained: TrainedModel, paths: Sequence[str], output: Path, *, batch_size: int, device: Any, num_workers: int
) -> tuple[int, int]:
    """Hash files and write the npz; images that cannot be read are named on stderr. Returns (written, skipped).

    Raises:
        UserError: no image could be read, or the file cannot be written.
    """
    skipped = 0

    def skip(name: str, reason: str) -> None:
        nonlocal skipped
        skipped += 1
        tqdm.write(f"{name}: skipped ({reason})", file=sys.stderr)

    names: list[str] = []
    packed = bytearray()
    for batch, codes in encode_files(
        trained, paths, batch_size=batch_size, device=device, num_workers=num_workers, on_bad_image=skip
    ):
        names += batch
        packed += codes.tobytes()
    if not names:
        raise UserError(f"None of the {skipped} images could be read; nothing was written.")
    rows = np.frombuffer(packed, dtype=np.uint8).reshape(len(names), -1)
    write_file(output, lambda file: write_codes(file, names, rows, trained), "--output")
    return len(names), skipped


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m utils.encode", description="Hash any images by a trained run.")
    parser.add_argument("model", metavar="RUN_FOLDER", help="a run's folder, or a model written by --export")
    parser.add_argument(
        "images", nargs="*", metavar="IMAGES", help="image files, folders, or lists (.txt) with a path a line"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("codes.npz"), metavar="FILE", help="what to write [codes.npz]"
    )
    parser.add_argument("--code-length", type=int, metavar="K", help="bits, where the run has models of several")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images at once on a GPU [64]")
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda or cuda:N [auto]")
    parser.add_argument(
        "--num-workers", type=int, default=0, metavar="N", help="threads that read images ahead; 0: one a processor"
    )
    parser.add_argument(
        "--export", type=Path, metavar="FILE", help="write the model alone, in half precision, and encode nothing"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with the given command line; returns the exit status: 0, 2 for what the user can mend, 130 or 143."""
    options = _parser().parse_args(arguments)
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        _run(options)
    except UserError as error:
        print(f"python -m utils.encode: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Interrupted) as error:
        stopped = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
        print(f"python -m utils.encode: stopped by {stopped}; nothing was written.", file=sys.stderr)
        return stopped.status
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _stop(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


def _run(options: argparse.Namespace) -> None:
    for flag, value, least in (
        ("--batch-size", options.batch_size, 1),
        ("--num-workers", options.num_workers, 0),
        ("--code-length", 1 if options.code_length is None else options.code_length, 1),
    ):
        if value < least:
            raise UserError(f"{flag} {value}: must be {least} or more.")
    if options.export is not None:
        if options.images:
            raise UserError(f"--export {options.export} encodes nothing; leave the images out, or the flag.")
        require_place(options.export, "--export")
        export_model(load_model(options.model, options.code_length), options.export)
        print(f"Written to {options.export} ({options.export.stat().st_size / 1e6:.1f} MB)")
        return
    if not options.images:
        raise UserError("no images given; name image files, folders or lists behind the run's folder.")
    device = choose_device(options.device)
    require_place(options.output, "--output")
    paths = find_images(options.images)
    trained = load_model(options.model, options.code_length)
    written, skipped = encode_to_file(
        trained,
        paths,
        options.output,
        batch_size=options.batch_size,
        device=device,
        num_workers=options.num_workers,
    )
    left_out = f", {skipped:,} skipped" if skipped else ""
    print(f"{written:,} images in {trained.code_length} bits{left_out}: written to {options.output}")
