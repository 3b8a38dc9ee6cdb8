"""A table of text, as Markdown or as LaTeX with booktabs."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "−": "$-$",
}
_NUMBER = re.compile(r"[<+−]? ?\d[\d.]*( ± [\d.]+)?( \(n = \d+\))?|")


@dataclass(frozen=True)
class Table:
    """Header and rows of plain text, with a title above and a note below; both may be empty."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str

    def markdown(self) -> str:
        """The title as a third-level heading, the table, and the note as a paragraph."""
        lines = [f"### {self.title}", ""] if self.title else []
        cells = [[cell.replace("|", r"\|") for cell in row] for row in [self.header, *self.rows]]
        table = [f"| {' | '.join(row)} |" for row in cells]
        lines += [table[0], "|" + "---|" * len(self.header), *table[1:]]
        return "\n".join(lines + (["", self.note] if self.note else []))

    def latex(self) -> str:
        """A `table` environment; the document needs the package booktabs. Title and note are its caption."""
        align = "".join(
            "r" if column > 0 and all(_NUMBER.fullmatch(row[column]) for row in self.rows) else "l"
            for column in range(len(self.header))
        )
        caption = " ".join(part for part in (f"{self.title}." if self.title else "", self.note) if part)
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(caption)}}}",
            rf"\begin{{tabular}}{{{align}}}",
        ]
        lines += [r"\toprule", _latex_row(self.header), r"\midrule", *map(_latex_row, self.rows), r"\bottomrule"]
        return "\n".join([r"% \usepackage{booktabs}", *lines, r"\end{tabular}", r"\end{table}"])


def latex_text(text: str) -> str:
    """Plain text as LaTeX: special characters are escaped, and two hyphens do not become a dash."""
    return "".join(_LATEX.get(character, character) for character in text).replace("--", "-{}-")


def _latex_row(cells: list[str]) -> str:
    return " & ".join(map(latex_text, cells)) + r" \\"
