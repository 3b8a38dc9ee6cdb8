"""Lists of image names, one per line, perhaps with labels behind the names. Needs no torch.

Every error message names the file and, where there is one, the line.
"""

from __future__ import annotations

import re
from pathlib import Path

from utils.errors import UserError

_BOM = b"\xef\xbb\xbf"
_LABELS = re.compile(r"(?:[ \t,]+[0-9]+)+$")  # what follows a name in a list with labels


def read_lines(path: Path) -> list[bytes]:
    """The lines of a text file, without line ends (LF or CRLF), surrounding blanks, and blank lines at the end.

    Raises:
        UserError: the file cannot be read, is empty, or has a blank line before its end.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    lines = [line.strip() for line in content.removeprefix(_BOM).rstrip().split(b"\n")]
    if lines == [b""]:
        raise UserError(f"{path} is empty; it needs one line per image.")
    if b"" in lines:
        number = lines.index(b"") + 1
        raise UserError(f"{path}, line {number} is blank; remove it, since each line stands for one image.")
    return lines


def read_names(path: Path) -> list[str]:
    r"""The names in a list (UTF-8), with ``\`` turned into ``/``.

    Raises:
        UserError: see `read_lines`; or a line is not UTF-8 or has a character that no file name can have.
    """
    names = []
    for number, line in enumerate(read_lines(path), 1):
        try:
            name = line.decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{path}, line {number} is not UTF-8 text; save the list as UTF-8.") from None
        if "\0" in name:
            raise UserError(f"{path}, line {number} has a NUL character, which no file name can have; remove it.")
        names.append(name.replace("\\", "/"))
    return names


def split_labels(line: str) -> tuple[str, str]:
    """The name in a line of a list, and the numbers behind it, which blanks, tabs or commas separate; "" for none.

    ``a b.jpg 0 1 0`` → ``a b.jpg`` and ``0 1 0``.
    """
    labels = _LABELS.search(line)
    return (line, "") if labels is None else (line[: labels.start()], labels[0].replace(",", " ").strip())
