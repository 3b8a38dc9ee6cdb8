"""`--device`: where the networks are computed."""

from __future__ import annotations

import contextlib
import ctypes

import torch

from utils.errors import UserError

# glibc's mallopt parameters (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def choose_device(name: str) -> torch.device:
    """The device of a name: "auto" is a GPU if there is one, else the CPU; or "cpu", "cuda", "cuda:N".

    Raises:
        UserError: an unknown name, or there is no such GPU.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if (
        kind not in ("cpu", "cuda")
        or (kind == "cpu" and index)
        or (":" in name and not (index.isascii() and index.isdecimal()))
    ):
        raise UserError(f"--device {name}: not a device; use auto, cpu, cuda or cuda:N.")
    if kind == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if found == 0:
            raise UserError(f"--device {name}: torch {torch.__version__} finds no GPU; use --device cpu or auto.")
        if index and int(index) >= found:
            raise UserError(f"--device {name}: there are only {found} GPUs, numbered from 0.")
    return torch.device(name)


def require_working(device: torch.device) -> None:
    """Compute a sum on the device.

    Raises:
        UserError: torch cannot compute there: the driver or the GPU is too old, or its memory is full.
    """
    try:
        torch.ones(2, device=device).sum().item()
    except RuntimeError as error:
        raise UserError(
            f"--device {device}: torch {torch.__version__} cannot compute there ({str(error).splitlines()[0]}); "
            "use another GPU or --device cpu."
        ) from error


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next tensor instead of returning it to the system.

    Every step allocates new gradients, half a gigabyte. By default each is mapped again, and the page faults take a
    good part of the time of a step (docs/performance.md). Returns False where the C library has no mallopt.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
    return False
