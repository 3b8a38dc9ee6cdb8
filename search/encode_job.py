"""Encode many images in parts, by one or several processes; finished parts survive a kill (docs/encode.md)."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from search.code_file import model_key, num_codes, request_key, write_codes
from search.encode import ON_CPU, Encoding, encode_files
from search.model import TrainedModel
from utils.errors import UserError
from utils.files import locked, write_file
from utils.interrupt import Interrupted

# Names in a part, whatever the number of processes. A multiple of `CPU_ROWS`: the inputs of the network on a CPU, and
# with them the codes, are those of the whole list, bit for bit.
PART = 4096

# Number, model, images. With a dot before and more after it: the temporary file of a killed process.
_PART_NAME = re.compile(r"\.?\d{6,}-(?P<model>[0-9a-f]{16})-(?P<images>[0-9a-f]{16})\.npz(\..*)?")


class Part(NamedTuple):
    """The result for n neighbouring names: codes uint8 [m, ceil(K/8)] of the m that `readable`, bool [n], marks."""

    codes: np.ndarray
    readable: np.ndarray


@dataclass(frozen=True)
class Job:
    """What to encode into which npz file; `names` must be the same, in the same order, in every process."""

    trained: TrainedModel
    names: Sequence[str]
    output: Path
    encoding: Encoding = ON_CPU

    @property
    def folder(self) -> Path:
        """The folder of the parts: the name of the output, then `.parts`."""
        return self.output.with_name(f"{self.output.name}.parts")

    @property
    def num_parts(self) -> int:
        """The number of parts, ceil(n / `PART`)."""
        return -(-len(self.names) // PART)

    @cached_property
    def request(self) -> str:
        """`request_key` of the model and the names."""
        return request_key(self.trained, self.names)

    @cached_property
    def part_key(self) -> str:
        """What follows the number in the name of a part: 16 digits for the model, 16 for the images."""
        return f"{model_key(self.trained)[:16]}-{request_key(self.trained, [*self.names, str(PART)])[:16]}"

    def part(self, number: int) -> Path:
        """The file of a part."""
        return self.folder / f"{number:06d}-{self.part_key}.npz"

    def names_of(self, number: int) -> Sequence[str]:
        """The names of a part."""
        return self.names[number * PART : (number + 1) * PART]

    def missing(self) -> list[int]:
        """The numbers of the parts that are not finished."""
        return [number for number in range(self.num_parts) if not self.part(number).exists()]

    def finished(self) -> int | None:
        """The number of codes in the output, if it belongs to exactly this job; otherwise None."""
        return num_codes(self.output, self.request)


def share_of(num_parts: int, shard: int, shards: int) -> range:
    """The neighbouring parts of process `shard` (from 0) of `shards`; the shares differ by one part at most."""
    return range(num_parts * shard // shards, num_parts * (shard + 1) // shards)


def places_of(kept: Iterable[str], names: Iterable[str]) -> list[int]:
    """The positions of `kept` in `names`, of which it is a subsequence."""
    rest = enumerate(names)
    return [next(place for place, name in rest if name == wanted) for wanted in kept]


def require_own_parts(job: Job) -> None:
    """UserError if the folder of the parts has parts of another job or cannot be read."""
    try:
        found = [_PART_NAME.fullmatch(name) for name in os.listdir(job.folder)]
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{job.folder}: cannot be read ({error.strerror}); move it or name another file.") from error
    model = job.part_key.partition("-")[0]
    for match in found:
        if match and f"{match['model']}-{match['images']}" != job.part_key:
            what = "of other images" if match["model"] == model else "by another model"
            raise UserError(
                f"{job.folder}: has parts {what} from an unfinished job; finish that job, delete the folder, or name "
                "another --output."
            )


@contextlib.contextmanager
def parts_are_kept(job: Job) -> Iterator[None]:
    """Let the message after a signal say that finished parts are kept."""
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as error:
        if job.folder.is_dir():
            error.add_note(f"finished parts are kept in {job.folder}; run the same command again to continue")
        raise


def encode_to_file(job: Job) -> tuple[int, int]:
    """Encode all images of a job in this process; more than one part in parts that survive a kill.

    Returns:
        (images with a code, images left out).

    Raises:
        UserError: no image could be read, the file cannot be written, or there are parts of another job.
    """
    if job.num_parts == 1:
        return _counts(job, _write_output(job, [_encode_part(job, 0, "Encoding images")]))
    require_own_parts(job)
    with parts_are_kept(job):
        encode_share(job, 0, 1)
        merged = merge(job)
    return merged or _counts(job, job.finished() or 0)


def encode_share(job: Job, shard: int, shards: int) -> None:
    """Encode the unfinished parts of process `shard` (from 0) of `shards`.

    Raises:
        UserError: as `encode_files`; or a part cannot be written.
    """
    for number in share_of(job.num_parts, shard, shards):
        if job.part(number).exists():
            continue
        part = _encode_part(job, number, f"Part {number + 1} of {job.num_parts}")
        try:
            job.folder.mkdir(exist_ok=True)  # another process of the same job may have removed it
        except OSError as error:
            raise UserError(f"{job.folder}: cannot be created ({error.strerror}); name another --output.") from error
        write_file(job.part(number), partial(np.savez, codes=part.codes, readable=part.readable), "--output")


def merge(job: Job) -> tuple[int, int] | None:
    """Put all parts together and remove them. Of two processes that merge at the same time, one does.

    Returns:
        (images with a code, images left out), or None where another process has merged them.

    Raises:
        UserError: a part is missing or damaged, no image could be read, or the file cannot be written.
    """
    lock = job.output.with_name(f".{job.output.name}.lock")
    with locked(lock, f"{job.output}: waiting for another process that merges the parts."):
        try:
            missing = len(job.missing())
            if missing:
                if job.finished() is not None:
                    return None
                raise UserError(
                    f"{job.folder}: {missing} of {job.num_parts} parts are missing; restart the unfinished processes."
                )
            written = _write_output(job, [_read_part(job, number) for number in range(job.num_parts)])
            _remove(job.folder)
        finally:
            with contextlib.suppress(OSError):  # while it is held: whoever waits for it then locks a new file
                lock.unlink()
    return _counts(job, written)


def _encode_part(job: Job, number: int, bar: str) -> Part:
    names = job.names_of(number)
    kept: list[str] = []
    codes = [np.zeros((0, -(-job.trained.code_length // 8)), dtype=np.uint8)]
    for seen, packed in encode_files(job.trained, names, job.encoding, bar=bar):
        kept += seen
        codes.append(packed)
    readable = np.zeros(len(names), dtype=bool)
    readable[places_of(kept, names)] = True
    return Part(np.concatenate(codes), readable)


def _read_part(job: Job, number: int) -> Part:
    path = job.part(number)
    try:
        with np.load(path, allow_pickle=False) as content:
            codes, readable = content["codes"], content["readable"]
    except Exception as error:  # numpy and zipfile raise many types here
        raise UserError(f"{path}: the part is damaged ({error}); delete it and restart its process.") from error
    width = -(-job.trained.code_length // 8)
    fits = readable.dtype == bool and readable.shape == (len(job.names_of(number)),)
    if not fits or codes.dtype != np.uint8 or codes.shape != (int(readable.sum()), width):
        raise UserError(f"{path}: the part is damaged (wrong shapes); delete it and restart its process.")
    return Part(codes, readable)


def _write_output(job: Job, parts: Sequence[Part]) -> int:
    """Write the codes of all parts in order, and nothing where there is none. Returns their number."""
    codes = np.concatenate([part.codes for part in parts])
    names = list(compress(job.names, np.concatenate([part.readable for part in parts])))
    if names:
        write_file(job.output, lambda file: write_codes(file, names, codes, job.trained, job.request), "--output")
    return len(names)


def _counts(job: Job, written: int) -> tuple[int, int]:
    """(images with a code, images left out); UserError where no image could be read."""
    if not written:
        raise UserError(f"None of the {len(job.names)} images could be read; nothing was written.")
    return written, len(job.names) - written


def _remove(folder: Path) -> None:
    """Remove the parts and temporary files of parts, and no other file in the folder."""
    for path in folder.iterdir():
        if _PART_NAME.fullmatch(path.name):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it still has files of the user
        folder.rmdir()
