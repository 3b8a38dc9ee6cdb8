"""The default folder for datasets, and the commands that make lists from the official releases."""
