"""`--device`: which processor trains."""

from __future__ import annotations

import torch

from .errors import UserError


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
