"""Tables are made from committed figures: README and CSV must agree, and gathering must find every run."""

import json
from pathlib import Path

import pytest

from benchmarks import tables

ROOT = Path(__file__).parents[1]


def test_the_readme_holds_the_table_of_the_csv():
    table = tables.markdown(tables.read_csv(ROOT / "results" / "digits.csv"))
    assert table in (ROOT / "README.md").read_text(encoding="utf-8")


def write_run(folder, seed, learned, code_length=8):
    folder.mkdir(parents=True)
    figures = {kind: {"expected": learned, "stable": learned} for kind in tables.DATABASES}
    row = {"method": "main_tomm", "dataset": "digits", "code_length": code_length, "seed": seed, "iterations": 2}
    row |= {"topk": -1, "seconds": 10 * seed, "map": figures, "best": {"iteration": 1, "expected": learned}}
    config = {"commit": {"hash": "0123456789abcdef", "dirty": True}, "versions": {"torch": "2.14"}}
    config |= {"device": "cpu", "command": "python run.py"}
    (folder / "results.json").write_text(json.dumps([row]))
    (folder / "config.json").write_text(json.dumps(config))


def test_mean_and_deviation_over_seeds(tmp_path, capsys):
    for seed, learned in ((1, 0.5), (2, 0.7), (3, 0.9)):
        write_run(tmp_path / "logs" / f"run-{seed}", seed, learned)
    write_run(tmp_path / "logs" / "deeper" / "run", 1, 0.25, code_length=16)
    assert tables.main([str(tmp_path / "logs"), str(tmp_path / "figures.csv")]) == 0
    printed = capsys.readouterr().out
    assert "| digits | main_tomm | 8 | 2 | 3 (1, 2, 3) | 0.7000 ± 0.2000 |" in printed and "| 20 |" in printed
    assert "| digits | main_tomm | 16 | 2 | 1 (1) | 0.2500 |" in printed
    rows = tables.read_csv(tmp_path / "figures.csv")
    assert [row["seed"] for row in rows] == ["1", "2", "3", "1"] and rows[0]["commit"] == "0123456789+"
    assert tables.main([str(tmp_path / "figures.csv")]) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("arguments", [[], ["nowhere"], ["empty"]])
def test_nothing_to_gather(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert tables.main(arguments) == 2 and capsys.readouterr().err
