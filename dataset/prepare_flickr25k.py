"""Make the MIR-Flickr 25K lists from the official archives.

    python -m dataset.prepare_flickr25k mirflickr25k.zip mirflickr25k_annotations_v080.zip

docs/datasets.md describes the images and lists that it makes.
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

from data.flickr25k import FLICKR25K
from data.split import rest_of, sample_rows
from dataset.official_release import count_line, missing_lines, print_report, write_lists, write_names
from utils.command import Parser, bounded
from utils.errors import UserError

OUTPUT = Path("dataset/Flickr")
CONCEPTS = (
    *("animals", "baby", "bird", "car", "clouds", "dog", "female", "flower", "food", "indoor", "lake", "male"),
    *("night", "people", "plant_life", "portrait", "river", "sea", "sky", "structures", "sunset", "transport"),
    *("tree", "water"),
)
STRICT = (
    *("baby_r1", "bird_r1", "car_r1", "clouds_r1", "dog_r1", "female_r1", "flower_r1", "male_r1", "night_r1"),
    *("people_r1", "portrait_r1", "river_r1", "sea_r1", "tree_r1"),
)
NUM_IMAGES = 25_000
NUM_UNLABELLED = 419
NUM_TEST = 1_700

_IMAGE = re.compile(r"(?:mirflickr(?:25k)?/)?im([1-9][0-9]{0,5})\.jpg")
_LARGEST = 64 << 20  # bytes; the largest image of the release has 0.5 MB


def safe_members(archive: zipfile.ZipFile, path: Path) -> list[zipfile.ZipInfo]:
    """The members of an archive.

    Raises:
        UserError: two members have the same name, or a name would lead out of the folder that the archive is unpacked
            to.
    """
    for name, count in Counter(archive.namelist()).items():
        if count > 1:
            raise UserError(f"{path}: {count} members have the name {name!r}; download it again.")
    for info in archive.infolist():
        name = info.filename.replace("\\", "/")
        if name.startswith("/") or ".." in PurePosixPath(name).parts or re.match("[A-Za-z]:", name):
            raise UserError(f"{path}: the member {info.filename!r} leads out of the folder; download it again.")
    return archive.infolist()


def read_annotation(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> set[int]:
    """The image numbers in an annotation file, one per line.

    Raises:
        UserError: a line is not a number; the message names it.
    """
    numbers = set()
    for number, line in enumerate(archive.read(info).rstrip().split(b"\n"), 1):
        text = line.strip()
        if not text:
            continue
        if not text.isdigit() or len(text) > 6:
            shown = text[:20].decode("utf-8", "backslashreplace")
            raise UserError(f"{path}, {info.filename}, line {number}: {shown!r} is not an image number; restore it.")
        numbers.add(int(text))
    return numbers


def _same(target: Path, info: zipfile.ZipInfo) -> bool:
    try:
        return target.stat().st_size == info.file_size and zlib.crc32(target.read_bytes()) == info.CRC
    except OSError:
        return False


def _require_space(path: Path, images: Iterable[zipfile.ZipInfo], folder: Path) -> None:
    """UserError where the images of the archive `path` that are not yet in `folder` are larger than the free space."""
    size = sum(info.file_size for info in images if not (folder / PurePosixPath(info.filename).name).exists())
    parent = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(parent).free
    if size > free:
        raise UserError(
            f"{path}: the images need {size / 1e9:.1f} GB in {folder}, but {free / 1e9:.1f} GB are free; free some "
            "space or name another --output."
        )


def extract_images(archive: zipfile.ZipFile, images: dict[int, zipfile.ZipInfo], folder: Path) -> int:
    """Unpack ``im<N>.jpg`` to `folder`, except for images that are complete there; returns how many were written."""
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


def read_archive(path: Path, folder: Path) -> tuple[dict[str, set[int]], int]:
    """Unpack all images to `folder` and read all annotations: image numbers of each, number of images written.

    Raises:
        UserError: the archive is missing, damaged, unsafe, or of another dataset; an image could not be written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            images: dict[int, zipfile.ZipInfo] = {}
            texts: dict[str, zipfile.ZipInfo] = {}
            for info in safe_members(archive, path):
                stem = PurePosixPath(info.filename).stem
                if match := _IMAGE.fullmatch(info.filename):
                    images[int(match[1])] = info
                elif info.filename.endswith(".txt") and stem in (*CONCEPTS, *STRICT):
                    texts[stem] = info
            for info in (*images.values(), *texts.values()):
                if info.file_size > _LARGEST:
                    raise UserError(
                        f"{path}: {info.filename} has {info.file_size:,} bytes, not an image; download it again."
                    )
            if not images and not texts:
                raise UserError(
                    f"{path} has neither mirflickr/im<N>.jpg nor annotations; give the archives of MIR-Flickr 25K."
                )
            _require_space(path, images.values(), folder)
            annotations = {name: read_annotation(archive, info, path) for name, info in texts.items()}
            return annotations, extract_images(archive, images, folder) if images else 0
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path} is damaged or not a zip archive ({error}); download it again.") from error
    except OSError as error:
        where = error.filename or path
        raise UserError(f"{where} cannot be read or written: {error.strerror or error}.") from error


def prepare(
    archives: Sequence[Path], output: Path, labels: int = 38, keep_unlabelled: bool = False, seed: int = 0
) -> list[str]:
    """Unpack the archives to `output` and write the four lists there; returns the lines of the report.

    The archive of the images is not needed when they are unpacked. `seed` draws the test list.

    Raises:
        UserError: an archive is missing, damaged or unsafe; annotations or images are missing; the disk is full.
    """
    folder = output / FLICKR25K.images
    annotations: dict[str, set[int]] = {}
    written = 0
    for path in archives:
        more, count = read_archive(path, folder)
        annotations |= more
        written += count
    columns = CONCEPTS + (STRICT if labels == 38 else ())
    missing = [name for name in columns if name not in annotations]
    if missing:
        raise UserError(
            f"{len(missing)} of {labels} annotations are in none of the archives, such as {missing[0]}.txt; "
            "give mirflickr25k_annotations_v080.zip too" + (", or --labels 24." if labels == 38 else ".")
        )
    there = {int(match[1]) for path in folder.glob("im*.jpg") if (match := _IMAGE.fullmatch(path.name))}
    if not there:
        raise UserError(f"{folder} has no im<N>.jpg; give mirflickr25k.zip too.")

    labelled = set().union(*(annotations[name] for name in columns))
    absent = [f"im{number}.jpg" for number in sorted(labelled - there)]
    kept = sorted(there if keep_unlabelled else there & labelled)
    if len(kept) < 2:
        raise UserError(f"{folder}: only {len(kept)} image has a label; give archives and images of the same release.")
    rows = np.stack([np.isin(kept, list(annotations[name])) for name in columns], axis=1).astype(int)  # [n, C]

    num_test = NUM_TEST if len(kept) >= 2 * NUM_TEST else max(1, round(len(kept) * NUM_TEST / NUM_IMAGES))
    test = sample_rows(len(kept), num_test, seed, "flickr25k test list")
    for files, chosen in zip(FLICKR25K.lists, (rest_of(len(kept), test), test), strict=True):
        names = [f"{FLICKR25K.images}/im{kept[row]}.jpg" for row in chosen.tolist()]
        write_lists(output, files, names, rows[chosen])
    write_names(output / FLICKR25K.class_names, columns)

    expected = NUM_IMAGES - (0 if keep_unlabelled else NUM_UNLABELLED)
    return [
        f"MIR-Flickr 25K with {labels} labels, written to {output}:",
        count_line("images", len(there), NUM_IMAGES) + f", {written:,} of them unpacked now",
        f"  images without a label, {'kept' if keep_unlabelled else 'dropped'}: {len(there - labelled):,}",
        f"  missing images with a label, dropped: {len(absent):,}",
        count_line("images in the lists", len(kept), expected),
        count_line("database list", len(kept) - num_test, expected - NUM_TEST),
        count_line("test list", num_test, NUM_TEST),
        *missing_lines(absent),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    name = f"python -m dataset.{FLICKR25K.command}"
    parser = Parser(prog=name, description="Make the lists of MIR-Flickr 25K from the official archives.")
    parser.add_argument("archives", nargs="+", type=Path, metavar="ZIP", help="the archives, in any order")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT, metavar="DIR", help=f"images and lists [{OUTPUT}]")
    parser.add_argument("--labels", type=int, choices=(24, 38), default=38, help="24: without the *_r1 labels [38]")
    parser.add_argument("--keep-unlabelled", action="store_true", help="keep images that have no label")
    parser.add_argument("--seed", type=bounded(int, 0), default=0, help="seed that draws the test list [0]")
    return print_report(parser, arguments, prepare)


if __name__ == "__main__":
    sys.exit(main())
