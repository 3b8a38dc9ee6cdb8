"""Hash many images by one or several processes, in parts that outlive a kill (docs/encode.md).

The list of names is cut into parts of `PART`, whatever the number of processes. Each part is a file of its own, so that
a job started again finds what is done. PART is a multiple of `CPU_ROWS`: the blocks that the network sees on a CPU, and
with them the codes, are those of the whole list, bit for bit.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import IO

import numpy as np
import torch

from search.code_file import model_key, num_codes, request_key, write_codes
from search.encode import encode_files
from search.model import TrainedModel
from utils.errors import UserError
from utils.files import write_file

try:
    import fcntl
except ImportError:  # pragma: no cover - not on this system: two processes may both merge, with the same result
    fcntl = None  # type: ignore[assignment]

PART = 4096

# The number, the model, the images; with a dot before and more behind it: what a killed process left half written.
_PART_NAME = re.compile(r"\.?\d{6,}-(?P<model>[0-9a-f]{16})-(?P<images>[0-9a-f]{16})\.npz(\..*)?")


@dataclass(frozen=True)
class Job:
    """What is to be hashed into which file.

    Attributes:
        trained: the model.
        names: n file names, the same and in the same order in every process.
        output: the npz to write.
    """

    trained: TrainedModel
    names: Sequence[str]
    output: Path

    @property
    def folder(self) -> Path:
        """Where the parts lie: beside the output, `.parts` behind its name."""
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
        """What a part's file is called behind its number: 16 digits for the model, 16 for the images."""
        return f"{model_key(self.trained)[:16]}-{request_key(self.trained, [*self.names, str(PART)])[:16]}"

    def part(self, number: int) -> Path:
        """The file of a part."""
        return self.folder / f"{number:06d}-{self.part_key}.npz"

    def names_of(self, number: int) -> Sequence[str]:
        """The names of a part."""
        return self.names[number * PART : (number + 1) * PART]

    def missing(self) -> list[int]:
        """The numbers of the parts that are not there yet."""
        return [number for number in range(self.num_parts) if not self.part(number).exists()]

    def finished(self) -> int | None:
        """How many codes the output has, if it is of exactly this job; else None."""
        return num_codes(self.output, self.request)


def share_of(num_parts: int, shard: int, shards: int) -> range:
    """The contiguous parts of process `shard` (from 0) of `shards`; the processes' numbers differ by one at most."""
    return range(num_parts * shard // shards, num_parts * (shard + 1) // shards)


def require_own_parts(job: Job) -> None:
    """Refuse a folder that holds parts of another job.

    Raises:
        UserError: such parts are there; or something that is no folder has its name.
    """
    try:
        found = [_PART_NAME.fullmatch(name) for name in os.listdir(job.folder)]
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{job.folder}: cannot be read ({error.strerror}); move it, or name another file.") from error
    model = job.part_key.partition("-")[0]
    for match in found:
        if match and f"{match['model']}-{match['images']}" != job.part_key:
            what = "of other images" if match["model"] == model else "by another model"
            raise UserError(
                f"{job.folder}: holds parts {what} from a job that did not end; finish that job, delete the folder, or "
                "name another --output."
            )


def encode_share(
    job: Job,
    shard: int,
    shards: int,
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    on_bad_image: Callable[[str, str], None],
) -> int:
    """Hash the parts of process `shard` (from 0) of `shards` that are not there yet.

    Args:
        batch_size, device, num_workers, on_bad_image: as for `encode_files`.

    Returns:
        The number of parts hashed.

    Raises:
        UserError: as `encode_files`; or a part cannot be written.
    """
    done = 0
    for number in share_of(job.num_parts, shard, shards):
        path = job.part(number)
        if path.exists():
            continue
        names = job.names_of(number)
        kept: list[str] = []
        codes = bytearray()
        for seen, packed in encode_files(
            job.trained,
            names,
            batch_size=batch_size,
            device=device,
            num_workers=num_workers,
            on_bad_image=on_bad_image,
            bar=f"Part {number + 1} of {job.num_parts}",
        ):
            kept += seen
            codes += packed.tobytes()
        rows = np.frombuffer(codes, dtype=np.uint8).reshape(len(kept), -(-job.trained.code_length // 8))
        _write_part(path, rows, _mask(names, kept))
        done += 1
    return done


def _mask(names: Sequence[str], kept: Sequence[str]) -> np.ndarray:
    """Which of n names are in `kept`, a subsequence of them: bool [n]."""
    mask = np.zeros(len(names), dtype=bool)
    rest = iter(kept)
    following = next(rest, None)
    for place, name in enumerate(names):
        if name == following:
            mask[place] = True
            following = next(rest, None)
    return mask


def _write_part(path: Path, codes: np.ndarray, readable: np.ndarray) -> None:
    """One part: codes uint8 [m, ceil(K/8)] of the m names for which `readable`, bool [n], is true."""
    try:
        path.parent.mkdir(exist_ok=True)  # another process of the same job may have removed it
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be made ({error.strerror}); name another --output.") from error
    write_file(path, lambda file: np.savez(file, codes=codes, readable=readable), "--output")


def merge(job: Job) -> tuple[int, int] | None:
    """Put all parts together, the codes of one in memory at a time, and remove them.

    Returns:
        (images with a code, images left out), or None where another process has merged them meanwhile.

    Raises:
        UserError: a part is missing or damaged, no image could be read, or the file cannot be written.
    """
    with _alone(job.folder):
        missing = len(job.missing())
        if missing:
            if job.finished() is not None:
                return None
            raise UserError(
                f"{job.folder}: {missing} of {job.num_parts} parts are missing; start the processes again that did not "
                "end."
            )

        masks = [_read_part(job, number)[1] for number in range(job.num_parts)]
        written = int(sum(mask.sum() for mask in masks))
        if written:

            def names() -> Iterator[list[str]]:
                return (list(compress(job.names_of(number), mask)) for number, mask in enumerate(masks))

            def write(file: IO[bytes]) -> None:
                codes = (_read_part(job, number)[0] for number in range(job.num_parts))
                write_codes(file, names, codes, job.trained, job.request)

            write_file(job.output, write, "--output")
        _remove(job.folder)
    if not written:
        raise UserError(f"None of the {len(job.names)} images could be read; nothing was written.")
    return written, len(job.names) - written


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, if it is there and its file system has locks; the system drops it with the process."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # no such folder, or a system that opens none
        yield
        return
    try:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _read_part(job: Job, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes uint8 [m, ceil(K/8)] and the mask of the names that they belong to, bool [n]."""
    path = job.part(number)
    try:
        with np.load(path, allow_pickle=False) as content:
            codes, readable = content["codes"], content["readable"]
    except Exception as error:  # numpy and zipfile raise many kinds here
        raise UserError(f"{path}: the part is damaged ({error}); delete it and start its process again.") from error
    width = -(-job.trained.code_length // 8)
    fits = readable.dtype == bool and readable.shape == (len(job.names_of(number)),)
    if not fits or codes.dtype != np.uint8 or codes.shape != (int(readable.sum()), width):
        raise UserError(f"{path}: the part is damaged (wrong shapes); delete it and start its process again.")
    return codes, readable


def _remove(folder: Path) -> None:
    """Remove the parts, half-written ones too, and nothing else that may lie there."""
    for path in folder.iterdir():
        if _PART_NAME.fullmatch(path.name):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty: something of the user's
        folder.rmdir()
