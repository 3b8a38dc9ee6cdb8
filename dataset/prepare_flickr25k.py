"""Make the MIR-Flickr 25K lists from the official archives.

    python -m dataset.prepare_flickr25k mirflickr25k.zip mirflickr25k_annotations_v080.zip

Images are unpacked to ``DIR/mirflickr/im<N>.jpg``. The label columns are the 24 concepts in alphabetical order, then
(unless ``--labels 24``) the 14 stricter annotations ``*_r1`` in alphabetical order; ``concepts.txt`` names them. Images
with no label are dropped, as are those that are not there. Of the rest, in the order of their numbers, 1,700 drawn
by the seed make the test list, the others the database list. The authors' own division is not published: for the
protocol this does not matter, since it pools both lists.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

from data.flickr25k import DATABASE, IMAGES, QUERY
from data.split import rest_of, sample_rows
from dataset.official_release import count_line, run_command, write_label_rows, write_names
from utils.errors import UserError

CONCEPTS = (
    *("animals", "baby", "bird", "car", "clouds", "dog", "female", "flower", "food", "indoor", "lake", "male"),
    *("night", "people", "plant_life", "portrait", "river", "sea", "sky", "structures", "sunset", "transport"),
    *("tree", "water"),
)
_WITH_STRICT = ("baby", "bird", "car", "clouds", "dog", "female", "flower", "male", "night", "people", "portrait",
                "river", "sea", "tree")  # fmt: skip
STRICT = tuple(f"{name}_r1" for name in _WITH_STRICT)
NUM_IMAGES = 25_000
NUM_UNLABELLED = 419
NUM_TEST = 1_700

_IMAGE = re.compile(r"(?:mirflickr(?:25k)?/)?im([1-9][0-9]{0,5})\.jpg")
_LARGEST = 64 << 20  # bytes; the release's largest image has 0.5 MB


def safe_members(archive: zipfile.ZipFile, path: Path) -> list[zipfile.ZipInfo]:
    """The archive's members; UserError where a name would lead out of the folder it is unpacked to."""
    for info in archive.infolist():
        name = info.filename.replace("\\", "/")
        if name.startswith("/") or ".." in PurePosixPath(name).parts or re.match("[A-Za-z]:", name):
            raise UserError(f"{path} holds the member {info.filename!r}, which leads out of the folder: not unpacked.")
    return archive.infolist()


def read_annotation(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> set[int]:
    """The image numbers in one annotation file, one a line."""
    numbers = set()
    for number, line in enumerate(archive.read(info).split(b"\n"), 1):
        text = line.strip()
        if not text:
            continue
        if not text.isdigit() or len(text) > 6:
            shown = text[:20].decode("utf-8", "backslashreplace")
            raise UserError(f"{path}, {info.filename}, line {number}: {shown!r} is not an image number.")
        numbers.add(int(text))
    return numbers


def _same(target: Path, info: zipfile.ZipInfo) -> bool:
    try:
        return target.stat().st_size == info.file_size and zlib.crc32(target.read_bytes()) == info.CRC
    except OSError:
        return False


def extract_images(archive: zipfile.ZipFile, images: dict[int, zipfile.ZipInfo], folder: Path) -> int:
    """Unpack ``im<N>.jpg`` to `folder`; those already there whole are left. Returns how many were written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = 0
    for number in tqdm(sorted(images), desc="Unpacking", unit="image", disable=None, leave=False):
        target = folder / f"im{number}.jpg"
        if _same(target, images[number]):
            continue
        part = target.with_name(f"{target.name}.part")
        try:
            part.write_bytes(archive.read(images[number]))
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
        written += 1
    return written


def read_archives(paths: Sequence[Path], folder: Path) -> tuple[dict[str, set[int]], int]:
    """Unpack all images and read all annotations: (numbers of each annotation, images written)."""
    annotations: dict[str, set[int]] = {}
    written = 0
    for path in paths:
        try:
            with zipfile.ZipFile(path) as archive:
                images: dict[int, zipfile.ZipInfo] = {}
                found = 0
                for info in safe_members(archive, path):
                    match = _IMAGE.fullmatch(info.filename)
                    stem = PurePosixPath(info.filename).stem
                    is_annotation = info.filename.endswith(".txt") and stem in (*CONCEPTS, *STRICT)
                    if (match or is_annotation) and info.file_size > _LARGEST:
                        raise UserError(f"{path}: {info.filename} has {info.file_size:,} bytes; that is no image.")
                    if match:
                        images[int(match[1])] = info
                    elif is_annotation:
                        annotations[stem] = read_annotation(archive, info, path)
                        found += 1
                if not images and not found:
                    raise UserError(
                        f"{path} holds neither mirflickr/im<N>.jpg nor annotations: is it of MIR-Flickr 25K?"
                    )
                if images:
                    written += extract_images(archive, images, folder)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise UserError(f"{path} is damaged or is no zip archive ({error}): download it again.") from error
        except OSError as error:
            where = error.filename or path
            raise UserError(f"{where} cannot be read or written: {error.strerror or error}.") from error
    return annotations, written


def prepare(archives: Sequence[Path], output: Path, labels: int = 38, keep_unlabelled: bool = False,
            seed: int = 0) -> list[str]:  # fmt: skip
    """Unpack the archives below `output` and write the four lists there.

    Args:
        archives: the images' and the annotations' archive; the former is not needed once its images are unpacked.
        labels: 38, or 24: without the stricter annotations.
        keep_unlabelled: keep the images that have no label.
        seed: draws the test list.

    Returns: the report, line by line.

    Raises:
        UserError: an archive is missing, damaged or unsafe; annotations are missing; there are no images.
    """
    folder = output / IMAGES
    annotations, written = read_archives(archives, folder)
    columns = CONCEPTS + (STRICT if labels == 38 else ())
    missing = [name for name in columns if name not in annotations]
    if missing:
        raise UserError(
            f"{len(missing)} of {labels} annotations are in none of the archives, {missing[0]}.txt among them: "
            "give mirflickr25k_annotations_v080.zip too" + (", or --labels 24." if labels == 38 else ".")
        )
    there = {int(match[1]) for path in folder.glob("im*.jpg") if (match := _IMAGE.fullmatch(path.name))}
    if not there:
        raise UserError(f"{folder} holds no im<N>.jpg: give mirflickr25k.zip too.")

    labelled = set().union(*(annotations[name] for name in columns))
    absent = labelled - there
    kept = sorted(there if keep_unlabelled else there & labelled)
    if len(kept) < 2:
        raise UserError(f"Only {len(kept)} image in {folder} has a label: are archives and images of one release?")
    row_of = {number: row for row, number in enumerate(kept)}
    rows = np.zeros((len(kept), len(columns)), dtype=np.uint8)
    for column, name in enumerate(columns):
        rows[[row_of[number] for number in annotations[name] if number in row_of], column] = 1

    num_test = NUM_TEST if len(kept) >= 2 * NUM_TEST else max(1, round(len(kept) * NUM_TEST / NUM_IMAGES))
    test = sample_rows(len(kept), num_test, seed, "flickr25k test list")
    for (names_file, labels_file), chosen in ((DATABASE, rest_of(len(kept), test)), (QUERY, test)):
        write_names(output / names_file, [f"{IMAGES}/im{kept[row]}.jpg" for row in chosen.tolist()])
        write_label_rows(output / labels_file, rows[chosen])
    write_names(output / "concepts.txt", columns)

    unlabelled = len(there - labelled)
    expected = NUM_IMAGES - (0 if keep_unlabelled else NUM_UNLABELLED)
    report = [
        f"MIR-Flickr 25K with {labels} labels, written to {output}:",
        count_line("images", len(there), NUM_IMAGES) + f", {written:,} of them unpacked now",
        f"  images without a label, {'kept' if keep_unlabelled else 'dropped'}: {unlabelled:,}",
        f"  labelled images that are not there, dropped: {len(absent):,}",
        count_line("images in the lists", len(kept), expected),
        count_line("database list", len(kept) - num_test, expected - NUM_TEST),
        count_line("test list", num_test, NUM_TEST),
    ]
    if absent:
        report.append(f"  the first that are not there: {', '.join(f'im{n}.jpg' for n in sorted(absent)[:10])}")
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dataset.prepare_flickr25k", description="Make the MIR-Flickr 25K lists from the archives."
    )
    parser.add_argument("archives", nargs="+", type=Path, metavar="ZIP", help="mirflickr25k.zip and the annotations")
    parser.add_argument("-o", "--output", type=Path, default=Path("dataset/Flickr"), metavar="DIR",
                        help="folder for images and lists [dataset/Flickr]")  # fmt: skip
    parser.add_argument("--labels", type=int, choices=(24, 38), default=38,
                        help="38 annotations, or the 24 concepts without the stricter ones [38]")  # fmt: skip
    parser.add_argument("--keep-unlabelled", action="store_true", help="keep images that have no label")
    parser.add_argument("--seed", type=int, default=0, help="draws the test list [0]")
    return run_command(
        parser, arguments, lambda got: prepare(got.archives, got.output, got.labels, got.keep_unlabelled, got.seed)
    )


if __name__ == "__main__":
    sys.exit(main())
