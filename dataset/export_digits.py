"""Write scikit-learn's handwritten digits as PNG files, one folder per class, to try the search without own photos.

    python -m dataset.export_digits DIR

``DIR/7/0123.png`` is image 123 of 1,797 and shows a 7, as in the dataset ``digits`` (64 × 64 pixels). ``--part query``
writes only the 300 images that are queries in a run with the same ``--seed``, ``--part database`` only the others.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from data import Options, load_data
from dataset.official_release import print_report
from utils.command import Parser, bounded
from utils.errors import UserError
from utils.files import write_file

PARTS = ("all", "query", "database")


def export(folder: Path, part: str = "all", seed: int = 0, image_size: int = 64) -> list[str]:
    """Write one of `PARTS` to ``folder/<class>/``, in images of `image_size` pixels; returns the lines of the report.

    Raises:
        UserError: a file could not be written.
    """
    split = load_data("digits", folder, Options(image_size=image_size, seed=seed))
    halves = {"all": (split.query, split.database), "query": (split.query,), "database": (split.database,)}[part]
    try:
        for half in halves:
            classes = half.labels.argmax(1).tolist()
            for place, (row, label) in enumerate(zip(half.rows.tolist(), classes, strict=True)):
                path = folder / str(label) / f"{row:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image = Image.fromarray(half.pixels([place])[0].permute(1, 2, 0).numpy())
                write_file(path, partial(image.save, format="PNG"), "DIR")
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror or error}); name another folder.") from error
    return [f"{sum(map(len, halves)):,} images of {split.num_classes} classes written to {folder}"]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    name = "python -m dataset.export_digits"
    parser = Parser(prog=name, description="Write scikit-learn's digits as PNG files, one folder per class.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder for the folders 0 to 9; is created")
    parser.add_argument("--part", choices=PARTS, default="all", help="all images, or the queries or database [all]")
    parser.add_argument("--seed", type=bounded(int, 0), default=0, help="seed of the split into these parts [0]")
    return print_report(parser, arguments, export)


if __name__ == "__main__":
    sys.exit(main())
