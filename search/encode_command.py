"""`python -m search encode`: codes of any images by a trained run (docs/encode.md)."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.decode import EXTENSIONS
from data.folder import images_below
from data.list_files import read_names
from search.code_file import write_codes
from search.encode import encode_files
from search.encode_job import Job, encode_share, merge, require_own_parts
from search.model import TrainedModel, export_model, load_model
from utils import distributed
from utils.command import add_encoding_flags, require_least, run_command
from utils.errors import UserError
from utils.files import require_place, write_file
from utils.interrupt import Interrupted

_LABELS = re.compile(r"(\s+\d+)+$")


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


def encode_to_file(
    trained: TrainedModel, paths: Sequence[str], output: Path, *, batch_size: int, device: Any, num_workers: int
) -> tuple[int, int]:
    """Hash files and write the npz; images that cannot be read are named on stderr. Returns (written, skipped).

    More files than one part has (`search.encode_job.PART`) are hashed in parts that outlive a kill.

    Raises:
        UserError: no image could be read, the file cannot be written, or parts of another job lie beside it.
    """
    job = Job(trained, paths, output)
    options = {"batch_size": batch_size, "device": device, "num_workers": num_workers, "on_bad_image": _skip}
    if job.num_parts > 1:
        require_own_parts(job)
        with _parts_are_kept(job):
            encode_share(job, 0, 1, **options)
            merged = merge(job)
        if merged is None:  # by another process that has done the same
            written = job.finished() or 0
            return written, len(paths) - written
        return merged
    names: list[str] = []
    packed = bytearray()
    for batch, codes in encode_files(trained, paths, **options):
        names += batch
        packed += codes.tobytes()
    if not names:
        raise UserError(f"None of the {len(paths)} images could be read; nothing was written.")
    rows = np.frombuffer(packed, dtype=np.uint8).reshape(len(names), -1)
    write_file(output, lambda file: write_codes(file, lambda: [names], [rows], trained, job.request), "--output")
    return len(names), len(paths) - len(names)


def _skip(name: str, reason: str) -> None:
    tqdm.write(f"{name}: skipped ({reason})", file=sys.stderr)


@contextlib.contextmanager
def _parts_are_kept(job: Job) -> Iterator[None]:
    """Let a signal's message say what is not lost."""
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as error:
        if job.folder.is_dir():
            error.add_note(f"finished parts are kept in {job.folder}, the same command goes on from there")
        raise


def which_share(asked: str | None) -> tuple[int, int]:
    """(I, N) of ``--shard I/N``, else of torchrun's variables; (0, 1) for a process alone.

    Raises:
        UserError: not two whole numbers with 0 <= I < N, or torchrun shares already.
    """
    launched = distributed.launched_rank(), distributed.launched_size()
    if asked is None:
        return launched
    if launched[1] > 1:
        raise UserError(f"--shard {asked}: torchrun shares the images already; leave the flag out.")
    match = re.fullmatch(r"(\d+)/(\d+)", asked)
    if not match or int(match[1]) >= int(match[2]):
        raise UserError(f"--shard {asked}: must be I/N with I from 0 to N - 1, such as 0/4.")
    return int(match[1]), int(match[2])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m search encode", description="Hash any images by a trained run.")
    parser.add_argument("model", metavar="RUN_FOLDER", help="a run's folder, or a model written by --export")
    parser.add_argument(
        "images", nargs="*", metavar="IMAGES", help="image files, folders, or lists (.txt) with a path a line"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("codes.npz"), metavar="FILE", help="what to write [codes.npz]"
    )
    parser.add_argument("--code-length", type=int, metavar="K", help="bits, where the run has models of several")
    add_encoding_flags(parser)
    parser.add_argument(
        "--shard", metavar="I/N", help="hash share I of N, from 0, where torchrun does not start the processes"
    )
    parser.add_argument("--merge", action="store_true", help="put the finished parts of all shares together, no more")
    parser.add_argument(
        "--export", type=Path, metavar="FILE", help="write the model alone, in half precision, and encode nothing"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with the given command line; returns the exit status: 0, 2 for what the user can mend, 130 or 143."""
    options = _parser().parse_intermixed_args(arguments)  # options between the images too
    return run_command("python -m search encode", lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    require_least(options, batch_size=1, num_workers=0, code_length=1)
    if options.export is not None:
        if options.images or options.shard or options.merge:
            raise UserError(
                f"--export {options.export} encodes nothing; leave images, --shard and --merge out, or the flag."
            )
        require_place(options.export, "--export")
        export_model(load_model(options.model, options.code_length), options.export)
        print(f"Written to {options.export} ({options.export.stat().st_size / 1e6:.1f} MB)")
        return
    if not options.images:
        raise UserError("no images given; name image files, folders or lists behind the run's folder.")
    shard, shards = which_share(options.shard)
    if options.merge and (options.shard or shards > 1):
        raise UserError("--merge puts the parts of all shares together; run it in one process without --shard.")
    device = distributed.own_device(options.device)
    require_place(options.output, "--output")
    paths = find_images(options.images)
    job = Job(load_model(options.model, options.code_length), paths, options.output)
    settings = {
        "batch_size": options.batch_size,
        "device": device,
        "num_workers": options.num_workers or _own_processors(),
    }
    if options.merge or options.shard or shards > 1:
        _run_share(job, shard, shards, options, settings)
    else:
        _say_written(job, *encode_to_file(job.trained, paths, options.output, **settings))


def _run_share(job: Job, shard: int, shards: int, options: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Hash a share, or nothing with --merge; put the parts together where all are there; say how things stand."""
    require_own_parts(job)
    missing = job.missing()
    # Codes are written before parts are removed: where parts are missing, another process may just have ended the job.
    if missing and job.finished() is not None:
        if shard == 0 or options.shard:
            print(f"{job.output}: holds the codes of these images by this model; delete it to hash them again.")
        return
    with _parts_are_kept(job):
        if not options.merge:
            encode_share(job, shard, shards, on_bad_image=_skip, **settings)
            missing = job.missing()
        if options.merge or not missing:
            merged = merge(job)
            if merged is not None:
                _say_written(job, *merged)
        elif options.shard:
            print(f"{job.folder}: {len(missing):,} of {job.num_parts:,} parts are still missing.")


def _say_written(job: Job, written: int, skipped: int) -> None:
    left_out = f", {skipped:,} skipped" if skipped else ""
    print(f"{written:,} images in {job.trained.code_length} bits{left_out}: written to {job.output}")


def _own_processors() -> int:
    """The processors of this machine by the processes that torchrun starts on it, at least 1."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
