"""What to do with finished runs: evaluate their codes again, draw figures, make tables."""
