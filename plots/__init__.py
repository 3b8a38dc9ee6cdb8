"""Figures from plain data. Nothing here knows the folder or the settings of a run."""
