"""Where users put image collections, and the commands that make lists from the official releases."""
