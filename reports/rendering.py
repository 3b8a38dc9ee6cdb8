"""A table of text, as Markdown or as LaTeX with booktabs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tabulate import LATEX_ESCAPE_RULES, tabulate

# What tabulate does not escape. Two hyphens would become a dash.
_LATEX = {"--": "-{}-", "|": r"\textbar{}", "±": r"$\pm$", "−": "$-$"}
_NUMBER = re.compile(r"[<+−]? ?\d[\d.]*( ± [\d.]+)?( \(n = \d+\))?|")


@dataclass(frozen=True)
class Table:
    """Header and rows of plain text, with a title above and a note below, which may be empty."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str

    def markdown(self) -> str:
        """The title as a third-level heading, the table, and the note as a paragraph."""
        escaped = [[cell.replace("|", r"\|") for cell in row] for row in self.rows]
        parts = [f"### {self.title}" if self.title else "", self._tabulate(escaped, "pipe"), self.note]
        return "\n\n".join(part for part in parts if part)

    def latex(self) -> str:
        """A `table` environment; the document needs the package booktabs. Title and note are its caption."""
        caption = " ".join(part for part in (f"{self.title}." if self.title else "", self.note) if part)
        caption = "".join(LATEX_ESCAPE_RULES.get(character, character) for character in caption)
        text = f"\\caption{{{caption}}}\n{self._tabulate(self.rows, 'latex_booktabs')}"
        for plain, escaped in _LATEX.items():
            text = text.replace(plain, escaped)
        return f"% \\usepackage{{booktabs}}\n\\begin{{table}}\n\\centering\n{text}\n\\end{{table}}"

    def _tabulate(self, rows: list[list[str]], layout: str) -> str:
        """The rows by tabulate: columns of numbers to the right, others and the first to the left."""
        numbers = [all(map(_NUMBER.fullmatch, column)) for column in zip(*rows, strict=True)]
        align = ["left", *("right" if number else "left" for number in numbers[1:])]
        return tabulate(rows, self.header, tablefmt=layout, disable_numparse=True, colalign=align)
