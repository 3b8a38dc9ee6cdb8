"""`python -m search encode | export | build | query | serve` (docs/encode.md, docs/search.md, docs/search_page.md)."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from plots.gallery import gallery_figure
from plots.style import FORMATS
from search.backends import BACKENDS, open_backend
from search.build import build
from search.encode import print_skipped
from search.encode_command import add_encoding_flags, add_model_flags, add_pixels_flag, encode, encoding_of
from search.index import DEFAULT_K, Index
from search.model import export_model, load_model
from search.page import serve
from search.query import as_json, gallery_of_files, printable, query, table
from utils.command import Parser, bounded, run_command
from utils.errors import UserError
from utils.files import require_place
from utils.interrupt import Interrupted


def _export(arguments: Sequence[str]) -> None:
    parser = Parser(
        prog="python -m search export", description="Write the model of a run in half precision, in one small file."
    )
    add_model_flags(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the file to write")
    options = parser.parse_args(arguments)
    require_place(options.output, "-o")
    export_model(load_model(options.run, options.code_length), options.output)
    print(f"Written to {options.output} ({options.output.stat().st_size / 1e6:.1f} MB)")


def _build(arguments: Sequence[str]) -> None:
    parser = Parser(prog="python -m search build", description="Encode images into a search index.")
    add_model_flags(parser)
    add_encoding_flags(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="INDEX", help="the folder to write")
    _add_backend_flag(parser)
    options = parser.parse_args(arguments)
    encoding = encoding_of(options)
    index, skipped = build(options.run, options.images, options.output, encoding, options.code_length, options.backend)
    left_out = f", {skipped:,} skipped" if skipped else ""
    print(f"{len(index):,} images in {index.code_length} bits{left_out}: index written to {options.output}")


def _query(arguments: Sequence[str]) -> None:
    parser = Parser(prog="python -m search query", description="Find the images of an index that are like given ones.")
    _add_index_flags(parser)
    add_encoding_flags(parser)
    parser.add_argument(
        "-k", type=bounded(int, 1), metavar="K", help=f"neighbours [{DEFAULT_K}; with --radius all within it]"
    )
    parser.add_argument("--radius", type=bounded(int, 0), metavar="R", help="only neighbours at most R bits away")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw queries and neighbours (png or pdf)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    parser.add_argument("--nprobe", type=bounded(int, 1), metavar="N", help="lists that a query reads (ivf)")
    parser.add_argument("--nflip", type=bounded(int, 0), metavar="N", help="bits flipped in each key (multihash)")
    _add_backend_flag(parser)
    options = parser.parse_args(arguments)

    if options.figure is not None:
        if options.figure.suffix[1:] not in FORMATS:
            raise UserError(f"--figure {options.figure}: the name must end in {' or '.join(FORMATS)}.")
        require_place(options.figure, "--figure")
    encoding = encoding_of(options)
    index = _load_index(options)
    trained = index.model(options.run)
    backend = open_backend(index, options.backend, options.nprobe, options.nflip)
    found, unreadable = query(backend, trained, options.images, encoding, options.k, options.radius)
    for path, reason in unreadable:
        print_skipped(printable(path), reason)
    if options.json:
        print(json.dumps(as_json(index, found, unreadable, backend, options.radius), indent=1))
    else:
        print(table(index, found))
        if not backend.is_exact(options.radius):
            print(f"\nSearched with {backend.name}, which may miss neighbours; --backend numpy misses none.")
    if options.figure is not None:
        gallery, missing = gallery_of_files(index, found, options.max_pixels)
        for path, reason in missing:
            print(f"{printable(path)}: drawn as a grey square: {reason}", file=sys.stderr)
        if missing:
            print(f"{len(missing)} images are missing; name their folder with --images-folder.", file=sys.stderr)
        gallery_figure(options.figure, gallery)
        print(f"Figure written to {options.figure}", file=sys.stderr)


def _serve(arguments: Sequence[str]) -> None:
    parser = Parser(prog="python -m search serve", description="Search an index in a browser on this machine.")
    _add_index_flags(parser)
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on [127.0.0.1: this machine only]")
    parser.add_argument(
        "--port", type=bounded(int, 0, 65535), default=8765, metavar="N", help="0: any free port [8765]"
    )
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a name of a proxy that shows the page"
    )
    add_pixels_flag(parser)
    options = parser.parse_args(arguments)
    print(f"Loading {options.index} …", file=sys.stderr, flush=True)
    index = _load_index(options)
    try:
        serve(index, index.model(options.run), options.host, options.port, options.max_pixels, options.allow_host)
    except Interrupted as stopped:
        if stopped.status != 128 + signal.SIGINT:  # Ctrl-C is the normal way to stop the server
            raise


def _add_index_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", type=Path, metavar="INDEX", help="a folder that `python -m search build` wrote")
    parser.add_argument(
        "--run", metavar="RUN", help="the folder of a run, or an export, if the index has no model of its own"
    )
    parser.add_argument(
        "--images-folder", "--images", type=Path, metavar="DIR", help="where the images are now, if they were moved"
    )


def _add_backend_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend", choices=("auto", *BACKENDS), default="auto", help="how to search; auto: by the number of codes"
    )


def _load_index(options: argparse.Namespace) -> Index:
    index = Index.load(options.index)
    if options.images_folder is not None:
        if not options.images_folder.is_dir():
            raise UserError(f"--images-folder {options.images_folder}: there is no such folder.")
        index.images = options.images_folder
    return index


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {  # with what it does, for --help
    "encode": (encode, "write the codes of images to a file (docs/encode.md)"),
    "export": (_export, "write the model of a run to one small file (docs/encode.md)"),
    "build": (_build, "encode images into a search index (docs/search.md)"),
    "query": (_query, "find the images of an index that are like given ones (docs/search.md)"),
    "serve": (_serve, "search an index in a browser (docs/search_page.md)"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with the given command line; returns the exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    command = words[0] if words else ""

    def work() -> None:
        if command in ("-h", "--help"):
            print("usage: python -m search COMMAND ...\n")
            for name, (_, text) in COMMANDS.items():
                print(f"  {name:8}{text}")
            print("\npython -m search COMMAND --help lists the flags of a command.")
        elif command not in COMMANDS:
            problem = f"'{command}' is not a command" if words else "no command given"
            raise UserError(f"{problem}; the commands are {', '.join(COMMANDS)}.")
        else:
            COMMANDS[command][0](words[1:])

    return run_command(f"python -m search {command}" if command in COMMANDS else "python -m search", work)


if __name__ == "__main__":
    sys.exit(main())
