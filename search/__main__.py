"""`python -m search COMMAND` (docs/encode.md, docs/search.md, docs/search_page.md).

Each command imports what it needs: LanceDB takes a second, and torch three.
"""

from __future__ import annotations

import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.image_paths import find_images
from search.encode import Encoding, write_codes
from search.model import Model
from utils.command import MOST_PIXELS, Parser, bounded, run_command
from utils.errors import UserError
from utils.files import require_place
from utils.interrupt import Interrupted

if TYPE_CHECKING:
    from search.store import Added, Store

ARGUMENTS: dict[str, dict[str, Any]] = {  # of all commands
    "run": dict(type=Path, metavar="RUN", help="the folder of a run"),
    "model": dict(metavar="MODEL", help="a file of `python -m search export`"),
    "store": dict(metavar="STORE", help="what `python -m search build` wrote: a folder, or s3://…"),
    "images": dict(nargs="+", metavar="IMAGES", help="image files, folders, or lists of paths (.txt)"),
    "names": dict(nargs="*", metavar="NAMES", help="images, by the names that `query` prints"),
    "-o/--output": dict(type=Path, metavar="FILE", help="the file to write [%(default)s]"),
    "--code-length": dict(type=bounded(int, 1), metavar="K", help="bits, where the run has models of several lengths"),
    "--precision": dict(choices=("float32", "float16", "int8"), default="float32", help="of the weights [float32]"),
    "--images": dict(nargs="+", metavar="PATHS", help="to compare with torch on, and for int8 [the run's dataset]"),
    "--store": dict(required=True, metavar="STORE", help="a folder, or an address as s3://bucket/path"),
    "--images-folder": dict(type=Path, metavar="DIR", help="where the images are now, if they were moved"),
    "--device": dict(default="auto", help="auto (a GPU where onnxruntime has one), cpu or cuda [auto]"),
    "--batch-size": dict(type=bounded(int, 1), default=32, metavar="N", help="images at once in each thread [32]"),
    "--num-workers": dict(type=bounded(int, 0), default=0, metavar="N", help="threads; 0: one per processor [0]"),
    "--max-pixels": dict(type=bounded(int, 1), default=MOST_PIXELS, metavar="N", help=f"of an image [{MOST_PIXELS}]"),
    "--missing": dict(action="store_true", help="all images whose files no longer exist"),
    "--index": dict(choices=("ivf", "none"), help="make an index anew, or drop it [ivf for many images]"),
    "-k": dict(type=bounded(int, 1), metavar="K", help="neighbours [10; with --radius all within it]"),
    "--radius": dict(type=bounded(int, 0), metavar="R", help="only neighbours at most R bits away"),
    "--label": dict(metavar="L", help="only images with this label"),
    "--exact": dict(action="store_true", help="compare all codes, also where there is an index"),
    "--probes": dict(type=bounded(int, 1), metavar="N", help="lists of the index to read"),
    "--figure": dict(type=Path, metavar="FILE", help="draw queries and neighbours (png or pdf)"),
    "--json": dict(action="store_true", help="print one JSON document instead of tables"),
    "--host": dict(default="127.0.0.1", help="the address to listen on [127.0.0.1: this machine only]"),
    "--port": dict(type=bounded(int, 0, 65535), default=8765, metavar="N", help="0: any free port [8765]"),
    "--allow-host": dict(action="append", default=[], metavar="NAME", help="a name of a proxy that shows the page"),
    "--writable": dict(action="store_true", help="images can be added on the page"),
}
OUTPUTS = {"export": "model.onnx", "encode": "codes.npz", "parquet": "codes.parquet"}  # the defaults of -o
ENCODING = "--device --batch-size --num-workers --max-pixels"


def export(options: Namespace) -> None:
    """Write the model of a run to one ONNX file (docs/encode.md)."""
    from search.export import write_model

    write_model(options)


def encode(options: Namespace) -> None:
    """Write the codes of images to a file (docs/encode.md)."""
    paths = find_images(options.images)
    print(write_codes(options.output, Model.load(options.model, options.device), paths, options.encoding))


def build(options: Namespace) -> None:
    """Encode images into a store (docs/search.md)."""
    from search.store import build

    _print_added(*build(options.store, Model.load(options.model, options.device), options.images, options.encoding))


def add(options: Namespace) -> None:
    """Add new images to a store, and those that have changed (docs/search.md)."""
    store = _open_store(options)
    store.model(options.device)
    _print_added(store, store.add(options.images, options.encoding))


def remove(options: Namespace) -> None:
    """Remove images from a store (docs/search.md)."""
    if options.missing == bool(options.names):
        raise UserError("give either the names of images or --missing.")
    store = _open_store(options)
    removed = store.remove(options.names or None)
    for name in sorted({*options.names} - {*removed}):
        print(f"{name}: is not in the store", file=sys.stderr)
    print(f"{len(removed):,} images removed: {len(store):,} in {store.uri}")


def optimize(options: Namespace) -> None:
    """Make a store smaller and faster after many changes (docs/search.md)."""
    store = _open_store(options)
    recall = store.optimize({"ivf": True, "none": False}.get(options.index))
    lists = store.lists()
    print(f"{len(store):,} images, {f'an index of {lists:,} lists' if lists else 'no index'}: {store.uri}")
    if recall is not None:
        print(f"recall@10 of the index: {recall:.3f} (`query --probes` reads more lists)")


def query(options: Namespace) -> None:
    """Find the images of a store that are like given ones (docs/search.md)."""
    from search.query import query

    query(options, _open_store(options))


def serve(options: Namespace) -> None:
    """Search a store in a browser (docs/search_page.md)."""
    print(f"Loading {options.store} …", file=sys.stderr, flush=True)
    store = _open_store(options)
    from search.page import make_app
    from search.server import serve

    app = make_app(store, options.host, options.max_pixels, options.allow_host, options.writable)
    try:
        serve(app, options.host, options.port, f"{len(store):,} images")
    except Interrupted as stopped:
        if stopped.status != 128 + signal.SIGINT:  # Ctrl-C is the normal way to stop the server
            raise


def parquet(options: Namespace) -> None:
    """Write a store to a file for other databases (docs/search.md)."""
    print(f"{_open_store(options).write_parquet(options.output):,} images: written to {options.output}")


def _open_store(options: Namespace) -> Store:
    from search.store import Store

    store = Store(options.store)
    if options.images_folder is not None:
        if not options.images_folder.is_dir():
            raise UserError(f"--images-folder {options.images_folder}: there is no such folder.")
        store.images = options.images_folder
    return store


def _print_added(store: Store, added: Added) -> None:
    counts = f"{added.added:,} added, {added.changed:,} encoded again, {added.unchanged:,} unchanged"
    print(f"{counts}, {added.skipped:,} skipped: {len(store):,} images in {store.code_length} bits in {store.uri}")


COMMANDS: dict[str, tuple[Callable[[Namespace], None], str]] = {  # with the names of their arguments
    "export": (export, "run -o/--output --code-length --precision --images --max-pixels"),
    "encode": (encode, f"model images -o/--output {ENCODING}"),
    "build": (build, f"model images --store {ENCODING}"),
    "add": (add, f"store images --images-folder {ENCODING}"),
    "remove": (remove, "store names --images-folder --missing"),
    "optimize": (optimize, "store --images-folder --index"),
    "query": (query, f"store images --images-folder -k --radius --label --exact --probes --figure --json {ENCODING}"),
    "serve": (serve, "store --images-folder --host --port --allow-host --writable --max-pixels"),
    "parquet": (parquet, "store -o/--output --images-folder"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with the given command line; returns the exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    name = words[0] if words else ""
    program = f"python -m search {name}" if name in COMMANDS else "python -m search"

    def work() -> None:
        if name in ("-h", "--help"):
            print("usage: python -m search COMMAND ...\n")
            for command, (function, _) in COMMANDS.items():
                print(f"  {command:10}{function.__doc__}")
            print("\npython -m search COMMAND --help lists the flags of a command.")
        elif name not in COMMANDS:
            problem = f"'{name}' is not a command" if words else "no command given"
            raise UserError(f"{problem}; the commands are {', '.join(COMMANDS)}.")
        else:
            function, taken = COMMANDS[name]
            parser = Parser(prog=program, description=function.__doc__)
            for argument in taken.split():
                parser.add_argument(*argument.split("/"), **ARGUMENTS[argument])
            if name in OUTPUTS:
                parser.set_defaults(output=Path(OUTPUTS[name]))
            options = parser.parse_intermixed_args(words[1:])
            if name in OUTPUTS:
                require_place(options.output, "-o")
            if "batch_size" in options:
                options.encoding = Encoding(options.batch_size, options.num_workers, options.max_pixels)
            function(options)

    return run_command(program, work)


if __name__ == "__main__":
    sys.exit(main())
