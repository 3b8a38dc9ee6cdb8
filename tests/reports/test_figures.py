"""The figures of runs: what is drawn is what the files say, and bad folders are refused in one line."""

import json

import pytest
import torch

import main_tomm
import reports.evaluate
import reports.figures
import run
from plots import curves
from reports.tables import CURVE_FIELDS
from tests.plots.rows import metrics
from tests.small_networks import shrink
from utils.errors import UserError
from utils.evaluate import evaluate_codes


def fake_run(folder, *, seed=1, method="main_mmasia", maps=((12, 0.5), (32, 0.7)), codes=True, topk=-1, **settings):
    """A run's folder as run.py leaves it, with random codes."""
    folder.mkdir(parents=True)
    settings = {"method": method, "dataset": "digits", "seed": seed, "lr": 1e-4, "logs": str(folder.parent), **settings}
    (folder / "config.json").write_text(json.dumps({"settings": settings}))
    rows = []
    random = torch.Generator().manual_seed(seed)
    for bits, value in maps:
        figure = {"expected": value, "stable": value + 0.01}
        lower = {"expected": value - 0.1, "stable": value}
        rows.append(
            {"method": method, "dataset": settings["dataset"], "code_length": bits, "seed": seed, "topk": topk}
            | {"map": {"learned": figure, "learned_filled": figure, "network": lower}}
        )
        if codes:
            tensors = {
                "query_code": torch.randint(0, 2, (6, bits), generator=random).float() * 2 - 1,
                "database_code": torch.randint(0, 2, (30, bits), generator=random).float() * 2 - 1,
                "query_targets": torch.eye(3).repeat(2, 1),
                "database_targets": torch.eye(3).repeat(10, 1),
            }
            for name, tensor in tensors.items():
                torch.save(tensor, folder / f"digits-{bits}bits-{value:.4f}-{name}.t")
    (folder / "results.json").write_text(json.dumps(rows))
    lines = [json.dumps(row | {"code_length": bits}) for bits, _ in maps for row in metrics()]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_runs_that_differ_in_the_seed_alone_are_one_series(tmp_path):
    folders = [
        fake_run(tmp_path / "a", seed=1, maps=((12, 0.5), (32, 0.7))),
        fake_run(tmp_path / "b", seed=2, maps=((12, 0.6),), logs="elsewhere", device="cuda"),
        fake_run(tmp_path / "c", seed=1, method="main_tomm"),
        fake_run(tmp_path / "d", seed=1, lr=2e-4),
        fake_run(tmp_path / "e", seed=3, validate=0),  # its default, which the others do not name
    ]
    groups = reports.figures.group_runs([reports.figures.load_run(folder) for folder in folders])
    assert {name: [run.folder.name for run in runs] for name, runs in groups.items()} == {
        "MM Asia, lr 0.0001": ["a", "b", "e"],
        "TOMM": ["c"],
        "MM Asia, lr 0.0002": ["d"],
    }
    series = reports.figures.map_series(groups)
    assert series["MM Asia, lr 0.0001"] == {12: [0.5, 0.6, 0.5], 32: [0.7, 0.7]}
    assert reports.figures.map_series(groups, "network")["TOMM"] == {12: [pytest.approx(0.4)], 32: [pytest.approx(0.6)]}


def test_the_dataset_is_named_where_there_are_several(tmp_path):
    folders = [fake_run(tmp_path / "a"), fake_run(tmp_path / "b", dataset="cifar-10")]
    groups = reports.figures.group_runs([reports.figures.load_run(folder) for folder in folders])
    assert list(groups) == ["MM Asia, digits", "MM Asia, cifar-10"]


def test_one_run_twice_is_not_two_samples(tmp_path):
    folders = [fake_run(tmp_path / "a"), fake_run(tmp_path / "b")]
    with pytest.raises(UserError, match="the same settings, seed and code length"):
        reports.figures.comparison_figures(folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_evaluation_figures_draw_what_evaluate_reports(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        reports.evaluate, "precision_recall_figure", lambda path, curves, title: drawn.update(pr=curves) or path
    )
    monkeypatch.setattr(
        reports.evaluate, "cutoff_figure",
        lambda path, curves, ylabel="precision@N", title="": drawn.update({ylabel: curves}) or path,
    )  # fmt: skip
    codes, labels = torch.ones(4, 8), torch.ones(4, 2)
    report = {"name": "x", "code_length": 8, **evaluate_codes(codes, codes, labels, labels)}
    paths = reports.evaluate.evaluation_figures(tmp_path, reports.evaluate.by_name([report]))
    assert [path.name for path in paths] == ["precision-recall.png", "precision-at-n.png", "ndcg-at-n.png"]
    assert all(path.parent == tmp_path for path in paths)
    assert drawn == {
        "pr": {"8 bits": [report["precision_recall"]]},
        "precision@N": {"8 bits": [report["precision_at"]]},
        "NDCG@N": {"8 bits": [report["ndcg_at"]]},
    }
    reports.evaluate.evaluation_figures(tmp_path, reports.evaluate.by_name([report, report | {"name": "y"}]))
    assert list(drawn["pr"]) == ["x", "y"], "sets of one code length go by their names"


def test_the_command_draws_one_run(tmp_path, capsys):
    folder = fake_run(tmp_path / "a")
    assert reports.figures.main([str(folder)]) == 0
    names = [
        "training-12bits.png", "training-32bits.png", "map-by-code-length.png", "precision-recall.png",
        "precision-at-n.png",
    ]  # fmt: skip
    assert capsys.readouterr().out.split() == [str(folder / "figures" / name) for name in names]
    assert sorted(path.name for path in (folder / "figures").iterdir()) == sorted(names)


def test_the_command_compares_runs(tmp_path, capsys, monkeypatch):
    folders = [fake_run(tmp_path / name, seed=seed, topk=50) for seed, name in enumerate("abc")]
    seen = {}
    write = curves.map_figure
    monkeypatch.setattr(
        reports.figures,
        "map_figure",
        lambda path, *arguments: seen.update({path.name: arguments}) or write(path, *arguments),
    )
    titles = []
    curve = curves.precision_recall_figure
    monkeypatch.setattr(
        reports.evaluate, "precision_recall_figure",
        lambda path, curves, title: titles.append(title) or curve(path, curves, title),
    )  # fmt: skip
    assert (
        reports.figures.main([*map(str, folders), "-o", str(tmp_path / "out"), "--format", "pdf", "--codes", "network"])
        == 0
    )
    names = [
        "map-by-code-length.pdf", "map-by-iteration-12bits.pdf", "map-by-iteration-32bits.pdf",
        "precision-recall-12bits.pdf", "precision-at-n-12bits.pdf",
        "precision-recall-32bits.pdf", "precision-at-n-32bits.pdf",
    ]  # fmt: skip
    assert [line.rsplit("/", 1)[-1] for line in capsys.readouterr().out.splitlines()] == names
    assert all((tmp_path / "out" / name).read_bytes().startswith(b"%PDF") for name in names)
    (series, ylabel, title) = seen["map-by-code-length.pdf"]
    assert series == {"MM Asia": {12: [pytest.approx(0.4)] * 3, 32: [pytest.approx(0.6)] * 3}}
    assert (ylabel, title) == ("mAP@50, network's codes", "digits, mean ± std over seeds")
    assert titles == ["digits, 12 bits, mean over seeds", "digits, 32 bits, mean over seeds"]


def test_without_an_output_a_comparison_lies_beside_the_runs(tmp_path, capsys):
    folders = [fake_run(tmp_path / name, seed=seed, codes=False) for seed, name in enumerate("ab")]
    assert reports.figures.main([*map(str, folders)]) == 0
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "map-by-code-length.png", "map-by-iteration-12bits.png", "map-by-iteration-32bits.png"
    ]  # fmt: skip


def test_map_by_iteration_is_drawn_from_a_csv(tmp_path, monkeypatch, capsys):
    """Of runs whose folders are no longer there."""
    path = tmp_path / "curves.csv"
    lines = [",".join(CURVE_FIELDS)]
    for method, seed, codes in (("csq", 0, "network"), ("main_tomm", 0, "learned"), ("main_tomm", 1, "learned")):
        lines += [f"{method},digits,,{seed},8,{iteration},0.{iteration},{codes},,1,cpu" for iteration in (5, 6, 7)]
    path.write_text("\n".join(lines[:-1]) + "\n")  # the last seed has one evaluation less
    drawn = []
    monkeypatch.setattr(reports.figures, "iteration_figure", lambda *arguments: drawn.append(arguments) or arguments[0])
    assert reports.figures.main([str(path), "-o", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out' / 'map-by-iteration-8bits.png'}\n"
    ((_, curves_of, ylabel, title),) = drawn
    shared = {5: 0.5, 6: 0.6}
    assert list(curves_of) == ["TOMM", "CSQ, network's codes"] and curves_of["TOMM"] == [shared, shared]
    assert curves_of["CSQ, network's codes"] == [{**shared, 7: 0.7}]
    assert (ylabel, title) == ("mAP, learned codes", "digits, 8 bits")
    settings = [f'main_tomm,digits,"{{""lr"":0.1{more}}}",' for more in ("", ',""no_discriminator"":true')]
    text = "\n".join([lines[0], *(line.replace("main_tomm,digits,,", own) for own in settings for line in lines[4:])])
    path.write_text(text)
    assert reports.figures.main([str(path), "-o", str(tmp_path / "out")]) == 0
    assert list(drawn[-1][1]) == ["TOMM", "TOMM, --no-discriminator"]
    path.write_text("a,b\n")
    assert reports.figures.main([str(path)]) == 2
    assert "is not a CSV that --curves wrote" in capsys.readouterr().err


def test_map_by_iteration_is_that_of_the_evaluations_of_each_seed(tmp_path, monkeypatch):
    folders = [fake_run(tmp_path / name, seed=seed, codes=False, maps=((12, 0.5),)) for seed, name in enumerate("ab")]
    drawn = []
    monkeypatch.setattr(reports.figures, "iteration_figure", lambda *arguments: drawn.append(arguments) or arguments[0])
    reports.figures.comparison_figures(folders, tmp_path / "out")
    of_one_seed = {row["iteration"]: row["map"] for row in metrics() if "map" in row}
    assert len(of_one_seed) > 1
    path, curves_of, ylabel, title = drawn[0]
    assert path.name == "map-by-iteration-12bits.png" and (ylabel, title) == ("mAP, learned codes", "digits, 12 bits")
    assert curves_of == {"MM Asia": [of_one_seed, of_one_seed]}

    # Runs with another --eval-iter are of the same experiment: drawn where all were evaluated.
    rows = [json.dumps(row | {"code_length": 12}) for row in metrics(evaluated=(1, 2, 4))]
    (folders[1] / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    reports.figures.comparison_figures(folders, tmp_path / "out")
    assert drawn[1][1] == {"MM Asia": [of_one_seed, of_one_seed]}
    rows = [json.dumps(row | {"code_length": 12}) for row in metrics(evaluated=(1, 3))]
    (folders[1] / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    assert [path.name for path in reports.figures.comparison_figures(folders, tmp_path / "out")] == [
        "map-by-code-length.png"
    ]


def without_learned_codes(folder):
    """Turn a run into one of a method that learns no database codes; the saved codes are the network's."""
    rows = json.loads((folder / "results.json").read_text())
    for row in rows:
        learned, network = row["map"]["learned"]["expected"], row["map"]["network"]["expected"]
        row["map"] = {"network": row["map"]["network"]}
        for path in folder.glob(f"digits-{row['code_length']}bits-{learned:.4f}-*.t"):
            path.rename(folder / path.name.replace(f"{learned:.4f}", f"{network:.4f}"))
    (folder / "results.json").write_text(json.dumps(rows))
    return folder


def test_a_method_that_learns_no_codes_is_drawn_with_the_codes_of_its_network(tmp_path, monkeypatch):
    folder = without_learned_codes(fake_run(tmp_path / "a", method="csq"))
    drawn = {}
    monkeypatch.setattr(reports.figures, "map_figure", lambda path, series, *_: drawn.update(series) or path)
    monkeypatch.setattr(
        reports.figures, "training_figure", lambda path, rows, title, codes: drawn.update({title: codes}) or path
    )
    names = [path.name for path in reports.figures.run_figures(folder)]
    assert drawn == {
        "CSQ, digits, 12 bits": "network's codes", "CSQ, digits, 32 bits": "network's codes",
        "network's codes": {12: [pytest.approx(0.4)], 32: [pytest.approx(0.6)]},
    }  # fmt: skip
    assert names[-2:] == ["precision-recall.png", "precision-at-n.png"], "the saved codes are found"


def test_a_comparison_marks_the_curves_of_methods_that_learn_no_codes(tmp_path, monkeypatch):
    asymmetric = fake_run(tmp_path / "a")
    symmetric = without_learned_codes(fake_run(tmp_path / "b", method="csq"))
    maps, curves_of = [], []
    monkeypatch.setattr(
        reports.figures, "map_figure", lambda path, series, ylabel, title: maps.append((series, ylabel)) or path
    )
    monkeypatch.setattr(
        reports.evaluate, "precision_recall_figure", lambda path, named, title: curves_of.append(list(named)) or path
    )
    both = ["MM Asia", "CSQ, network's codes"]
    reports.figures.comparison_figures([asymmetric, symmetric], tmp_path / "out")
    assert list(maps[0][0]) == both and maps[0][1] == "mAP, learned codes" and curves_of == [both, both]
    assert maps[0][0]["CSQ, network's codes"] == {12: [pytest.approx(0.4)], 32: [pytest.approx(0.6)]}
    reports.figures.comparison_figures([asymmetric, symmetric], tmp_path / "out", database="network")
    assert list(maps[1][0]) == ["MM Asia", "CSQ"] and maps[1][1] == "mAP, network's codes"
    reports.figures.comparison_figures([symmetric], tmp_path / "out")
    assert list(maps[2][0]) == ["CSQ"] and maps[2][1] == "mAP, network's codes"


def break_json(folder):
    (folder / "results.json").write_text("[{")


def break_rows(folder):
    (folder / "results.json").write_text('[{"code_length": 12, "topk": -1, "map": {"learned": 0.5}}]')


def unfinish(folder):
    (folder / "results.json").unlink()


def empty_results(folder):
    (folder / "results.json").write_text("[]")


def unset(folder):
    (folder / "config.json").write_text('{"settings": {}}')


def empty_log(folder):
    (folder / "metrics.jsonl").write_text("")


def break_log(folder):
    (folder / "metrics.jsonl").write_text('{"iteration": 1}\n{"iteration": 2}\n')


def break_codes(folder):
    next(folder.glob("*-query_code.t")).write_bytes(b"none")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_json, "results.json: cannot be read as JSON"),
        (break_rows, "results.json: not the results of a run"),
        (unfinish, "results.json has no finished code length"),
        (empty_results, "results.json has no finished code length"),
        (unset, "config.json: holds no settings"),
        (empty_log, "metrics.jsonl: has no iteration yet"),
        (break_log, "metrics.jsonl: line 1 is not an iteration"),
        (break_codes, "query_code.t: damaged, or not a tensor"),
    ],
)
def test_bad_folders_are_refused_in_one_line(damage, message, tmp_path, capsys):
    folder = fake_run(tmp_path / "a")
    damage(folder)
    assert reports.figures.main([str(folder)]) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1 and output.out == ""
    assert not (folder / "figures").exists(), "nothing is drawn for a damaged run"


def test_codes_that_results_do_not_speak_of_are_left_out(tmp_path, monkeypatch):
    folder = fake_run(tmp_path / "a", maps=((12, 0.5),))
    for path in list(folder.glob("digits-12bits-*.t")):
        (folder / path.name.replace("0.5000", "0.4000")).write_bytes(path.read_bytes())
    seen = {}
    monkeypatch.setattr(
        reports.evaluate, "precision_recall_figure", lambda path, curves, title: seen.update(curves) or path
    )
    reports.figures.run_figures(folder)
    assert list(seen) == ["12 bits"] and len(seen["12 bits"]) == 1


def test_no_folder_and_a_gallery_of_several_runs(tmp_path, capsys):
    assert reports.figures.main([str(tmp_path / "none")]) == 2
    assert "none: there is no such folder" in capsys.readouterr().err
    folders = [str(fake_run(tmp_path / name)) for name in "ab"]
    assert reports.figures.main([*folders, "--gallery"]) == 2
    assert "--gallery: draws one run" in capsys.readouterr().err


def test_a_real_run_from_training_to_gallery(tmp_path, monkeypatch, capsys):
    shrink(monkeypatch, main_tomm)
    flags = ["--method", "main_tomm", "--dataset", "digits", "--image-size", "16", "--num-samples", "60"]
    more = ["--max-iter", "2", "--code-length", "8", "--save-iter", "0", "--logs", str(tmp_path)]
    assert run.main([*flags, *more]) == 0
    (folder,) = tmp_path.iterdir()
    capsys.readouterr()
    assert reports.figures.main([str(folder), "--gallery"]) == 0
    assert {path.name for path in (folder / "figures").iterdir()} == {
        "training-8bits.png", "precision-recall.png", "precision-at-n.png", "gallery-8bits.png",
    }  # fmt: skip
