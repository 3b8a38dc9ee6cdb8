"""`python -m search encode | export | build | query | serve` (docs/search.md)."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from plots.gallery import gallery_figure
from plots.style import FORMATS
from search import encode_command
from search.backends import BACKENDS
from search.build import build
from search.index import DEFAULT_K, Index
from search.page import serve
from search.query import as_json, gallery_of_files, model_of, printable, query, table
from utils.command import add_encoding_flags, require_least, run_command
from utils.devices import choose_device
from utils.errors import UserError
from utils.files import require_place


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m search", description="Find the images of a collection that are like a given one."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="build | query | serve")
    encoding = argparse.ArgumentParser(add_help=False)
    add_encoding_flags(encoding)
    encoding.add_argument(
        "--backend", choices=("auto", *BACKENDS), default="auto", help="how to search; auto: by the number of codes"
    )
    building = commands.add_parser("build", parents=[encoding], help="hash a collection into an index")
    building.add_argument(
        "run", metavar="RUN_FOLDER", help="a run's folder, or a model written by `python -m search export`"
    )
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


def main(arguments: Sequence[str]) -> int:
    """Run with the given command line; returns the exit status: 0, 2 for what the user can mend, 130 or 143."""
    if arguments and arguments[0] == "encode":
        return encode_command.main(arguments[1:])
    parser = _parser()
    options = parser.parse_args(arguments)
    commands = {"build": _build, "query": _query, "serve": _serve}
    return run_command("python -m search", lambda: commands[options.command](options))


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
