"""Write scikit-learn's handwritten digits as PNG files in class folders: a collection for those without photos at hand.

    python -m dataset.export_digits DIR

``DIR/7/0123.png`` is image 123 of 1,797 and shows a 7, enlarged to 64 × 64 pixels as the project's own ``digits`` are
(data/digits.py): a run on them sees in the files what it saw in training. ``--part query`` writes only the 300 images
that a run with that ``--seed`` has as queries, ``--part database`` the others.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from data import Options, load_data
from dataset.official_release import run_command
from utils.errors import UserError

PARTS = ("all", "query", "database")


def export(folder: Path, part: str = "all", seed: int = 0, image_size: int = 64) -> list[str]:
    """Write the images below `folder`. Returns the report, line by line.

    Raises:
        UserError: the files cannot be written.
    """
    split = load_data("digits", folder, Options(image_size=image_size, seed=seed))
    written = 0
    try:
        for half in {"all": (split.query, split.database), "query": (split.query,)}.get(part, (split.database,)):
            classes = half.labels.argmax(1).tolist()
            for place, (row, label) in enumerate(zip(half.rows.tolist(), classes, strict=True)):
                path = folder / str(label) / f"{row:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(half.pixels([place])[0].permute(1, 2, 0).numpy()).save(path)
                written += 1
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error.strerror or error}.") from error
    return [f"{written:,} images of {split.num_classes} classes written to {folder}"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with the given command line; returns the exit status: 0, or 2 for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m dataset.export_digits", description="Write scikit-learn's digits as PNG files in class folders."
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to write 0/ to 9/")
    parser.add_argument("--part", choices=PARTS, default="all", help="all, or a run's queries or database [all]")
    parser.add_argument("--seed", type=int, default=0, help="of the run whose queries are meant [0]")
    return run_command(parser, arguments, lambda given: export(given.folder, given.part, given.seed))


if __name__ == "__main__":
    sys.exit(main())
