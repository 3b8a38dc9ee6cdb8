"""What to do with finished runs: evaluate their codes again, draw figures, make tables."""

COMMANDS = {
    "evaluate": "Evaluate saved codes: of a run, or of another project.",
    "figures": "Draw the figures of a finished run, or compare several runs.",
    "tables": "Collect finished runs in a CSV, print tables and comparisons.",
}
