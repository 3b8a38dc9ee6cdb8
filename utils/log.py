"""Log lines on stderr that do not break the progress bar."""

from __future__ import annotations

import logging
import sys

from tqdm import tqdm

from utils.distributed import launched_rank

log = logging.getLogger("schn")


class _BarHandler(logging.Handler):
    """Prints log lines above the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def configure_logging() -> None:
    """INFO lines with the time of day, on stderr; under torchrun only process 0 logs below WARNING."""
    handler = _BarHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    level = logging.WARNING if launched_rank() else logging.INFO
    logging.basicConfig(level=level, handlers=[handler], force=True)
