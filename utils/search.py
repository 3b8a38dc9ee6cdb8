"""`python -m utils.search`: find the images of a collection that are like a given one (docs/search.md)."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from data.decode import BadImage, decode

from .command import add_encoding_flags, require_least, run_command
from .devices import choose_device
from .encode_command import encode_to_file, find_images
from .encode_files import encode_files
from .errors import UserError
from .gallery import THUMBNAIL, Gallery, gallery_figure
from .plot_style import FORMATS
from .search_backends import BACKENDS, EXACT, Backend, build_structure, default_backend, open_backend, require_faiss
from .search_index import DEFAULT_K, Index, Rows, require_index_place
from .search_page import serve
from .trained import TrainedModel, load_model, require_place

MOST_IN_FIGURE = 10  # queries, and neighbours of each
_MISSING = 208  # grey of an image that cannot be read any more


def build(
    run: str | Path,
    images: Iterable[str],
    folder: Path,
    *,
    code_length: int | None = None,
    batch_size: int = 64,
    device: Any = "cpu",
    num_workers: int = 0,
    backend: str = "auto",
) -> tuple[Index, int]:
    """Hash images and write an index. Returns (index, images left out); those are named on stderr.

    The codes are made in parts beside `folder`, so that the same command goes on after a kill
    (`utils.encode_command.encode_to_file`).

    Args:
        run: a run's folder or an export; its weights are kept in the index as they are.
        images: files, folders, lists, as for `utils.encode_command.find_images`.
        folder: the index; one that is there is replaced.
        code_length: K, where the run has models of several.
        batch_size, device, num_workers: as for `utils.encode_files.encode_files`.
        backend: ``ivf`` and ``multihash`` are stored with the index; ``auto`` chooses by the number of codes.

    Raises:
        UserError: no image, no such model, none readable, `folder` is something else, or cannot be written.
    """
    require_index_place(folder)
    if backend not in ("auto", "numpy"):
        require_faiss(backend)
    sources, base = find_sources(images)
    trained = load_model(run, code_length)
    codes_file = folder.with_name(f".{folder.name}.codes.npz")
    paths = [path for path, _, _ in sources]
    _, skipped = encode_to_file(
        trained, paths, codes_file, batch_size=batch_size, device=device, num_workers=num_workers
    )
    try:
        with np.load(codes_file, allow_pickle=False) as content:
            codes, seen = content["codes"], content["names"].tolist()
        kept = list(_of_names(sources, seen))
        labels = [label for _, _, label in kept]
        index = Index(
            codes,
            [name for _, name, _ in kept],
            labels if any(labels) else None,
            trained.code_length,
            trained.summary,
            trained.fingerprint,
            images=base,
        )
        kind = default_backend(len(index)) if backend == "auto" else backend
        structure = (kind, build_structure(kind, codes)) if kind not in EXACT else None
        index.save(folder, trained, structure)
    finally:
        codes_file.unlink(missing_ok=True)
    return index, skipped


def find_sources(inputs: Iterable[str]) -> tuple[list[tuple[str, str, str]], Path]:
    """The images that `inputs` stand for: (path that opens from here, name in the index, label), and the names' base.

    Of a single folder the names are relative to it; else they are the paths as given, relative to the current folder.
    The label is the first folder below an input folder, "" for images that lie directly in it, for files and lists.
    """
    inputs = list(inputs)
    alone = len(inputs) == 1 and os.path.isdir(inputs[0])
    sources = []
    for given in inputs:
        for path in find_images([given]):
            label = ""
            inside = path
            if os.path.isdir(given):
                inside = os.path.relpath(path, given)
                label = inside.split(os.sep)[0] if os.sep in inside else ""
            sources.append((path, inside if alone else path, label))
    return sources, Path(inputs[0]).resolve() if alone else Path.cwd()


def _of_names(sources: Iterable[tuple[str, str, str]], names: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """The sources whose paths are `names`, a subsequence of theirs."""
    rest = iter(sources)
    for name in names:
        yield next(source for source in rest if source[0] == name)


def model_of(index: Index, run: str | Path | None) -> TrainedModel:
    """The model that made the codes: of `run`, or the one that the index holds. UserError where it is another."""
    if run is None:
        return index.model()
    trained = load_model(run, index.code_length)
    index.matches(trained)
    return trained


def query(
    index: Index,
    images: Iterable[str],
    *,
    run: str | Path | None = None,
    k: int | None = None,
    radius: int | None = None,
    backend: str = "auto",
    nprobe: int | None = None,
    nflip: int | None = None,
    batch_size: int = 64,
    device: Any = "cpu",
    num_workers: int = 0,
) -> tuple[list[tuple[str, Rows, Rows]], list[tuple[str, str]], Backend]:
    """Search an index for images.

    Args:
        images: files, folders, lists.
        run: the model; None: the one in the index.
        k, radius: as for `Index.search`.
        backend, nprobe, nflip: as for `utils.search_backends.open_backend`.
        batch_size, device, num_workers: as for `utils.encode_files.encode_files`.

    Returns:
        (path, rows, distances) of each image; (path, reason) of those that cannot be read; what searched.

    Raises:
        UserError: none can be read, or the index is of another model.
    """
    index.checked(np.zeros((0, index.codes.shape[1]), np.uint8), k, radius)
    paths = find_images(images)
    trained = model_of(index, run)
    searcher = open_backend(index, backend, nprobe=nprobe, nflip=nflip)
    unreadable: list[tuple[str, str]] = []
    found: list[tuple[str, Rows, Rows]] = []
    for names, codes in encode_files(
        trained,
        paths,
        batch_size=batch_size,
        device=device,
        num_workers=num_workers,
        on_bad_image=lambda name, reason: unreadable.append((name, reason)),
    ):
        for name, (rows, distances) in zip(names, searcher.search(codes, k, radius), strict=True):
            found.append((name, rows, distances))
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in unreadable[:3])
        raise UserError(f"None of the {len(paths)} query images could be read ({reasons}).")
    return found, unreadable, searcher


def table(index: Index, found: Sequence[tuple[str, Rows, Rows]]) -> str:
    """For each query a table of its neighbours: rank, distance, label where there are any, name."""
    lines = []
    for path, rows, distances in found:
        lines += ["", printable(path)]
        if not len(rows):
            lines.append("  nothing within the radius")
            continue
        labels = None if index.labels is None else [printable(index.labels[row]) for row in rows.tolist()]
        width = max(map(len, ["label", *(labels or [])]))
        middle = "" if labels is None else f"  {'label':{width}}"
        lines.append(f"  rank  distance{middle}  name")
        for rank, (row, distance) in enumerate(zip(rows.tolist(), distances.tolist(), strict=True), 1):
            middle = "" if labels is None else f"  {labels[rank - 1]:{width}}"
            lines.append(f"  {rank:4}  {distance:8}{middle}  {printable(index.names[row])}")
    return "\n".join(lines[1:])


def as_json(
    index: Index,
    found: Sequence[tuple[str, Rows, Rows]],
    unreadable: Sequence[tuple[str, str]],
    backend: Backend,
    radius: int | None,
) -> dict[str, Any]:
    """What `--json` prints (docs/search.md)."""

    def neighbour(row: int, distance: int) -> dict[str, Any]:
        label = {} if index.labels is None else {"label": index.labels[row]}
        return {"row": row, "distance": distance, "name": index.names[row], "path": str(index.path_of(row)), **label}

    return {
        "index": str(index.folder),
        "images": len(index),
        "code_length": index.code_length,
        "fingerprint": index.fingerprint,
        "backend": backend.name,
        "exact": backend.is_exact(radius),
        "queries": [
            {"image": path, "neighbours": list(map(neighbour, rows.tolist(), distances.tolist()))}
            for path, rows, distances in found
        ],
        "unreadable": [{"image": path, "reason": reason} for path, reason in unreadable],
    }


def gallery_of_files(index: Index, found: Sequence[tuple[str, Rows, Rows]]) -> Gallery:
    """The picture of at most `MOST_IN_FIGURE` queries and neighbours; files that cannot be read any more are grey."""
    shown = [(path, rows[:MOST_IN_FIGURE], near[:MOST_IN_FIGURE]) for path, rows, near in found[:MOST_IN_FIGURE]]
    most = max(1, *(len(rows) for _, rows, _ in shown))
    images = np.zeros((len(shown), most, 3, THUMBNAIL, THUMBNAIL), np.uint8)
    distance = np.zeros((len(shown), most))
    texts: list[list[str]] = []
    for place, (_, rows, near) in enumerate(shown):
        distance[place, : len(near)] = near
        texts.append([])
        for rank, row in enumerate(rows.tolist()):
            images[place, rank] = file_thumbnail(index.path_of(row))
            label = "" if index.labels is None else index.labels[row]
            texts[-1].append(printable(label or os.path.basename(index.names[row])))
    return Gallery(
        query_images=np.stack([file_thumbnail(path) for path, _, _ in shown]),
        images=images,
        distance=distance,
        query_labels=np.zeros((len(shown), 0), bool),
        labels=np.zeros((len(shown), most, 0), bool),
        texts=([printable(os.path.basename(path)) for path, _, _ in shown], texts),
    )


def file_thumbnail(path: str | os.PathLike[str]) -> np.ndarray:
    """The middle square of an image file, uint8 [3, THUMBNAIL, THUMBNAIL]; grey where it cannot be read."""
    try:
        pixels = decode(path, THUMBNAIL)
    except BadImage:
        return np.full((3, THUMBNAIL, THUMBNAIL), _MISSING, np.uint8)
    square = ImageOps.fit(Image.fromarray(pixels), (THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    return np.asarray(square).transpose(2, 0, 1)


def printable(name: str) -> str:
    """A file's name as any terminal can show it: what is no UTF-8, and control characters, become marks."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m utils.search", description="Find the images of a collection that are like a given one."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="build | query | serve")
    encoding = argparse.ArgumentParser(add_help=False)
    add_encoding_flags(encoding)
    encoding.add_argument(
        "--backend", choices=("auto", *BACKENDS), default="auto", help="how to search; auto: by the number of codes"
    )
    building = commands.add_parser("build", parents=[encoding], help="hash a collection into an index")
    building.add_argument("run", metavar="RUN_FOLDER", help="a run's folder, or a model written by utils.encode")
    building.add_argument("images", nargs="+", metavar="IMAGES", help="image files, folders, or lists (.txt)")
    building.add_argument("-o", "--output", type=Path, required=True, metavar="INDEX", help="the folder to write")
    building.add_argument("--code-length", type=int, metavar="K", help="bits, where the run has models of several")
    querying = commands.add_parser("query", parents=[encoding], help="search an index for images")
    querying.add_argument("index", type=Path, metavar="INDEX", help="a folder that build wrote")
    querying.add_argument("images", nargs="+", metavar="IMAGE", help="image files, folders, or lists (.txt)")
    querying.add_argument("-k", type=int, metavar="K", help=f"neighbours [{DEFAULT_K}; with --radius all within it]")
    querying.add_argument("--radius", type=int, metavar="R", help="only neighbours at most R bits away")
    querying.add_argument("--figure", type=Path, metavar="FILE", help="draw queries and neighbours (png or pdf)")
    querying.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    querying.add_argument("--run", metavar="RUN_FOLDER", help="the model, where the index holds none")
    querying.add_argument(
        "--images-folder", type=Path, metavar="DIR", help="where the collection lies now, for --figure"
    )
    querying.add_argument("--nprobe", type=int, metavar="N", help="lists that a query looks at (ivf)")
    querying.add_argument("--nflip", type=int, metavar="N", help="bits flipped in each key (multihash)")
    serving = commands.add_parser("serve", help="search an index in a browser, on this machine (docs/search_page.md)")
    serving.add_argument("index", type=Path, metavar="INDEX", help="a folder that build wrote")
    serving.add_argument("--host", default="127.0.0.1", help="the address to listen at [127.0.0.1: this machine only]")
    serving.add_argument("--port", type=int, default=8765, metavar="N", help="0: any free one [8765]")
    serving.add_argument(
        "--images-folder", "--images", type=Path, metavar="DIR", help="where the collection lies now, if it was moved"
    )
    serving.add_argument("--run", metavar="RUN_FOLDER", help="the model, where the index holds none")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with the given command line; returns the exit status: 0, 2 for what the user can mend, 130 or 143."""
    parser = _parser()
    options = parser.parse_args(arguments)
    commands = {"build": _build, "query": _query, "serve": _serve}
    return run_command("python -m utils.search", lambda: commands[options.command](options))


def _build(options: argparse.Namespace) -> None:
    require_least(options, batch_size=1, num_workers=0, code_length=1)
    index, skipped = build(
        options.run,
        options.images,
        options.output,
        code_length=options.code_length,
        batch_size=options.batch_size,
        device=choose_device(options.device),
        num_workers=options.num_workers,
        backend=options.backend,
    )
    left_out = f", {skipped:,} skipped" if skipped else ""
    print(f"{len(index):,} images in {index.code_length} bits{left_out}: index written to {options.output}")


def _query(options: argparse.Namespace) -> None:
    require_least(options, batch_size=1, num_workers=0, k=1, radius=0, nprobe=1, nflip=0)
    if options.figure is not None:
        if options.figure.suffix[1:] not in FORMATS:
            raise UserError(f"--figure {options.figure}: pictures are written as {' or '.join(FORMATS)}; name it so.")
        require_place(options.figure, "--figure")
    device = choose_device(options.device)
    index = Index.load(options.index)
    if options.images_folder is not None:
        index.images = options.images_folder
    found, unreadable, backend = query(
        index,
        options.images,
        run=options.run,
        k=options.k,
        radius=options.radius,
        backend=options.backend,
        nprobe=options.nprobe,
        nflip=options.nflip,
        batch_size=options.batch_size,
        device=device,
        num_workers=options.num_workers,
    )
    for path, reason in unreadable:
        print(f"{printable(path)}: skipped ({reason})", file=sys.stderr)
    if options.json:
        print(json.dumps(as_json(index, found, unreadable, backend, options.radius), indent=1))
    else:
        print(table(index, found))
        if not backend.is_exact(options.radius):
            print(f"\nSearched by {backend.name}, which may miss neighbours; --backend flat misses none.")
    if options.figure is not None:
        gallery_figure(options.figure, gallery_of_files(index, found))
        print(f"Picture written to {options.figure}", file=sys.stderr)


def _serve(options: argparse.Namespace) -> None:
    index = Index.load(options.index)
    if options.images_folder is not None:
        if not options.images_folder.is_dir():
            raise UserError(f"--images-folder {options.images_folder}: there is no such folder.")
        index.images = options.images_folder
    trained = model_of(index, options.run)
    with contextlib.suppress(KeyboardInterrupt):  # the way to end it
        serve(index, trained, options.host, options.port)


if __name__ == "__main__":
    sys.exit(main())
