"""`python -m reports evaluate | figures | tables`: what runs left, judged, drawn and gathered."""

from __future__ import annotations

import sys

from reports import evaluate, figures, tables

COMMANDS = {"evaluate": evaluate.main, "figures": figures.main, "tables": tables.main}


def main(arguments: list[str]) -> int:
    """Dispatch to a command; returns its exit status."""
    if not arguments or arguments[0] not in COMMANDS:
        print(f"python -m reports: name a command: {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    return COMMANDS[arguments[0]](arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
