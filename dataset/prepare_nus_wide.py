"""Make the NUS-WIDE lists with the 21 and with the 10 most frequent concepts from the official release.

    python -m dataset.prepare_nus_wide dataset/NUS-WIDE

The folder needs ``Groundtruth/AllLabels/Labels_<concept>.txt`` and ``ImageList/Imagelist.txt`` of the release, and the
images as ``images/<concept>/<image>.jpg`` or ``images/<image>.jpg``. The release has only the addresses of the images,
and many are gone: missing images are dropped and counted, and so are images with none of the concepts.

The label columns are the concepts in descending order of frequency (in the complete ground truth), so that the columns
of tc10 are the first 10 of tc21; ``concepts_tc21.txt`` and ``concepts_tc10.txt`` name them. The tc21 test list has 100
images per concept, drawn by the seed from the rarest concept on, no image twice; the authors' own 2,100 images are not
published. All lists are in the order of the image list of the release.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.image_files import find_files
from data.list_files import read_labels, read_names
from data.nus_wide import IMAGES, TC10, TC21_DATABASE, TC21_QUERY
from data.split import rest_of, sample_rows
from dataset.official_release import count_line, print_report, write_label_rows, write_names
from utils.command import Parser, bounded
from utils.errors import UserError

NAME = "python -m dataset.prepare_nus_wide"
NUM_IMAGES = 269_648
NUM_CONCEPTS = 81
NUM_TC21 = 195_834
NUM_TC10 = 186_577
TEST_PER_CONCEPT = 100


def read_column(path: Path) -> np.ndarray:
    """The ground truth of one concept, 0 or 1 per line: uint8 [n].

    Raises:
        UserError: the file cannot be read, or a line is neither; the message names it.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    digits = np.frombuffer(b"".join(content.split()), dtype=np.uint8) - ord("0")
    if len(digits) == content.rstrip().count(b"\n") + 1 and digits.max() <= 1:
        return digits
    return read_labels(path, {1})[:, 0].numpy().astype(np.uint8)  # slower, but names the wrong line


def read_ground_truth(folder: Path) -> tuple[list[str], np.ndarray]:
    """The concepts in alphabetical order, and their labels, uint8 [n, concepts].

    Raises:
        UserError: files are missing, malformed, or of different lengths.
    """
    place = folder / "Groundtruth" / "AllLabels"
    files = sorted(place.glob("Labels_*.txt"))
    if len(files) < 21:
        raise UserError(
            f"{place} has {len(files)} files Labels_<concept>.txt, but 21 are needed ({NUM_CONCEPTS} in the release); "
            "unpack Groundtruth of the release there."
        )
    columns = [read_column(path) for path in files]
    for path, column in zip(files, columns, strict=True):
        if len(column) != len(columns[0]):
            raise UserError(f"{path} has {len(column)} lines, {files[0].name} has {len(columns[0])}; unpack it again.")
    return [path.stem.removeprefix("Labels_") for path in files], np.stack(columns, axis=1)


def find_images(folder: Path, names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The path of each image in `folder`, and whether it exists: bool [n]."""
    threads = os.cpu_count() or 1
    nested = [f"{IMAGES}/{name}" for name in names]
    there = find_files(folder, nested, threads)[:, 0] >= 0
    if not there.all():
        flat = [f"{IMAGES}/{name.rsplit('/', 1)[-1]}" for name in names]
        missing = np.flatnonzero(~there).tolist()
        for row, length in zip(missing, find_files(folder, [flat[row] for row in missing], threads)[:, 0], strict=True):
            if length >= 0:
                nested[row], there[row] = flat[row], True
    return nested, there


def draw_test(labels: np.ndarray, per_concept: int, seed: int) -> np.ndarray:
    """`per_concept` rows per column, from the rarest (last) column on, no row twice: int64, ascending."""
    free = np.ones(len(labels), dtype=bool)
    for concept in reversed(range(labels.shape[1])):
        members = np.flatnonzero(free & (labels[:, concept] == 1))
        free[members[sample_rows(len(members), per_concept, seed, "nus-wide test list", concept)]] = False
    return np.flatnonzero(~free)


def prepare(folder: Path, keep_missing: bool = False, seed: int = 0) -> list[str]:
    """Write the lists of both protocols to `folder`.

    Args:
        folder: contains Groundtruth/, ImageList/ and images/.
        keep_missing: list missing images, too.
        seed: draws the tc21 test list.

    Returns:
        The lines of the report.

    Raises:
        UserError: a part of the release is missing or malformed; there are no images or too few; the disk is full.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name the one that contains Groundtruth, ImageList and {IMAGES}.")
    concepts, labels = read_ground_truth(folder)
    image_lists = [path for path in folder.glob("ImageList/*.txt") if path.name.lower() == "imagelist.txt"]
    if not image_lists:
        raise UserError(f"{folder / 'ImageList' / 'Imagelist.txt'} is missing; unpack ImageList of the release there.")
    names = read_names(image_lists[0])
    if len(names) != len(labels):
        raise UserError(
            f"{image_lists[0]} has {len(names)} lines, the files in {folder / 'Groundtruth' / 'AllLabels'} have "
            f"{len(labels)}; both must be of the complete release."
        )
    names, there = find_images(folder, names)
    if not there.any() and not keep_missing:
        raise UserError(
            f"None of the {len(names)} images is in {folder / IMAGES}; put them there as <concept>/<image>.jpg or "
            "<image>.jpg, or list them anyway with --keep-missing."
        )
    usable = np.ones(len(names), dtype=bool) if keep_missing else there
    order = np.argsort(-labels.sum(0, dtype=np.int64), kind="stable")
    report = [
        f"NUS-WIDE, written to {folder}:",
        count_line("images in the ground truth", len(names), NUM_IMAGES),
        count_line("concepts", len(concepts), NUM_CONCEPTS),
        f"  missing images, {'listed anyway' if keep_missing else 'dropped'}: {(~there).sum():,}",
    ]
    for width, expected in ((21, NUM_TC21), (10, NUM_TC10)):
        columns = order[:width]
        concerned = labels[:, columns].any(1)
        kept = np.flatnonzero(concerned & usable)
        rows = labels[np.ix_(kept, columns)]
        if len(kept) < 2:
            raise UserError(f"{folder / IMAGES}: only {len(kept)} image has one of the {width} concepts; add images.")
        report.append(
            f"  tc{width}: {(~concerned).sum():,} images with none of the {width} concepts dropped, "
            f"{(concerned & ~usable).sum():,} more because the image is missing"
        )
        report.append(count_line(f"tc{width} images", len(kept), expected))
        write_names(folder / f"concepts_tc{width}.txt", [concepts[column] for column in columns.tolist()])
        if width == 10:
            parts = [(TC10, np.arange(len(kept)))]
        else:
            per_concept = TEST_PER_CONCEPT if len(kept) >= 4200 else max(1, len(kept) // 210)
            test = draw_test(rows, per_concept, seed)
            parts = [(TC21_DATABASE, rest_of(len(kept), test)), (TC21_QUERY, test)]
            report.append(count_line("tc21 database list", len(kept) - len(test), NUM_TC21 - 21 * TEST_PER_CONCEPT))
            report.append(count_line("tc21 test list", len(test), 21 * TEST_PER_CONCEPT))
            if not len(parts[0][1]):
                raise UserError(
                    f"{folder / IMAGES}: {len(kept)} images of the 21 concepts are too few for a test list; add images."
                )
        for (names_file, labels_file), chosen in parts:
            write_names(folder / names_file, [names[kept[row]] for row in chosen.tolist()])
            write_label_rows(folder / labels_file, rows[chosen])
    missing = np.flatnonzero(~there)
    if len(missing):
        report.append("  the first missing images: " + ", ".join(names[row] for row in missing[:10].tolist()))
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with the given command line; returns the exit status (`utils.command.run_command`)."""

    def work() -> list[str]:
        parser = Parser(prog=NAME, description="Make the lists of NUS-WIDE from the official release.")
        parser.add_argument("folder", type=Path, metavar="DIR", help=f"contains Groundtruth, ImageList and {IMAGES}")
        parser.add_argument("--keep-missing", action="store_true", help="list missing images, too")
        parser.add_argument("--seed", type=bounded(int, 0), default=0, help="seed that draws the tc21 test list [0]")
        given = parser.parse_args(arguments)
        return prepare(given.folder, given.keep_missing, given.seed)

    return print_report(NAME, work)


if __name__ == "__main__":
    sys.exit(main())
