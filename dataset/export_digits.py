"""Write scikit-learn's handwritten digits as PNG files, one folder per class, to try the search without own photos.

    python -m dataset.export_digits DIR

``DIR/7/0123.png`` is image 123 of 1,797 and shows a 7. It has 64 × 64 pixels and is the same image as in the dataset
``digits`` (data/digits.py). ``--part query`` writes only the 300 images that are queries in a run with the same
``--seed``, ``--part database`` only the others.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from data import Options, load_data
from dataset.official_release import print_report
from utils.command import Parser, bounded
from utils.errors import UserError

NAME = "python -m dataset.export_digits"
PARTS = ("all", "query", "database")


def export(folder: Path, part: str = "all", seed: int = 0, image_size: int = 64) -> list[str]:
    """Write the images to ``folder/<class>/``.

    Args:
        folder: is created.
        part: one of `PARTS`.
        seed: of the split.
        image_size: side of the images in pixels.

    Returns:
        The lines of the report.

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
                Image.fromarray(half.pixels([place])[0].permute(1, 2, 0).numpy()).save(path)
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror or error}); name another folder.") from error
    return [f"{sum(map(len, halves)):,} images of {split.num_classes} classes written to {folder}"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with the given command line; returns the exit status (`utils.command.run_command`)."""

    def work() -> list[str]:
        parser = Parser(prog=NAME, description="Write scikit-learn's digits as PNG files, one folder per class.")
        parser.add_argument("folder", type=Path, metavar="DIR", help="folder for the folders 0 to 9; is created")
        parser.add_argument("--part", choices=PARTS, default="all", help="all images, or the queries or database [all]")
        parser.add_argument("--seed", type=bounded(int, 0), default=0, help="seed of the split into these parts [0]")
        given = parser.parse_args(arguments)
        return export(given.folder, given.part, given.seed)

    return print_report(NAME, work)


if __name__ == "__main__":
    sys.exit(main())
