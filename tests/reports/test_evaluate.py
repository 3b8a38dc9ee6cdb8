"""`python -m reports evaluate` on the folder of a run and on code files of other projects."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from reports.code_files import find_code_sets
from reports.evaluate import FLAGS, evaluate_set, main, order_sensitivity, table
from tests.naive_ranking import make_case
from utils.evaluate import evaluate_codes, mean_average_precision
from utils.hamming import Matrices
from utils.runs import ROLES


def save_codes(folder, case, *, bits=12, name="digits-{}bits-0.5000"):
    for role, tensor in zip(ROLES, case, strict=True):
        torch.save(tensor, folder / f"{name.format(bits)}-{role}.t")


@pytest.fixture
def run_folder(tmp_path):
    """The folder of a run with two code lengths, the longer first."""
    rows = []
    for bits in (24, 12):
        case = make_case(bits, bits=bits, zeros="rows")
        save_codes(tmp_path, case, bits=bits)
        last = mean_average_precision(*case, topk=30)
        rows.append(
            {
                "method": "main_mmasia", "dataset": "digits", "code_length": bits, "seed": 999, "topk": 30,
                "map": {"learned": {"expected": last, "stable": last}, "network": {"expected": 0.1234, "stable": 0.1}},
                "best": {"iteration": 3, "expected": 0.9876},
            }
        )  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps(rows))
    return tmp_path


def test_a_run_folder_with_several_code_lengths(run_folder, capsys):
    target = run_folder / "report.json"
    assert main([str(run_folder), "--json", str(target), "--order-sensitivity"]) == 0
    reports = json.loads(target.read_text())
    assert [report["code_length"] for report in reports] == [12, 24]
    for report in reports:
        case = make_case(report["code_length"], bits=report["code_length"], zeros="rows")
        expected = json.loads(json.dumps(evaluate_codes(*case, topk=30)))
        assert {name: report[name] for name in expected} == expected
        assert (report["queries"], report["database"]) == (6, 150)
        assert report["zero_rows"] == int((case[1] == 0).all(1).sum()) > 0
        assert report["run"]["map"]["learned"]["expected"] == report["map"]["expected"]  # the run's own R was taken
        assert report["order_sensitivity"]["given"] == report["map"]["stable"]
    output = capsys.readouterr().out
    for text in ("code length", "never encoded (all zero)", "NDCG@100", "0.9876", "database sorted by class"):
        assert text in output
    assert f"{reports[0]['map']['expected']:.4f}" in output


def test_a_link_is_written_and_not_replaced(run_folder, tmp_path):
    link, target = tmp_path / "link.json", tmp_path / "target.json"  # /dev/stdout is a link, too
    link.symlink_to(target)
    assert main([str(run_folder), "--json", str(link)]) == 0
    assert link.is_symlink() and len(json.loads(target.read_text())) == 2


def test_topk_on_the_command_line_wins(run_folder, tmp_path):
    target = tmp_path / "all.json"
    assert main([str(run_folder), "--topk", "-1", "--json", str(target)]) == 0
    assert [report["topk"] for report in json.loads(target.read_text())] == [None, None]


def test_four_files_of_another_project(tmp_path, capsys):
    case = make_case(3)
    save_codes(tmp_path, [tensor.to(torch.int8) for tensor in case], name="other-method-{}bits-x")
    files = [str(path) for path in sorted(tmp_path.glob("*.t"))]
    target = tmp_path / "report.json"
    assert main([*files, "--json", str(target)]) == 0
    (report,) = json.loads(target.read_text())
    assert report["name"] == "other-method-12bits-x"
    assert report["map"]["expected"] == mean_average_precision(*case)
    assert "run" not in report
    assert "last mAP" not in capsys.readouterr().out


def test_files_with_any_names(tmp_path, capsys, caplog):
    """A project that saves bits and class numbers in a column, in three kinds of files."""
    case = make_case(3)
    numbers = [(torch.arange(len(labels)) % 3)[:, None] for labels in case[2:]]
    np.savez(tmp_path / "codes.npz", query=case[0] > 0, base=case[1] > 0)
    savemat(tmp_path / "labels.mat", {"test_L": numbers[0].numpy()})
    np.save(tmp_path / "train.npy", numbers[1].numpy())
    target = tmp_path / "report.json"
    specs = "codes.npz:query", "codes.npz:base", "labels.mat", "train.npy"
    flags = [text for flag, spec in zip(FLAGS, specs, strict=True) for text in (flag, str(tmp_path / spec))]
    assert main([*flags, "--json", str(target)]) == 0
    one_hot = [torch.eye(3)[number[:, 0]] for number in numbers]
    (report,) = json.loads(target.read_text())
    assert report["map"]["expected"] == mean_average_precision(*case[:2], *one_hot)
    assert (report["denominator"], report["without_relevant"]) == ("retrieved", "zero")
    codes, labels = caplog.messages
    assert codes.endswith("codes.npz: query_code and database_code without -1: read as bits, 0 as -1 and 1 as +1.")
    assert labels.endswith("codes.npz: labels of one column: read as class numbers, not as multi-hot rows.")
    capsys.readouterr()
    refuse([*flags[:6]], capsys, "--query-codes: give --query-codes, --database-codes, --query-labels, --database-la")
    refuse([*flags, tmp_path], capsys, "--query-codes: give", "without other paths")


def test_other_conventions_are_named_in_the_output(run_folder, tmp_path, capsys):
    target = tmp_path / "report.json"
    flags = ["--denominator", "relevant", "--without-relevant", "skip", "--order-sensitivity", "--json", str(target)]
    assert main([str(run_folder), *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[-2:] == ["relevant", "relevant"] and line.startswith("AP divided by") for line in lines)
    assert any(line.split()[-2:] == ["skip", "skip"] for line in lines)
    for report in json.loads(target.read_text()):
        case = make_case(report["code_length"], bits=report["code_length"], zeros="rows")
        convention = {"denominator": "relevant", "without_relevant": "skip"}
        assert report["map"]["expected"] == mean_average_precision(*case, topk=30, **convention)
        assert report["order_sensitivity"]["given"] == report["map"]["stable"]
        assert {name: report[name] for name in convention} == convention


def test_class_numbers_are_evaluated_as_one_hot_rows(tmp_path):
    case = make_case(4)
    numbers = [torch.arange(len(labels)) % 3 for labels in case[2:]]
    save_codes(tmp_path, [*case[:2], *numbers], name="a")
    (code_set,) = find_code_sets([tmp_path])
    report = evaluate_set(code_set, topk=None)
    assert report["map"]["expected"] == mean_average_precision(*case[:2], *[torch.eye(3)[n] for n in numbers])


def test_a_run_of_a_method_that_learns_no_codes(run_folder):
    rows = json.loads((run_folder / "results.json").read_text())
    for row in rows:
        row["map"].pop("learned")
        row.pop("best")
    (run_folder / "results.json").write_text(json.dumps(rows))
    report = evaluate_set(find_code_sets(sorted(run_folder.glob("digits-12bits*")))[0], topk=None)
    assert report["run"] == {"map": {"network": {"expected": 0.1234, "stable": 0.1}}, "topk": 30}
    lines = [line.split() for line in table([report]).splitlines()]
    assert ["last", "mAP", "of", "the", "run,", "network's", "codes", "0.1234"] in lines
    assert not any(line[:5] == ["last", "mAP", "of", "the", "run,"] and "expected" in line for line in lines)


def test_order_sensitivity_shows_what_a_sorted_database_does():
    # every item tied: the first of a database sorted by class is the query's own class, of a reversed one the other
    labels = torch.eye(2)[[0] * 5 + [1] * 5]
    case = torch.ones(1, 4), torch.ones(10, 4), torch.tensor([[1.0, 0.0]]), labels
    mixed = Matrices(*case[:3], labels[torch.tensor([5, 0, 6, 1, 7, 2, 8, 3, 9, 4])])
    orders = order_sensitivity(mixed, topk=None)
    assert orders["class_sorted"] == 1.0
    assert orders["given"] == pytest.approx(0.5)
    assert orders["reversed"] == pytest.approx(sum((i + 1) / (2 * i + 1) for i in range(5)) / 5)
    unlabelled = Matrices(*case[:3], labels * torch.tensor([[1.0], [0.0]]).repeat(5, 1))
    assert order_sensitivity(unlabelled, topk=None)["class_sorted"] == 1.0  # rows without label come last
    numbers = Matrices(*case[:2], torch.tensor([0]), torch.arange(10) % 2)
    assert order_sensitivity(numbers, topk=None)["class_sorted"] == 1.0


def refuse(arguments, capsys, *texts):
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("python -m reports evaluate: ")
    assert error.count("\n") == 1
    for text in texts:
        assert str(text) in error


def test_bad_paths_are_refused(run_folder, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    refuse([empty], capsys, empty, "has no code files")
    refuse([tmp_path / "absent"], capsys, "absent", "name the folder of one run")
    refuse([tmp_path / "x-query_code.t"], capsys, "no such file")
    files = sorted(run_folder.glob("digits-12bits*.t"))
    refuse(files[:3], capsys, "missing", "give all four")
    refuse([run_folder, "--json", empty], capsys, "--json", "is a folder; name a file")
    refuse([run_folder, "--json", tmp_path / "no" / "x.json"], capsys, "--json", "there is no folder")
    refuse([run_folder, "--topk", "many"], capsys, "--topk", "whole number")
    refuse([], capsys, "name the folder of a run", "--help lists the flags")

    refuse([run_folder, "--device", "tpu"], capsys, "--device tpu")


def test_bad_files_are_refused(run_folder, capsys):
    path = next(run_folder.glob("digits-12bits*-query_code.t"))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refuse([run_folder], capsys, path, "damaged, or not a tensor")
    path.write_bytes(b"")
    refuse([run_folder], capsys, path, "damaged, or not a tensor")
    torch.save({"codes": 1}, path)
    refuse([run_folder], capsys, path, "holds a dict")
    torch.save(torch.zeros(6, 5), path)
    refuse([run_folder], capsys, run_folder, "code length")
    torch.save(torch.full((6, 12), 0.3), path)
    refuse([run_folder], capsys, "take the sign")


class Payload:
    """Unpickling it would write a file."""

    def __reduce__(self):
        return Path.touch, (Path("written-by-a-pickle"),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("save", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_nothing_is_run_by_reading_a_file(run_folder, capsys, monkeypatch, save):
    monkeypatch.chdir(run_folder)
    path = next(run_folder.glob("digits-24bits*-database_targets.t"))
    save(Payload(), path)
    refuse([run_folder], capsys, path, "damaged, or not a tensor")
    assert not (run_folder / "written-by-a-pickle").exists()


def test_figures_are_drawn_beside_the_files(run_folder, capsys):
    assert main([str(run_folder), "--figures"]) == 0
    names = ["precision-recall.png", "precision-at-n.png", "ndcg-at-n.png"]
    assert capsys.readouterr().out.split()[-3:] == [str(run_folder / "figures" / name) for name in names]
    assert sorted(path.name for path in (run_folder / "figures").iterdir()) == sorted(names)


def test_the_command_as_a_user_types_it(run_folder):
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "reports", "evaluate", str(run_folder)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "mAP@R, expected over ties" in done.stdout
    assert done.stderr == ""
