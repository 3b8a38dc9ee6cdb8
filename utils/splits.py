"""The split that settings ask for."""

from __future__ import annotations

from data import Split, hold_out, load_data

from .settings import Settings, data_options


def load_split(settings: Settings) -> Split:
    """Load the dataset of `settings` and hold its validation images out; the split depends on the seed alone.

    Raises:
        UserError: the dataset is not there, not whole, or too small for what is asked of it.
    """
    split = load_data(settings.dataset, settings.root, **data_options(settings))
    return hold_out(split, settings.validate, settings.seed) if settings.validate else split
