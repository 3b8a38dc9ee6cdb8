"""Does a test fail when a formula is wrong? Changes the method in one place at a time and names the test that fails.

    python -m tests.mutations                               # all changes; prints results/mutations.md's table
    python -m tests.mutations --file modules/losses.py      # only the changes in one file

Each change is made in a temporary copy of the project. The tests of the formulas run there until the first failure. The
exit status is 1 if no test notices a change.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from utils.command import Parser, run_command
from utils.errors import UserError

PROGRAM = "python -m tests.mutations"
ROOT = Path(__file__).parents[1]
TESTS = [
    "tests/modules/test_golden.py",
    "tests/modules/test_modules.py",
    "tests/modules/test_discrete.py",
    "tests/test_recipe.py",
]

# (file, original text, changed text)
MUTATIONS = [
    ("modules/losses.py", "code @ codes.T, code_length * similarity", "code @ codes.T, -code_length * similarity"),
    ("modules/losses.py", "(12 / code_length)", "(code_length / 12)"),
    ("modules/losses.py", "+ gamma * mse_loss(code, codes)", "- gamma * mse_loss(code, codes)"),
    ("modules/losses.py", "mse_loss(image_code_rec, image_code)", "mse_loss(image_code_rec, image_code.detach())"),
    ("modules/losses.py", "mse_loss(label_code_rec, label_code)", "mse_loss(label_code_rec, image_code)"),
    ("modules/losses.py", "_cross_entropy(fake, torch.ones_like(fake))", "-_cross_entropy(fake, 0 * fake)"),
    ("modules/all_in_one.py", "= image_features.detach(), label", "= image_features, label"),
    ("modules/all_in_one.py", ", label_features.detach()", ", label_features"),
    ("modules/all_in_one.py", "(query_and_key, query_and_key, value", "(query_and_key, -query_and_key, value"),
    ("modules/gcn/layers.py", "torch.addmm(self.bias, adjacency,", "torch.addmm(self.bias, adjacency / 10,"),
    ("modules/gcn/layers.py", "torch.addmm(self.bias, adjacency,", "torch.addmm(-self.bias, adjacency,"),
    ("modules/gcn/models.py", "torch.sigmoid", "torch.tanh"),
    ("modules/discriminator.py", "(scores.squeeze(1) + 1) / 2", "(1 - scores.squeeze(1)) / 2"),
    ("modules/discrete.py", "-1.0 - 2.0 * ratio", "-1.0 + 2.0 * ratio"),
    ("modules/discrete.py", "2 * similar - pairs", "similar - pairs"),
    ("modules/discrete.py", "(codes.shape[1] * softened(", "(softened("),
    ("modules/discrete.py", "+ gamma * row_codes[0]", "- gamma * row_codes[0]"),
    ("modules/discrete.py", "+ alpha * row_codes[1]", "- alpha * row_codes[1]"),
    ("modules/discrete.py", "+ beta * row_codes[2]", "- beta * row_codes[2]"),
    ("modules/discrete.py", "linear[:, k] - codes @", "linear[:, k] + codes @"),
    ("modules/discrete.py", "    gram.fill_diagonal_(0)", "    pass"),
    ("main_mmasia.py", "loop.batches(sample, iteration, epoch)", "loop.batches(sample, iteration)"),
    ("main_tomm.py", "if settings.fresh_batches else", "if True else"),
    ("main_tomm.py", "(*(code.detach() for code in generated))", "(image_code.to(codes), label_code.to(codes))"),
    ("main_tomm.py", "(*(code.detach() for code in generated))", "(*generated)"),
    ("main_tomm.py", "optimizer_g = adam(model_cycle.parameters())", "optimizer_g = adam(model_label.parameters())"),
    ("main_tomm.py", "discriminator_loss(real, fake)", "discriminator_loss(fake, real)"),
    ("main_tomm.py", "gamma=1 / 5", "gamma=1 / 2"),
    ("training/settings.py", "        (6, 41), numbers(COUNT)", "        (5, 40), numbers(COUNT)"),
    ("main_mmasia.py", "*model_label.parameters(), ", ""),
]  # fmt: skip


def first_failure(folder: Path) -> str | None:
    """The first failing test in a copy of the project; None if all pass.

    Raises:
        UserError: pytest did not run.
    """
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", *TESTS],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if found:
        return found[1]
    if done.returncode != 0:
        raise UserError(f"pytest did not run ({(done.stderr or done.stdout).strip().splitlines()[-1]}).")
    return None


def main(arguments: list[str]) -> int:
    """Make every change, print the table; returns 1 if no test notices a change.

    Raises:
        UserError: a bad flag, the tests fail without a change, or the list of changes is out of date.
    """
    parser = Parser(prog=PROGRAM, description="Changes the method and names the test that fails.")
    files = sorted({file for file, _, _ in MUTATIONS})
    parser.add_argument("--file", choices=files, help="only the changes in this file (default: in all)")
    given = parser.parse_args(arguments)
    mutations = [mutation for mutation in MUTATIONS if given.file in (None, mutation[0])]
    unnoticed = 0
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "project"
        skipped = shutil.ignore_patterns(".git", ".venv", "logs", "__pycache__", ".*_cache", ".hypothesis")
        shutil.copytree(ROOT, copy, ignore=skipped)
        if failed := first_failure(copy):
            raise UserError(f"{failed} fails without any change; repair it first.")
        print("| file | original | changed to | noticed by |\n|---|---|---|---|")
        for file, old, new in mutations:
            source = (ROOT / file).read_text(encoding="utf-8")
            if source.count(old) != 1:
                raise UserError(f"{file} holds {old!r} {source.count(old)} times, not once; update MUTATIONS.")
            (copy / file).write_text(source.replace(old, new), encoding="utf-8")
            test = first_failure(copy)
            (copy / file).write_text(source, encoding="utf-8")
            unnoticed += test is None
            print(f"| {file} | `{old}` | `{new}` | {test or '**nothing**'} |", flush=True)
    print(f"{len(mutations) - unnoticed} of {len(mutations)} changes noticed")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(run_command(PROGRAM, lambda: main(sys.argv[1:])))
