"""`python -m search encode`: the codes of any images (docs/encode.md)."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

from search.encode import Encoding, find_images
from search.encode_job import Job, encode_share, encode_to_file, merge, parts_are_kept, require_own_parts
from search.model import load_model
from utils import distributed
from utils.command import MOST_PIXELS, Parser, bounded
from utils.errors import UserError
from utils.files import require_place
from utils.log import launched_rank


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """`RUN` and `--code-length`: which model."""
    parser.add_argument("run", metavar="RUN", help="the folder of a run, or a file of `python -m search export`")
    parser.add_argument(
        "--code-length", type=bounded(int, 1), metavar="K", help="bits, where the run has models of several lengths"
    )


def add_encoding_flags(parser: argparse.ArgumentParser) -> None:
    """`IMAGES`, `--device`, `--batch-size`, `--num-workers` and `--max-pixels`: what to encode, and how."""
    parser.add_argument("images", nargs="+", metavar="IMAGES", help="image files, folders, or lists of paths (.txt)")
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda or cuda:N [auto]")
    parser.add_argument(
        "--batch-size", type=bounded(int, 1), default=64, metavar="N", help="images at once on a GPU [64]"
    )
    parser.add_argument(
        "--num-workers",
        type=bounded(int, 0),
        default=0,
        metavar="N",
        help="threads that read images ahead; 0: one per processor [0]",
    )
    add_pixels_flag(parser)


def add_pixels_flag(parser: argparse.ArgumentParser) -> None:
    """`--max-pixels`: which images are too large."""
    parser.add_argument(
        "--max-pixels",
        type=bounded(int, 1),
        default=MOST_PIXELS,
        metavar="N",
        help=f"images with more pixels are not read (docs/datasets.md) [{MOST_PIXELS}]",
    )


def encoding_of(options: argparse.Namespace) -> Encoding:
    """From the flags; under torchrun, each process has its own GPU and its share of the processors.

    Raises:
        UserError: there is no such device.
    """
    processors = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    device = distributed.own_device(options.device)
    return Encoding(options.batch_size, device, options.num_workers or max(1, processors), options.max_pixels)


def which_share(asked: str | None) -> tuple[int, int]:
    """(I, N) from ``--shard I/N``, otherwise from the variables of torchrun; (0, 1) for a single process.

    Raises:
        UserError: not two whole numbers with 0 <= I < N, or torchrun already divides the images.
    """
    launched = launched_rank(), distributed.launched_size()
    if asked is None:
        return launched
    if launched[1] > 1:
        raise UserError(f"--shard {asked}: torchrun already divides the images; leave the flag out.")
    match = re.fullmatch(r"(\d+)/(\d+)", asked)
    if not match or int(match[1]) >= int(match[2]):
        raise UserError(f"--shard {asked}: must be I/N with I from 0 to N - 1, such as 0/4.")
    return int(match[1]), int(match[2])


def encode(arguments: Sequence[str]) -> None:
    """Read the command line and encode."""
    parser = Parser(prog="python -m search encode", description="Encode images with a trained model.")
    add_model_flags(parser)
    add_encoding_flags(parser)
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("codes.npz"), metavar="FILE", help="the file to write [codes.npz]"
    )
    parser.add_argument("--shard", metavar="I/N", help="encode share I of N, from 0, without torchrun")
    parser.add_argument("--merge", action="store_true", help="only put the finished parts of all shares together")
    options = parser.parse_intermixed_args(arguments)  # flags between the images too

    shard, shards = which_share(options.shard)
    if options.merge and (options.shard or shards > 1):
        raise UserError("--merge puts the parts of all shares together; run it in one process without --shard.")
    encoding = encoding_of(options)
    require_place(options.output, "--output")
    paths = find_images(options.images)
    job = Job(load_model(options.run, options.code_length), paths, options.output, encoding)
    if options.merge or options.shard or shards > 1:
        _run_share(job, shard, shards, options)
    else:
        _print_written(job, *encode_to_file(job))


def _run_share(job: Job, shard: int, shards: int, options: argparse.Namespace) -> None:
    """Encode a share, or nothing with --merge; put the parts together when none is missing; print the state."""
    require_own_parts(job)
    missing = job.missing()
    # Codes are written before parts are removed: where parts are missing, another process may have finished the job.
    if missing and job.finished() is not None:
        if shard == 0 or options.shard:
            print(f"{job.output}: already has the codes of these images by this model; delete it to encode again.")
        return
    with parts_are_kept(job):
        if not options.merge:
            encode_share(job, shard, shards)
            missing = job.missing()
        if options.merge or not missing:
            merged = merge(job)
            if merged is not None:
                _print_written(job, *merged)
        elif options.shard:
            print(f"{job.folder}: {len(missing):,} of {job.num_parts:,} parts are still missing.")


def _print_written(job: Job, written: int, skipped: int) -> None:
    left_out = f", {skipped:,} skipped" if skipped else ""
    print(f"{written:,} images in {job.trained.code_length} bits{left_out}: written to {job.output}")
