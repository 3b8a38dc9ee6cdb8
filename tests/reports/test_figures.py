"""The curves of runs: what is plotted is what the files say, and bad folders are refused in a sentence."""

import json

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from PIL import Image

import main_tomm
import reports.figures
import run
from plots import curves, style
from tests.small_networks import shrink
from utils.errors import UserError
from utils.evaluate import evaluate_codes


def axes():
    return Figure().add_subplot()


def legend_names(drawn):
    return drawn.get_legend_handles_labels()[1]


def data_of(line):
    return list(line.get_xdata()), list(line.get_ydata())


# ---- Curves ----


def test_precision_recall_plots_the_curves_as_given():
    curves = {
        "A": [{"precision": [1.0, 0.5, 0.2], "recall": [0.1, 0.6, 1.0]}],
        "B": [{"precision": [0.7, 0.2], "recall": [0.4, 1.0]}],
    }
    drawn = axes()
    curves.draw_precision_recall(drawn, curves)
    assert [data_of(line) for line in drawn.lines] == [
        ([0.1, 0.6, 1.0], [1.0, 0.5, 0.2]),
        ([0.4, 1.0], [0.7, 0.2]),
    ]
    assert legend_names(drawn) == ["A", "B"], "n is named only where a curve is a mean"
    assert (drawn.get_xlabel(), drawn.get_ylabel()) == ("recall", "precision")


def test_precision_recall_of_several_seeds_is_their_mean_at_each_radius():
    seeds = [{"precision": [1.0, 0.5], "recall": [0.2, 1.0]}, {"precision": [0.6, 0.1], "recall": [0.4, 1.0]}]
    drawn = axes()
    curves.draw_precision_recall(drawn, {"A": seeds, "B": seeds[:1]})
    np.testing.assert_allclose(drawn.lines[0].get_xdata(), [0.3, 1.0])
    np.testing.assert_allclose(drawn.lines[0].get_ydata(), [0.8, 0.3])
    assert legend_names(drawn) == ["A (n = 2)", "B (n = 1)"]


def test_precision_at_n_has_a_band_of_one_standard_deviation():
    seeds = [{"1": 0.9, "10": 0.6}, {"1": 0.7, "10": 0.6}]  # text keys, as JSON has them
    drawn = axes()
    curves.draw_at_cutoffs(drawn, {"A": seeds, "B": [{1: 0.5, 10: 0.4}]})
    assert list(drawn.lines[0].get_xdata()) == [1, 10] and drawn.get_xscale() == "log"
    np.testing.assert_allclose(drawn.lines[0].get_ydata(), [0.8, 0.6])
    (band,) = drawn.collections  # none for the single seed
    std = np.std([0.9, 0.7], ddof=1)
    at_one = {round(y, 12) for x, y in band.get_paths()[0].vertices if x == 1}
    assert at_one == {round(0.8 - std, 12), round(0.8 + std, 12)}


def test_curves_that_have_no_mean_are_refused():
    with pytest.raises(UserError, match="A: the curves differ in length"):
        curves.draw_precision_recall(
            axes(), {"A": [{"precision": [1, 0], "recall": [0, 1]}, {"precision": [1], "recall": [1]}]}
        )
    with pytest.raises(UserError, match="A: the runs have different N"):
        curves.draw_at_cutoffs(axes(), {"A": [{1: 0.5, 2: 0.5}, {1: 0.5, 5: 0.5}]})
    with pytest.raises(UserError, match="no precision-recall curves"):
        curves.draw_precision_recall(axes(), {})
    with pytest.raises(UserError, match="no mAP to draw"):
        curves.draw_map_by_code_length(axes(), {"A": {}})


def test_map_by_code_length_is_mean_and_sample_std_with_n_in_the_legend():
    series = {"A": {32: [0.8, 0.9, 0.7], 12: [0.5, 0.7]}, "B": {12: [0.4], 32: [0.6]}}
    drawn = axes()
    curves.draw_map_by_code_length(drawn, series)
    bars = [container for container in drawn.containers if isinstance(container, ErrorbarContainer)]
    assert data_of(bars[0].lines[0]) == ([12, 32], [pytest.approx(0.6), pytest.approx(0.8)])
    (segments,) = bars[0].lines[2]
    heights = [abs(end[1] - start[1]) / 2 for start, end in segments.get_segments()]
    assert heights == pytest.approx([np.sqrt(0.02), 0.1])
    assert data_of(bars[1].lines[0]) == ([12, 32], [0.4, 0.6]) and not bars[1].has_yerr
    assert legend_names(drawn) == ["A (n = 2–3)", "B (n = 1)"]
    assert list(drawn.get_xticks()) == [12, 32]
    low, high = drawn.get_ylim()
    assert low < 0.4 and high > 0.9, "the bars lie inside the axes"


def metrics(iterations=4, bits=3, evaluated=(2, 4)):
    rows = []
    for iteration in range(1, iterations + 1):
        row = {
            "code_length": bits,
            "iteration": iteration,
            "loss": {"image": 40.0 - iteration, "latent": 50.0, "image_rec": 10.0**-iteration},
            "bit_mean": [0.1 * iteration, -0.2, 0.0],
            "distinct": 0.1 * iteration,
            "seconds": 1.0,
        }
        rows.append(row | ({"map": 0.2 * iteration} if iteration in evaluated else {}))
    return rows


def test_losses_by_part():
    codes, others = axes(), axes()
    curves.draw_losses(codes, metrics(), of_codes=True)
    curves.draw_losses(others, metrics(), of_codes=False)
    assert legend_names(codes) == ["image", "latent"] and legend_names(others) == ["image_rec"]
    assert data_of(codes.lines[0]) == ([1, 2, 3, 4], [39.0, 38.0, 37.0, 36.0])
    assert data_of(others.lines[0]) == ([1, 2, 3, 4], [0.1, 0.01, 0.001, 0.0001])
    assert (codes.get_yscale(), others.get_yscale()) == ("linear", "log")
    zero = [row | {"loss": {"image_rec": 0.0}} for row in metrics()]
    drawn = axes()
    curves.draw_losses(drawn, zero, of_codes=False)
    assert drawn.get_yscale() == "linear", "a logarithm would hide the zeros"
    drawn = axes()
    curves.draw_losses(drawn, metrics(2), of_codes=False)
    assert drawn.get_yscale() == "linear", "a logarithmic axis of one decade has hardly a number on it"


def test_map_bit_balance_and_distinct_codes():
    drawn = axes()
    curves.draw_map(drawn, metrics())
    assert data_of(drawn.lines[0]) == ([2, 4], [0.4, 0.8])
    assert drawn.get_legend() is None
    low, high = drawn.get_xlim()
    assert low <= 1 and high >= 4, "the axis covers the iterations without an evaluation"

    drawn = axes()
    curves.draw_map(drawn, [row | ({"validation_map": 0.1} if "map" in row else {}) for row in metrics()])
    assert data_of(drawn.lines[1]) == ([2, 4], [0.1, 0.1])
    assert [text.get_text() for text in drawn.get_legend().get_texts()] == ["queries", "held out"]

    drawn = axes()
    curves.draw_bit_balance(drawn, metrics())
    assert len(drawn.lines) == 3 + 1
    np.testing.assert_allclose([line.get_ydata() for line in drawn.lines[:3]], [
        [0.1, 0.2, 0.3, 0.4], [-0.2] * 4, [0.0] * 4,
    ])  # fmt: skip
    np.testing.assert_allclose(drawn.lines[3].get_ydata(), [0.3 / 3, 0.4 / 3, 0.5 / 3, 0.6 / 3])

    drawn = axes()
    curves.draw_distinct(drawn, metrics())
    assert data_of(drawn.lines[0])[1] == [row["distinct"] for row in metrics()]


def test_a_log_without_evaluation_says_so():
    drawn = axes()
    curves.draw_map(drawn, metrics(evaluated=()))
    assert [text.get_text() for text in drawn.texts] == ["not evaluated yet"] and not drawn.lines


def test_training_curves_need_two_iterations(tmp_path):
    with pytest.raises(UserError, match=r"1 iteration\(s\) make no curve"):
        curves.training_figure(tmp_path / "training.png", metrics(1))
    assert not list(tmp_path.iterdir())
    curves.training_figure(tmp_path / "training.png", metrics(2))
    assert Image.open(tmp_path / "training.png").size == (2100, 1320)


@pytest.mark.parametrize("parts", [2, 4, 5])
def test_legends_lie_within_the_picture(parts, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(curves, "save", lambda figure, path: kept.append(figure) or path)
    names = ["image_rec", "label_rec", "discriminator", "generator", "another"][:parts]
    rows = [row | {"loss": dict.fromkeys(["image", *names], 0.5)} for row in metrics()]
    curves.training_figure(tmp_path / "training.png", rows)
    names = [f"MM Asia, a_setting {number}" for number in range(parts)]
    curves.map_figure(tmp_path / "map.png", {name: {12: [0.5, 0.6]} for name in names})
    for figure in kept:
        figure.draw_without_rendering()
        legends = [*figure.legends, *(drawn.get_legend() for drawn in figure.axes)]
        boxes = [legend.get_window_extent() for legend in legends if legend is not None]
        assert boxes and all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)
        assert all(box.y0 >= 0 and box.y1 <= figure.bbox.y1 for box in boxes)


# ---- Style ----


def test_no_two_series_look_alike_even_without_colour():
    styles = [style.series_style(index) for index in range(40)]
    assert len({(style["marker"], str(style["linestyle"])) for style in styles}) == 40


def test_a_users_matplotlibrc_changes_nothing_and_is_left_alone(tmp_path):
    curves = {"A": [{"precision": [1.0, 0.5], "recall": [0.1, 1.0]}]}
    plain = curves.precision_recall_figure(tmp_path / "plain.png", curves, "digits").read_bytes()
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "savefig.dpi": 30}):
        other = curves.precision_recall_figure(tmp_path / "other.png", curves, "digits").read_bytes()
        assert matplotlib.rcParams["font.size"] == 20
    assert plain == other


@pytest.mark.parametrize("ending", ["png", "pdf"])
def test_the_same_data_give_the_same_bytes(ending, tmp_path, monkeypatch):
    series = {"A": {12: [0.5, 0.6], 32: [0.7, 0.8]}}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")  # the day that matplotlib would write into the file
    first = curves.map_figure(tmp_path / f"a.{ending}", series).read_bytes()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "2000000000")
    second = curves.map_figure(tmp_path / f"b.{ending}", series).read_bytes()
    assert first == second
    assert first.startswith({"png": b"\x89PNG", "pdf": b"%PDF"}[ending])


def test_a_picture_of_another_format_or_in_a_file_is_refused(tmp_path):
    series = {"A": {12: [0.5]}}
    with pytest.raises(UserError, match="written as png or pdf"):
        curves.map_figure(tmp_path / "a.gif", series)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        curves.map_figure(tmp_path / "file" / "a.png", series)


# ---- Run folders ----


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
        reports.figures, "precision_recall_figure", lambda path, curves, title: drawn.update(pr=curves) or path
    )
    monkeypatch.setattr(
        reports.figures, "cutoff_figure",
        lambda path, curves, ylabel="precision@N", title="": drawn.update({ylabel: curves}) or path,
    )  # fmt: skip
    codes, labels = torch.ones(4, 8), torch.ones(4, 2)
    report = {"name": "x", "code_length": 8, **evaluate_codes(codes, codes, labels, labels)}
    paths = reports.figures.evaluation_figures(tmp_path, [report])
    assert [path.name for path in paths] == ["precision-recall.png", "precision-at-n.png", "ndcg-at-n.png"]
    assert all(path.parent == tmp_path / "figures" for path in paths)
    assert drawn == {
        "pr": {"8 bits": [report["precision_recall"]]},
        "precision@N": {"8 bits": [report["precision_at"]]},
        "NDCG@N": {"8 bits": [report["ndcg_at"]]},
    }
    reports.figures.evaluation_figures(tmp_path, [report, report | {"name": "y"}])
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
        reports.figures, "precision_recall_figure",
        lambda path, curves, title: titles.append(title) or curve(path, curves, title),
    )  # fmt: skip
    assert (
        reports.figures.main([*map(str, folders), "-o", str(tmp_path / "out"), "--format", "pdf", "--codes", "network"])
        == 0
    )
    names = [
        "map-by-code-length.pdf", "precision-recall-12bits.pdf", "precision-at-n-12bits.pdf",
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
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["map-by-code-length.png"]


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
    ("damage", "sentence"),
    [
        (break_json, "results.json: cannot be read as JSON"),
        (break_rows, "results.json: not the results of a run"),
        (unfinish, "has no results.json"),
        (empty_results, "results.json: holds no result"),
        (unset, "config.json: holds no settings"),
        (empty_log, "metrics.jsonl: holds no iteration yet"),
        (break_log, "metrics.jsonl: line 1 is not an iteration"),
        (break_codes, "query_code.t: cannot be read as a tensor"),
    ],
)
def test_bad_folders_are_refused_in_a_sentence(damage, sentence, tmp_path, capsys):
    folder = fake_run(tmp_path / "a")
    damage(folder)
    assert reports.figures.main([str(folder)]) == 2
    output = capsys.readouterr()
    assert sentence in output.err and output.err.count("\n") == 1 and output.out == ""
    assert not (folder / "figures").exists(), "nothing is drawn of a damaged run"


def test_codes_that_results_do_not_speak_of_are_left_out(tmp_path, monkeypatch):
    folder = fake_run(tmp_path / "a", maps=((12, 0.5),))
    for path in list(folder.glob("digits-12bits-*.t")):
        (folder / path.name.replace("0.5000", "0.4000")).write_bytes(path.read_bytes())
    seen = {}
    monkeypatch.setattr(
        reports.figures, "precision_recall_figure", lambda path, curves, title: seen.update(curves) or path
    )
    reports.figures.run_figures(folder)
    assert list(seen) == ["12 bits"] and len(seen["12 bits"]) == 1


def test_no_folder_and_a_gallery_of_several_runs(tmp_path, capsys):
    assert reports.figures.main([str(tmp_path / "none")]) == 2
    assert "none: there is no such folder" in capsys.readouterr().err
    folders = [str(fake_run(tmp_path / name)) for name in "ab"]
    assert reports.figures.main([*folders, "--gallery"]) == 2
    assert "--gallery: draws one run" in capsys.readouterr().err


def test_a_last_line_still_being_written_is_left_out(tmp_path):
    folder = fake_run(tmp_path / "a")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"code_length": 32, "iter')
    assert [row["iteration"] for row in reports.figures.metrics_by_length(folder)[32]] == [1, 2, 3, 4]


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
