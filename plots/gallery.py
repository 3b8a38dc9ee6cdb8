"""A retrieval gallery: queries on the left, next to each its nearest neighbours and whether they are relevant."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from data import ImageDataset, Split
from plots.style import BLACK, GREEN, VERMILLION, house_style, save
from utils.errors import UserError

THUMBNAIL = 96  # pixels
FILES_CAPTION = "Neighbours by Hamming distance d, ties in the order of the index; under each its folder or name"
CAPTION = "Neighbours by Hamming distance d, ties in database order; under each {}\n{}"
MARKS = "✓ solid frame: shares a label with the query   ✗ dashed frame: shares none"

# Geometry in inches. The data coordinates of the axes are inches too, y downwards.
_IMAGE, _PITCH_X, _QUERY_GAP, _MARGIN = 0.54, 0.62, 0.16, 0.06
_HEADER, _TEXT_LINE, _ROW_GAP = 0.54, 0.105, 0.09
_FONT = 6.5
_LEAST_WIDTH = 5.0  # of the caption
_CHARACTERS = 10  # that fit under an image
_LABEL_LINES = {False: 1, True: 2}  # by multi_label


@dataclass
class Gallery:
    """What a gallery shows: q queries with k neighbours each.

    Attributes:
        query_images: uint8 [q, 3, H, W].
        images: uint8 [q, k, 3, H, W], nearest first.
        distance: float [q, k], Hamming distances.
        query_labels, labels: multi-hot [q, C] and [q, k, C].
        class_names: C names; None: the class numbers are written.
        multi_label: whether an image can have several labels; the text under a neighbour then names the shared ones.
        texts: for images without labels: the text under each query, and those under its neighbours, without marks and
            with black frames. A query may have fewer than k texts; its other neighbours are not drawn.
    """

    query_images: npt.NDArray[np.uint8]
    images: npt.NDArray[np.uint8]
    distance: npt.NDArray[np.float64]
    query_labels: npt.NDArray[np.bool_]
    labels: npt.NDArray[np.bool_]
    class_names: Sequence[str] | None = None
    multi_label: bool = False
    texts: tuple[Sequence[str], Sequence[Sequence[str]]] | None = None

    @property
    def shared(self) -> npt.NDArray[np.bool_]:
        """bool [q, k, C]: the labels that a neighbour shares with its query."""
        return self.labels & self.query_labels[:, None]

    @property
    def relevant(self) -> npt.NDArray[np.bool_]:
        """bool [q, k]: whether a neighbour shares a label with its query."""
        return np.asarray(self.shared.any(axis=-1))

    def text(self, labels: npt.NDArray[np.bool_], nothing: str = "no label", more_lines: int = 0) -> str:
        """The names of multi-hot `labels` [C], shortened to the lines under a neighbour and `more_lines`."""
        chosen = np.flatnonzero(labels).tolist()
        names = [str(number) if self.class_names is None else self.class_names[number] for number in chosen]
        return shorten(", ".join(names) or nothing, _LABEL_LINES[self.multi_label] + more_lines)


def shorten(text: str, lines: int) -> str:
    """`text` on at most `lines` lines as wide as an image; … marks what is left out."""
    wrapped = textwrap.wrap(text, _CHARACTERS, max_lines=lines, placeholder=" …", break_long_words=True)
    return "\n".join(wrapped)


def nearest(query_code: Tensor, database_code: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` items of each query's ranking by d = (K − q·b)/2, ties in database order.

    Args:
        query_code, database_code: [q, K] and [D, K], entries −1, 0 or +1.

    Returns:
        Rows of the database, int64 [q, k], and their distances, float64 [q, k]; k ≤ D.
    """
    distance = (query_code.shape[1] - query_code.double() @ database_code.double().T) / 2
    order = torch.argsort(distance, dim=1, stable=True)[:, :count]
    return order, distance.gather(1, order)


def choose_queries(labels: Tensor, count: int) -> list[int]:
    """At most `count` queries by their `labels` [Q, C]: for each class in order, the first query not yet chosen."""
    chosen: list[int] = []
    for number in range(labels.shape[1]):
        found = torch.nonzero(labels[:, number]).flatten().tolist()
        chosen += [row for row in found if row not in chosen][:1]
    return chosen[:count]


def gallery_of(
    split: Split, query_code: Tensor, database_code: Tensor, *, num_queries: int = 10, num_neighbours: int = 10
) -> Gallery:
    """The gallery of codes [Q, K] and [D, K] (−1, 0 or +1, in the order of `split`), with the images of `split`.

    Raises:
        UserError: the numbers of codes and images differ.
    """
    for what, code, dataset in (("query", query_code, split.query), ("database", database_code, split.database)):
        if len(code) != len(dataset):
            raise UserError(
                f"There are {len(code)} {what} codes but {len(dataset)} {what} images of {split.name}; "
                "load the split of the run that made the codes."
            )
    queries = choose_queries(split.query.labels, num_queries)
    rows, distance = nearest(query_code[queries], database_code, num_neighbours)
    return Gallery(
        query_images=thumbnails(split.query, queries),
        images=np.stack([thumbnails(split.database, neighbours) for neighbours in rows.tolist()]),
        distance=distance.numpy(),
        query_labels=split.query.labels[queries].numpy() > 0,
        labels=split.database.labels[rows].numpy() > 0,
        class_names=split.class_names,
        multi_label=split.multi_label,
    )


def thumbnails(dataset: ImageDataset, rows: Sequence[int]) -> npt.NDArray[np.uint8]:
    """The central squares of the images `rows`, uint8 [n, 3, THUMBNAIL, THUMBNAIL]."""
    small = []
    for image in dataset.pixels(rows):
        square = transforms.center_crop(image, [min(image.shape[1:])])
        small.append(transforms.resize(square, [THUMBNAIL, THUMBNAIL], antialias=True).numpy())
    return np.stack(small)


def draw_gallery(axes: Axes, gallery: Gallery) -> tuple[float, float]:
    """Draw `gallery` on `axes`; returns the width and height in inches that the axes should have.

    The `gid` of a frame and of the text under it is "query-ROW" or "neighbour-ROW-RANK", counted from 1.
    """
    num_queries, num_neighbours = gallery.distance.shape
    row_height = _IMAGE + _TEXT_LINE * (1 + _LABEL_LINES[gallery.multi_label]) + _ROW_GAP + 0.03
    width = max(_LEAST_WIDTH, 2 * _MARGIN + _IMAGE + _QUERY_GAP + _PITCH_X * num_neighbours)
    height = _HEADER + row_height * num_queries
    left = [_MARGIN + _IMAGE + _QUERY_GAP + _PITCH_X * column for column in range(num_neighbours)]

    def cell(image: np.ndarray, x: float, y: float, gid: str, text: str, colour: str, line: str) -> None:
        extent = (x, x + _IMAGE, y + _IMAGE, y)
        axes.imshow(image.transpose(1, 2, 0), extent=extent, interpolation="antialiased", zorder=1)
        frame = Rectangle((x, y), _IMAGE, _IMAGE, fill=False, edgecolor=colour, linestyle=line, linewidth=1.5, gid=gid)
        axes.add_patch(frame)
        for number, words in enumerate(text.splitlines(), 1):
            place = x + _IMAGE / 2, y + _IMAGE + 0.02 + _TEXT_LINE * number
            # A class may be called $.
            axes.text(*place, words, ha="center", va="baseline", fontsize=_FONT, gid=gid, parse_math=False)

    if gallery.texts is None:
        caption = CAPTION.format("the labels that it shares" if gallery.multi_label else "its class", MARKS)
    else:
        caption = FILES_CAPTION
    axes.text(_MARGIN, 0.06, caption, va="top", fontsize=_FONT + 0.5)
    axes.text(_MARGIN + _IMAGE / 2, _HEADER - 0.04, "query", ha="center", va="bottom", fontsize=_FONT + 0.5)
    for rank, x in enumerate(left, 1):
        axes.text(x + _IMAGE / 2, _HEADER - 0.04, str(rank), ha="center", va="bottom", fontsize=_FONT + 0.5)
    for row in range(num_queries):
        y = _HEADER + row_height * row
        if gallery.texts is None:
            own = gallery.text(gallery.query_labels[row], more_lines=1)  # a query has no line for a distance
            shown = num_neighbours
        else:
            own, shown = shorten(gallery.texts[0][row], 2), len(gallery.texts[1][row])
        cell(gallery.query_images[row], _MARGIN, y, f"query-{row + 1}", own, BLACK, "-")
        for column, x in enumerate(left[:shown]):
            name = f"neighbour-{row + 1}-{column + 1}"
            cell(gallery.images[row, column], x, y, name, *_neighbour(gallery, row, column))
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    axes.set_axis_off()
    return width, height


def _neighbour(gallery: Gallery, row: int, column: int) -> tuple[str, str, str]:
    """Text, colour and line of the frame of a neighbour."""
    distance = f"d = {gallery.distance[row, column]:g}"
    if gallery.texts is not None:
        return f"{distance}\n{shorten(gallery.texts[1][row][column], 1)}", BLACK, "-"
    if gallery.multi_label:
        labels = gallery.text(gallery.shared[row, column], nothing="none")
    else:
        labels = gallery.text(gallery.labels[row, column])
    if gallery.relevant[row, column]:
        return f"✓ {distance}\n{labels}", GREEN, "-"
    return f"✗ {distance}\n{labels}", VERMILLION, "--"


@house_style()
def _figure(gallery: Gallery) -> Figure:
    figure = Figure()
    figure.set_size_inches(draw_gallery(figure.add_axes((0, 0, 1, 1)), gallery))
    return figure


def gallery_figure(path: str | Path, gallery: Gallery) -> Path:
    """Write the figure of a gallery, as PNG or PDF by the ending of `path`."""
    return save(_figure(gallery), path)


@house_style()
def gallery_pixels(gallery: Gallery, dpi: int = 120) -> npt.NDArray[np.uint8]:
    """The figure of a gallery as pixels, uint8 [height, width, 3]."""
    figure = _figure(gallery)
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
