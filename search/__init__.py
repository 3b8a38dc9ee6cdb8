"""Codes for any images, a search index and its page."""
