"""The style of all figures: readable in print and without colour.

Each series has its own colour, marker and line style, so that no meaning depends on colour alone. The colours are those
of Okabe and Ito (2008, https://jfly.uni-koeln.de/color/) without yellow, which is hard to see on white paper. Figures
are made without pyplot: no global state, no display, and the same data give the same bytes.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names

from utils.errors import UserError
from utils.files import require_place, write_file
from utils.log import log

FORMATS = ("png", "pdf")
LEGEND_LINE = 0.115  # inches
COLUMN_WIDTH, PAGE_WIDTH = 3.4, 7.0  # inches: a column and a page of a two-column paper

BLACK, BLUE, VERMILLION, GREEN = "#000000", "#0072B2", "#D55E00", "#009E73"
COLOURS = (BLUE, VERMILLION, GREEN, BLACK, "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
LINES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)), (0, (9, 2)))
GREY = "#8C8C8C"

# DejaVu Sans comes with matplotlib. The others have the characters that it lacks, where the system has them.
FONTS = (
    *("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Source Han Sans", "WenQuanYi Zen Hei"),
    *("Droid Sans Fallback", "Hiragino Sans", "PingFang SC", "Microsoft YaHei", "Malgun Gothic", "Arial Unicode MS"),
)

_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 3.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E0E0E0",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.8,
    "pdf.fonttype": 42,  # text stays text
    "savefig.dpi": 300,
}


@contextmanager
def house_style() -> Iterator[None]:
    """While entered, or in the function that `@house_style()` decorates: matplotlib's defaults and this style.

    The user's matplotlibrc has no effect and is not changed.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        installed = get_font_names()
        matplotlib.rcParams["font.family"] = [font for font in FONTS if font in installed]
        yield


def series_style(index: int) -> dict[str, Any]:
    """Colour, marker and line style of series number `index`; no two of the first 40 look alike, even in grey.

    Every second series has white markers, so that two points in the same place are both visible.
    """
    colour = COLOURS[index % len(COLOURS)]
    return {
        "color": colour,
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": LINES[index % len(LINES)],
        "markerfacecolor": "white" if index % 2 else colour,
    }


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of `width` × `height` inches; nothing in it overlaps, and legends outside the axes have room."""
    return Figure(figsize=(width, height), layout="constrained")


def legend_below(axes: Axes) -> None:
    """A legend under the axes, where it hides no data, with as many columns as fit in the width of a paper's column.

    Long names are wrapped, and the figure becomes higher by the lines that this adds.
    """
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, min(len(labels), 60 // (max(map(len, labels)) + 11)))  # 60 characters a line, 11 for the sample
    wrapped = ["\n".join(textwrap.wrap(label, 49, subsequent_indent="  ")) for label in labels]
    figure = axes.get_figure(root=True)
    assert figure is not None
    added = sum(label.count("\n") for label in wrapped)
    figure.set_figheight(figure.get_figheight() + added * LEGEND_LINE)
    figure.legend(handles, wrapped, loc="outside lower center", ncols=columns)


def legend_above(axes: Axes) -> None:
    """A legend above the axes, for a figure with several panels: three names per line, or two if there are four."""
    number = len(axes.get_legend_handles_labels()[1])
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2 if number == 4 else 3,
        borderaxespad=0.2,
        handlelength=2.4,
        columnspacing=1.2,
    )


def fit_share_axis(axes: Axes, values: Iterable[float], least: float = 0.1) -> None:
    """Set y limits around `values` in [0, 1]: a span of `least` or more, and hardly below 0 or above 1."""
    numbers = list(values)
    low, high = min(numbers), max(numbers)
    room = 0.08 * max(high - low, least)
    missing = max(0.0, least - (high - low)) / 2
    bottom = max(-0.015, low - room - missing)  # 0.015: less than the distance to the next tick
    axes.set_ylim(bottom, min(1.015, max(high + room + missing, bottom + least)))


def require_figure(path: Path, flag: str) -> None:
    """UserError if no figure can be written to `path`, which `flag` names."""
    _require_format(path, f"{flag} {path}")
    require_place(path, flag)


def _require_format(path: Path, what: str) -> None:
    if path.suffix[1:] not in FORMATS:
        raise UserError(f"{what}: figures are written as {' or '.join(FORMATS)}; end the name so.")


@house_style()
def save(figure: Figure, path: str | Path) -> Path:
    """Write `figure` as PNG or PDF by the ending of `path`, without dates or versions; makes the folder.

    Raises:
        UserError: another ending, or the file cannot be written.
    """
    path = Path(path)
    _require_format(path, str(path))
    nameless = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Creator": None, "Producer": None}}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: could not be written ({error.strerror}); name another folder.") from error
    kind = path.suffix[1:]
    with warnings.catch_warnings(record=True) as found:
        write_file(path, lambda file: figure.savefig(file, format=kind, metadata=nameless[kind]), "The figure")
    if any("missing from font" in str(warning.message) for warning in found):
        log.warning("%s: a name has characters that no installed font has; install Noto Sans CJK, for example.", path)
    return path
