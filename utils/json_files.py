"""Reading the JSON files of a run's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import UserError


def read_json(path: Path, kind: type) -> Any:
    """The content of a JSON file of a run's folder.

    Raises:
        UserError: it is missing, damaged, or holds something else than a `kind`.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; name the folder of a run.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}).") from error
    if not isinstance(content, kind):
        raise UserError(f"{path}: not the file of a run.")
    return content
