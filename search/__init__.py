"""Codes of any images, search indexes and the search page: `python -m search`."""
