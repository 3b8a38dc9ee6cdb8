"""Make the NUS-WIDE lists with the 21 and with the 10 most frequent concepts from the official release.

    python -m dataset.prepare_nus_wide dataset/NUS-WIDE

docs/datasets.md describes what the folder needs and the lists that it makes. The label columns of tc10 are the first 10
of tc21. All lists are in the order of the image list of the release.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from data.image_files import find_files
from data.list_files import read_labels
from data.name_lists import read_names
from data.nus_wide import TC10, TC21
from data.split import rest_of, sample_rows
from dataset.official_release import count_line, missing_lines, print_report, write_lists, write_names
from utils.command import Parser, bounded
from utils.errors import UserError

NUM_IMAGES = 269_648
NUM_CONCEPTS = 81
NUM_TC21 = 195_834
NUM_TC10 = 186_577
TEST_PER_CONCEPT = 100


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
    columns = [read_labels(path, {1}) for path in files]
    for path, column in zip(files, columns, strict=True):
        if len(column) != len(columns[0]):
            raise UserError(f"{path} has {len(column)} lines, {files[0].name} has {len(columns[0])}; unpack it again.")
    return [path.stem.removeprefix("Labels_") for path in files], torch.cat(columns, dim=1).byte().numpy()


def find_images(folder: Path, names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The path of each image in `folder`, and whether it exists: bool [n]."""
    nested = [f"{TC21.images}/{name}" for name in names]
    flat = [f"{TC21.images}/{name.rsplit('/', 1)[-1]}" for name in names]
    in_nested, in_flat = (find_files(folder, paths, os.cpu_count() or 1)[:, 0] >= 0 for paths in (nested, flat))
    return np.where(in_flat & ~in_nested, flat, nested).tolist(), in_nested | in_flat


def draw_test(labels: np.ndarray, per_concept: int, seed: int) -> np.ndarray:
    """`per_concept` rows per column, from the rarest (last) column on, no row twice: int64, ascending."""
    free = np.ones(len(labels), dtype=bool)
    for concept in reversed(range(labels.shape[1])):
        members = np.flatnonzero(free & (labels[:, concept] == 1))
        free[members[sample_rows(len(members), per_concept, seed, "nus-wide test list", concept)]] = False
    return np.flatnonzero(~free)


def prepare(folder: Path, keep_missing: bool = False, seed: int = 0) -> list[str]:
    """Write the lists of both protocols to `folder`; returns the lines of the report. `seed` draws the tc21 test list.

    Raises:
        UserError: a part of the release is missing or malformed; there are no images or too few; the disk is full.
    """
    images = folder / TC21.images
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name the one that contains Groundtruth, ImageList and images.")
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
            f"None of the {len(names)} images is in {images}; put them there as <concept>/<image>.jpg or "
            "<image>.jpg, or list them anyway with --keep-missing."
        )
    usable = there | keep_missing
    order = np.argsort(-labels.sum(0, dtype=np.int64), kind="stable")
    report = [
        f"NUS-WIDE, written to {folder}:",
        count_line("images in the ground truth", len(names), NUM_IMAGES),
        count_line("concepts", len(concepts), NUM_CONCEPTS),
        f"  missing images, {'listed anyway' if keep_missing else 'dropped'}: {(~there).sum():,}",
    ]
    for dataset, width, expected in ((TC21, 21, NUM_TC21), (TC10, 10, NUM_TC10)):
        columns = order[:width]
        concerned = labels[:, columns].any(1)
        kept = np.flatnonzero(concerned & usable)
        rows = labels[np.ix_(kept, columns)]
        if len(kept) < 2:
            raise UserError(f"{images}: only {len(kept)} image has one of the {width} concepts; add images.")
        report += [
            f"  tc{width}: {(~concerned).sum():,} images with none of the {width} concepts dropped, "
            f"{(concerned & ~usable).sum():,} more because the image is missing",
            count_line(f"tc{width} images", len(kept), expected),
        ]
        write_names(folder / dataset.class_names, [concepts[column] for column in columns.tolist()])
        parts = [np.arange(len(kept))]
        if dataset is TC21:
            per_concept = TEST_PER_CONCEPT if len(kept) >= 4200 else max(1, len(kept) // 210)
            test = draw_test(rows, per_concept, seed)
            parts = [rest_of(len(kept), test), test]
            report += [
                count_line("tc21 database list", len(parts[0]), NUM_TC21 - 21 * TEST_PER_CONCEPT),
                count_line("tc21 test list", len(test), 21 * TEST_PER_CONCEPT),
            ]
            if not len(parts[0]):
                raise UserError(
                    f"{images}: {len(kept)} images of the 21 concepts are too few for a test list; add images."
                )
        for files, chosen in zip(dataset.lists, parts, strict=True):
            write_lists(folder, files, [names[kept[row]] for row in chosen.tolist()], rows[chosen])
    return report + missing_lines([names[row] for row in np.flatnonzero(~there).tolist()])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    name = f"python -m dataset.{TC21.command}"
    parser = Parser(prog=name, description="Make the lists of NUS-WIDE from the official release.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="contains Groundtruth, ImageList and images")
    parser.add_argument("--keep-missing", action="store_true", help="list missing images, too")
    parser.add_argument("--seed", type=bounded(int, 0), default=0, help="seed that draws the tc21 test list [0]")
    return print_report(parser, arguments, prepare)


if __name__ == "__main__":
    sys.exit(main())
