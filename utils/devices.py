"""`--device`: which processor trains."""

from __future__ import annotations

import contextlib
import ctypes

import torch

from utils.errors import UserError

# glibc's mallopt parameters (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def choose_device(name: str) -> torch.device:
    """ "auto" takes a GPU where there is one; "cpu", "cuda" and "cuda:N" are taken at their word.

    Raises:
        UserError: an unknown name, or a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (kind == "cpu" and index) or (":" in name and not index.isdecimal()):
        raise UserError(f"--device {name}: not a device; use auto, cpu, cuda or cuda:N.")
    if kind == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if found == 0:
            raise UserError(f"--device {name}: torch {torch.__version__} sees no GPU here; use --device cpu or auto.")
        if index and int(index) >= found:
            raise UserError(f"--device {name}: there are only {found} GPUs, numbered from 0.")
    return torch.device(name)


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next tensor instead of giving it back to the system.

    Every step makes gradients anew, half a gigabyte of them; by default each is mapped afresh, and the page faults take
    as long as a good part of the arithmetic (docs/performance.md). Returns False where the C library has no mallopt.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
    return False
