"""Does a test go red when a formula is wrong? Breaks the method in one place at a time and names the test that notices.

    python -m benchmarks.mutations            # prints a table, exits 1 if a change goes unnoticed

Each change is made in a temporary copy of the checkout; the formula tests are run there until the first fails.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ["tests/modules/test_golden.py", "tests/test_modules.py", "tests/test_discrete.py", "tests/test_recipe.py"]

# (file, what stands there, what is put in its place)
MUTATIONS = [
    ("modules/losses.py", "code @ codes.T, code_length * similarity", "code @ codes.T, -code_length * similarity"),
    ("modules/losses.py", "(12 / code_length)", "(code_length / 12)"),
    ("modules/losses.py", "+ gamma * mse_loss(code, codes)", "- gamma * mse_loss(code, codes)"),
    ("modules/losses.py", "mse_loss(image_code_rec, image_code)", "mse_loss(image_code_rec, image_code.detach())"),
    ("modules/losses.py", "mse_loss(label_code_rec, label_code)", "mse_loss(label_code_rec, image_code)"),
    ("modules/losses.py", "binary_cross_entropy(fake, torch.ones_like(fake))", "-binary_cross_entropy(fake, 0 * fake)"),
    ("modules/all_in_one.py", "= image_features.detach(), label", "= image_features, label"),
    ("modules/all_in_one.py", ", label_features.detach()", ", label_features"),
    ("modules/all_in_one.py", "(query_and_key, query_and_key, value", "(query_and_key, -query_and_key, value"),
    ("modules/gcn/layers.py", "torch.addmm(self.bias, adjacency,", "torch.addmm(self.bias, adjacency / 10,"),
    ("modules/gcn/layers.py", "torch.addmm(self.bias, adjacency,", "torch.addmm(-self.bias, adjacency,"),
    ("modules/gcn/models.py", "torch.sigmoid", "torch.tanh"),
    ("modules/discriminator.py", "(scores.squeeze(1) + 1) / 2", "(1 - scores.squeeze(1)) / 2"),
    ("modules/discrete.py", "-1.0 - 2.0 * ratio", "-1.0 + 2.0 * ratio"),
    ("modules/discrete.py", "2 * similar - pairs", "similar - pairs"),
    ("modules/discrete.py", "(codes.shape[1] * similarity).T @", "(codes.shape[1] * similarity) @"),
    ("modules/discrete.py", "+ gamma * image_code + alpha", "- gamma * image_code + alpha"),
    ("modules/discrete.py", "+ alpha * label_code", "- alpha * label_code"),
    ("modules/discrete.py", "+ beta * latent_code", "- beta * latent_code"),
    ("modules/discrete.py", "+ gamma * row_codes[0]", "- gamma * row_codes[0]"),
    ("modules/discrete.py", "+ alpha * row_codes[1]", "- alpha * row_codes[1]"),
    ("modules/discrete.py", "+ beta * row_codes[2]", "- beta * row_codes[2]"),
    ("modules/discrete.py", "linear[:, k] - codes @", "linear[:, k] + codes @"),
    ("modules/discrete.py", "    gram.fill_diagonal_(0)", "    pass"),
    ("main_mmasia.py", 'key=(settings.seed, "batches", iteration, epoch)', 'key=(settings.seed, "batches", iteration)'),
    ("main_tomm.py", 'if settings.fresh_batches else', 'if True else'),
    ("main_tomm.py", "(image_code_rec.detach(), label_code_rec.detach())", "(image_code, label_code)"),
    ("main_tomm.py", "(image_code_rec.detach(), label_code_rec.detach())", "(image_code_rec, label_code_rec)"),
    ("main_tomm.py", "optimizer_g = adam(model_cycle.parameters())", "optimizer_g = adam(model_label.parameters())"),
    ("main_tomm.py", "discriminator_loss(real, fake)", "discriminator_loss(fake, real)"),
    ("main_tomm.py", "milestones = [6, 41]", "milestones = [5, 40]"),
    ("main_mmasia.py", "*model_label.parameters(), ", ""),
]  # fmt: skip


def first_failure(folder: Path) -> str | None:
    """The first failing test in a copy of the project; None where all pass."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", *TESTS],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if found:
        return found[1].removeprefix("tests/")
    if done.returncode != 0:
        raise SystemExit(f"pytest did not run: {done.stdout}{done.stderr}")
    return None


def main() -> int:
    unnoticed = 0
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / "project"
        skipped = shutil.ignore_patterns(".git", ".venv", "logs", "__pycache__", ".*_cache", ".hypothesis")
        shutil.copytree(ROOT, copy, ignore=skipped)
        print("| file | instead of | stood | caught by |\n|---|---|---|---|")
        for file, old, new in MUTATIONS:
            source = (ROOT / file).read_text(encoding="utf-8")
            if old not in source:
                raise SystemExit(f"{file} holds no {old!r}: the list of changes is out of date")
            (copy / file).write_text(source.replace(old, new), encoding="utf-8")
            test = first_failure(copy)
            (copy / file).write_text(source, encoding="utf-8")
            unnoticed += test is None
            print(f"| {file} | `{old}` | `{new}` | {test or '**nothing**'} |", flush=True)
    print(f"{len(MUTATIONS) - unnoticed} of {len(MUTATIONS)} changes caught")
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
