"""`python -m reports evaluate | figures | tables`: evaluate, draw and tabulate finished runs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from reports import COMMANDS


def main(arguments: Sequence[str]) -> int:
    """Run the command that the first word names; returns its exit status."""
    name, *rest = arguments or [""]
    if name in COMMANDS:
        # Each command imports what it needs: torch and matplotlib take seconds.
        return int(importlib.import_module(f"reports.{name}").main(rest))
    if name in ("-h", "--help"):
        print("usage: python -m reports COMMAND ... (COMMAND --help lists its flags)\n")
        for known, description in COMMANDS.items():
            print(f"  {known:<10}{description}")
        return 0
    problem = f"there is no command '{name}'" if name else "no command given"
    print(f"python -m reports: {problem}; choose from {', '.join(COMMANDS)}.", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
