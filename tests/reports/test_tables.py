"""Tables: README and CSV agree, every run is found, and p values are known ones."""

import csv
import json
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from reports import tables
from reports.__main__ import main as dispatch
from reports.rendering import Table
from reports.significance import paired
from tests.plots.rows import metrics
from training.settings import Settings

ROOT = Path(__file__).parents[2]


def test_the_documents_hold_the_tables_of_the_csv_files():
    digits, photographs = (
        tables.as_runs(tables.read_csv(ROOT / "results" / name)) for name in ("digits.csv", "cifar10.csv")
    )
    assert tables.long_table(digits).markdown() in (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")
    table = tables.wide_tables(photographs)[0].markdown().removeprefix("### folder\n\n")
    assert table in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["digits.csv", "ablations.csv", "cifar10.csv", "cifar10-ablations.csv"])
def test_a_csv_that_is_read_and_written_keeps_its_bytes(name, tmp_path):
    assert tables.main([str(ROOT / "results" / name), "-o", str(tmp_path / name)]) == 0
    assert (tmp_path / name).read_bytes() == (ROOT / "results" / name).read_bytes()


def write_run(folder, seed, learned, code_length=8, method="main_tomm", dataset="digits", **settings):
    """The two files of a finished run that tables read; `network` is always 0.1 below `learned`."""
    folder.mkdir(parents=True)
    maps = {
        kind: {"expected": value, "stable": value / 2}
        for kind, value in (("learned", learned), ("learned_filled", learned), ("network", learned - 0.1))
    }
    made = Settings.for_dataset(dataset, method=method, seed=seed, code_length=(code_length,), **settings)
    row = {"method": method, "dataset": dataset, "code_length": code_length, "seed": seed, "iterations": made.max_iter}
    row |= {"topk": made.topk, "seconds": 10 * seed, "map": maps, "best": {"iteration": 1, "expected": learned}}
    config = {"settings": made.as_json(), "commit": {"hash": "0123456789abcdef", "dirty": True}}
    config |= {"versions": {"torch": "2.14"}, "device": "cpu", "command": "python run.py"}
    (folder / "results.json").write_text(json.dumps([row]))
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def logs(tmp_path):
    """Two variants, an ablation with one seed less; and one more code length of one variant."""
    logs = tmp_path / "logs"
    for seed, learned in ((1, 0.5), (2, 0.7), (3, 0.9)):
        write_run(logs / f"tomm-{seed}", seed, learned)
        write_run(logs / f"mmasia-{seed}", seed, learned - 0.01 * seed, method="main_mmasia")
    for seed, learned in ((1, 0.45), (3, 0.95)):
        write_run(logs / f"ablation-{seed}", seed, learned, lr=1e-3, no_discriminator=True, num_workers=3)
    write_run(logs / "deeper" / "run", 1, 0.25, code_length=16)
    return logs


def output_of(capsys, *arguments):
    assert tables.main([str(argument) for argument in arguments]) == 0
    return re.sub(" +", " ", capsys.readouterr().out)  # the columns are padded with spaces


def rows_of(path, *fields):
    return tables.read_csv(path, *fields).to_dict("records")


def test_mean_and_deviation_over_seeds(logs, tmp_path, capsys):
    printed = output_of(capsys, logs, tmp_path / "figures.csv", "--layout", "long")
    assert (
        "| digits | main_tomm | 8 | 9 | 3 (1, 2, 3) | 0.7000 ± 0.2000 | 0.7000 ± 0.2000 | 0.6000 ± 0.2000 | 20 |"
        in printed
    )
    assert "| digits | main_tomm | 16 | 9 | 1 (1) | 0.2500 | 0.2500 | 0.1500 | 10 |" in printed
    assert "| digits | main_tomm --lr 0.001 --no-discriminator | 8 | 9 | 2 (1, 3) |" in printed
    rows = rows_of(tmp_path / "figures.csv")
    assert len(rows) == 9 and {row["commit"] for row in rows} == {"0123456789+"}
    assert [row["seed"] for row in rows if row["method"] == "main_mmasia"] == ["1", "2", "3"]
    assert {row["settings"] for row in rows} == {"", '{"lr":0.001,"no_discriminator":true}'}, "no --num-workers"
    assert output_of(capsys, tmp_path / "figures.csv", "--layout", "long") == printed
    assert output_of(capsys, logs, "-o", tmp_path / "again.csv", "--layout", "long") == printed
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "figures.csv").read_bytes()
    both = output_of(capsys, logs, tmp_path / "figures.csv", logs / "tomm-1", "--layout", "long")
    assert both == printed, "a run that several sources hold counts once"


def test_variants_by_code_lengths(logs, capsys):
    printed = output_of(capsys, logs)
    for line in (
        "| variant | codes | n | 8 bits | 16 bits |",
        "| main_tomm | learned | 3 | 0.7000 ± 0.2000 | 0.2500 (n = 1) |",
        "| main_tomm | network | 3 | 0.6000 ± 0.2000 | 0.1500 (n = 1) |",
        "| main_tomm --lr 0.001 --no-discriminator | learned_filled | 2 | 0.7000 ± 0.3536 | |",
    ):
        assert line in printed.splitlines()
    assert "### digits" in printed and "over the whole database" in printed and "published" not in printed


def test_flags_that_all_runs_have_are_said_once(tmp_path, capsys):
    for method, rate in (("main_tomm", 1e-3), ("main_mmasia", 1e-4)):
        write_run(tmp_path / method, 1, 0.5, method=method, lr=rate, precision="bfloat16", detach_targets=True)
    printed = output_of(capsys, tmp_path)
    assert "All runs have --detach-targets --precision bfloat16. Hardware: cpu, torch 2.14." in printed
    assert "| main_tomm --lr 0.001 | learned | 1 | 0.5000 |" in printed
    assert "| main_mmasia | network | 1 | 0.4000 |" in printed, "1e-4 is the preset's rate"
    printed = output_of(capsys, tmp_path, "--compare", "--variants", "main_mmasia", "main_tomm --lr 0.001")
    assert "main_tomm --lr 0.001 − main_mmasia | 8 | 1 |" in printed


def test_curves_have_a_row_for_each_evaluation(tmp_path, capsys):
    write_run(tmp_path / "a", 3, 0.5, lr=1e-3)
    rows = metrics(bits=8)
    rows[1] |= {"validation_map": 0.125}
    (tmp_path / "a" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output_of(capsys, tmp_path, "--curves", tmp_path / "curves.csv")
    header = "method,dataset,settings,seed,code_length,iteration,map,codes,validation_map,seconds,device"
    settings = '"{""lr"":0.001}"'
    own = [f"main_tomm,digits,{settings},3,8,{row}" for row in ("2,0.4,learned,0.125,2,cpu", "4,0.8,learned,,4,cpu")]
    assert (tmp_path / "curves.csv").read_text().splitlines() == [header, *own]

    # Of runs that are no longer there: another seed, and the same seed with other settings.
    others = ["main_tomm,digits,,3,8,2,0.2,learned,,2,cpu", f"main_tomm,digits,{settings},1,8,2,0.3,learned,,2,cuda"]
    (tmp_path / "curves.csv").write_text("\n".join([header, *others, own[0].replace("0.4", "0.1")]) + "\n")
    output_of(capsys, tmp_path, "--curves", tmp_path / "curves.csv")
    assert (tmp_path / "curves.csv").read_text().splitlines() == [header, *others, *own]

    for content, message in (("a,b\n1,2", "is not a CSV that"), (f"{header}\na,b,[],1,8,2,0,,,2,", "is damaged")):
        (tmp_path / "curves.csv").write_text(content)
        assert tables.main([str(tmp_path), "--curves", str(tmp_path / "curves.csv")]) == 2
        assert message in capsys.readouterr().err


def test_a_csv_from_before_the_column_settings(logs, tmp_path, capsys):
    output_of(capsys, logs / "tomm-1", "-o", tmp_path / "new.csv")
    rows = rows_of(tmp_path / "new.csv")
    with (tmp_path / "old.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [field for field in tables.FIELDS if field != "settings"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows([rows[0], rows[0] | {"iterations": "7"}])
    old = rows_of(tmp_path / "old.csv")
    assert old[0] == rows[0] and rows[0]["settings"] == ""
    printed = output_of(capsys, tmp_path / "old.csv")
    assert "| main_tomm (7 iterations) |" in printed and "| main_tomm (9 iterations) |" in printed


def test_published_figures_stand_beside_and_are_called_so(tmp_path, capsys):
    write_run(tmp_path / "run", 1, 0.5, dataset="cifar-10", code_length=12)
    write_run(tmp_path / "other", 1, 0.5, dataset="nus-wide-tc21", code_length=12)
    printed = output_of(capsys, tmp_path)
    measured, cifar, wide, nus = re.split(r"^### .*$", printed, flags=re.M)[1:]
    assert re.findall("^### (.*)$", printed, re.M) == [
        "cifar-10", "cifar-10: published, not measured here",
        "nus-wide-tc21", "nus-wide-tc21: published, not measured here",
    ]  # fmt: skip
    assert "0.9075" not in measured and "at 5000" in wide
    assert re.search(
        r"^\| ADSH \| AlexNet \| mAP@all.* \| 0\.9075 \| 0\.9047 \| 0\.9116 \| 0\.9045 \| \| README", cifar, re.M
    )
    assert re.search(r"^\| CSQ \|.*mAP@5000.* \| \| \| \| \| 0\.834 \| as quoted in docs/method.md \|$", nus, re.M)
    method = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    for row in rows_of(tables.PUBLISHED, tables.PUBLISHED_FIELDS):
        assert row["method"] in method, "a source that docs/method.md does not name"
        if "docs/method.md" in row["source"]:
            assert re.search(rf"^\| {row['method']} \|.*{row['map'][1:]}", method, re.M)


def test_latex_is_escaped_and_whole(logs, capsys):
    printed = output_of(capsys, logs, "--latex")
    assert r"main\_tomm -{}-lr 0.001 -{}-no-discriminator & learned\_filled & 2 & 0.7000 $\pm$ 0.3536 & \\" in printed
    assert r"\begin{tabular}{llrrr}" in printed and printed.count(r"\\") == 10
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{table}", r"\end{table}", r"\end{tabular}"):
        assert printed.count(rule) == 1
    special, escaped = r"50% & $x_1^2 \ {~} #", r"50\% \& \$x\_1\^{}2 \textbackslash{} \{\textasciitilde{}\} \#"
    latex = Table(special, ["h"], [[special]], "").latex()
    assert rf"\caption{{{escaped}.}}" in latex and f"\n {escaped} \\\\\n" in latex
    assert "(n = 1)" in printed and "± " not in printed
    assert r"\begin{tabular}{ll}" in Table("", ["a", "b"], [["x", "no number"]], "").latex()
    assert r"| a\|b |" in Table("", ["h"], [["a|b"]], "").markdown()


def test_methods_that_learn_no_codes_have_empty_cells(logs, tmp_path, capsys):
    for seed in (1, 2):
        write_run(logs / f"csq-{seed}", seed, 0.4 + 0.1 * seed, method="csq")
        path = logs / f"csq-{seed}" / "results.json"
        (row,) = json.loads(path.read_text())
        row["map"] = {"network": row["map"]["network"]}
        del row["best"]
        path.write_text(json.dumps([row]))
    printed = output_of(capsys, logs, tmp_path / "metrics.csv", "--layout", "long")
    assert "| digits | csq | 8 | 9 | 2 (1, 2) | | | 0.4500 ± 0.0707 | 15 |" in printed
    assert output_of(capsys, tmp_path / "metrics.csv", "--layout", "long") == printed
    row = next(row for row in rows_of(tmp_path / "metrics.csv") if row["method"] == "csq")
    assert set(row) == set(tables.FIELDS) and row["network_expected"] == "0.400000"
    empty = {"learned_expected", "learned_stable", "learned_filled_expected", "learned_filled_stable"}
    assert {field for field in row if row[field] == ""} == empty | {"best", "best_iteration", "settings"}
    wide = output_of(capsys, logs)
    assert "| csq | network | 2 | 0.4500 ± 0.0707 | |" in wide and "| csq | learned" not in wide
    printed = output_of(capsys, logs, "--compare", "--variants", "csq", "main_tomm", "--codes", "network")
    assert line_of(printed, "digits", "main_tomm − csq", "8")[3:5] == ["2", "+0.0500 ± 0.0707"]
    assert "csq" not in output_of(capsys, logs, "--compare")
    assert tables.main([str(logs), "--compare", "--variants", "csq", "main_tomm"]) == 2
    assert "nothing to compare by learned codes" in capsys.readouterr().err


def test_a_csv_without_the_metric_of_the_network_is_damaged(logs, tmp_path, capsys):
    path = tmp_path / "metrics.csv"
    output_of(capsys, logs / "tomm-1", "-o", path)
    path.write_text(path.read_text().replace("0.400000", ""))
    assert tables.main([str(path)]) == 2
    assert f"{path}: row 1 is damaged" in capsys.readouterr().err


def test_a_reader_that_closes_the_pipe_ends_the_command_quietly(logs):
    command = [sys.executable, "-m", "reports", "tables", str(logs)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()  # before anything is printed, as `head` does after its first lines
    assert process.stderr.read() == ""
    assert process.wait(timeout=120) == 128 + signal.SIGPIPE


def test_commands_are_listed(capsys):
    assert dispatch(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(f"\n  {name} " in output for name in ("evaluate", "figures", "tables"))
    for arguments in ([], ["table"]):
        assert dispatch(arguments) == 2
        error = capsys.readouterr().err
        assert "choose from evaluate, figures, tables" in error and error.count("\n") == 1
    for name in ("evaluate", "figures", "tables"):
        assert dispatch([name]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"python -m reports {name}: ") and error.count("\n") == 1


def line_of(printed, *cells):
    (line,) = [line for line in printed.splitlines() if line.startswith("| " + " | ".join(cells) + " |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_comparisons_by_default(logs, capsys):
    write_run(logs / "mmasia-16", 1, 0.20, code_length=16, method="main_mmasia")
    printed = output_of(capsys, logs, "--compare")
    between = "main_tomm − main_mmasia"
    # Differences 0.01, 0.02, 0.03: mean 0.02, t = 0.02 / (0.01 / √3) = 2√3 with 2 degrees of freedom, for which
    # p = 1 − t / √(2 + t²).
    p = 1 - 12**0.5 / 14**0.5
    assert line_of(printed, "digits", between, "8")[3:] == ["3", "+0.0200 ± 0.0100", f"{p:.3f}", "0.250", "0.250"]
    assert line_of(printed, "digits", between, "16")[3:] == ["1", "+0.0500", "n too small", "n too small", ""]
    assert line_of(printed, "digits", between, "all")[3:5] == ["4", "+0.0275 ± 0.0171"]
    ablation = line_of(printed, "digits", "main_tomm --lr 0.001 --no-discriminator − main_tomm", "8")
    assert ablation[3:5] == ["2", "+0.0000 ± 0.0707"] and ablation[6:] == ["1.000", "0.500"]
    assert "nan" not in printed and "share their split" in printed
    name = "main_tomm --lr 0.001 --no-discriminator − main_tomm"
    assert f"{name} | 16" not in printed  # one of the two has no run of this length
    write_run(logs / "ablation-16", 2, 0.3, code_length=16, lr=1e-3, no_discriminator=True)
    no_pair = line_of(output_of(capsys, logs, "--compare"), "digits", name, "16")
    assert no_pair[3:] == ["0", "", "no shared seed", "no shared seed", ""]


def test_a_variant_is_compared_with_the_one_that_it_changes(tmp_path, capsys):
    """Own photos: no run has the preset's settings, since all have --root and a learning rate."""
    for seed in (1, 2):
        for method, lr in (("main_mmasia", 0.01), ("main_tomm", 0.02)):
            common = {"method": method, "dataset": "folder", "root": "photos", "num_query": 20, "lr": lr}
            write_run(tmp_path / f"{method}-{seed}", seed, 0.5 + 0.1 * seed, **common)
            write_run(tmp_path / f"{method}-none-{seed}", seed, 0.4, no_cycle_terms=True, **common)
    write_run(tmp_path / "both", 1, 0.3, no_cycle_terms=True, max_iter=7, **common)
    printed = output_of(capsys, tmp_path, "--compare")
    assert line_of(printed, "folder", "main_mmasia --lr 0.01 --no-cycle-terms − main_mmasia --lr 0.01", "8")[3] == "2"
    assert line_of(printed, "folder", "main_tomm --lr 0.02 --no-cycle-terms − main_tomm --lr 0.02", "8")[3] == "2"
    both = "main_tomm --lr 0.02 --max-iter 7 --no-cycle-terms"
    assert line_of(printed, "folder", f"{both} − main_tomm --lr 0.02", "8")[3] == "1"
    assert printed.count(both) == 1 and "main_tomm --lr 0.02 − main_mmasia" not in printed


def test_comparisons_on_request(logs, capsys):
    write_run(logs / "constant-1", 1, 0.4, gamma=1.0)
    write_run(logs / "constant-2", 2, 0.6, gamma=1.0)
    write_run(logs / "same-1", 1, 0.5, gamma=2.0)
    write_run(logs / "same-2", 2, 0.7, gamma=2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        printed = output_of(
            capsys, logs, "--compare", "--variants", "main_tomm --gamma 1.0", "main_tomm", "--codes", "network"
        )
        constant = line_of(printed, "digits", "main_tomm − main_tomm --gamma 1.0", "8")
        assert constant[3:] == ["2", "+0.1000 ± 0.0000", "all differences are equal", "0.500", "0.500"]
        assert "of the network codes" in printed and "share their split" not in printed
        printed = output_of(capsys, logs, "--compare", "--variants", "main_tomm", "main_tomm --gamma 2.0")
        equal = line_of(printed, "digits", "main_tomm --gamma 2.0 − main_tomm", "8")
        assert equal[3:] == ["2", "+0.0000 ± 0.0000", "all differences are 0", "all differences are 0", ""]


def test_zero_and_tied_differences():
    # With one 0 left out, three differences remain, ranks 1.5, 1.5 and 3.
    result = paired([0.5, 0.5, 0.5, 0.5], [0.5, 0.6, 0.6, 0.7])
    assert result.wilcoxon == "0.250 (1 differences of 0 left out)" and result.least == "0.250" and result.n == 4
    assert paired([0.0] * 12, [0.1 + 0.01 * i for i in range(12)]).wilcoxon == "< 0.001"
    assert paired([0.3], [0.1 + 0.2]).difference == "+0.0000", "rounding is no difference"
    with pytest.raises(ValueError):
        paired([0.1], [0.1, 0.2])


def test_two_runs_of_a_seed_are_named_and_not_compared(logs, capsys):
    write_run(logs / "again", 2, 0.71)
    assert "More than one run of the same seed: main_tomm, 8 bits, seed 2." in output_of(capsys, logs)
    assert tables.main([str(logs), "--compare"]) == 2
    assert "main_tomm, 8 bits, seed 2" in capsys.readouterr().err


def test_a_failed_cell_is_named(logs, capsys):
    (logs / "cell").mkdir()
    (logs / "cell" / "failed.json").write_text("{}")
    (logs / "tomm-1" / "failed.json").write_text("{}")
    assert tables.main([str(logs)]) == 0
    error = capsys.readouterr().err
    assert f"{logs / 'cell'}: this run has failed" in error and "tomm-1" not in error


REFUSALS = [
    ([], None, "required: SOURCE"),
    (["nowhere"], None, "nowhere: there is no such folder or CSV file"),
    (["empty"], None, "empty: there is no finished run"),
    (["logs", "--colour"], None, "unrecognized arguments: --colour"),
    (["logs", "--variants", "a", "b"], None, "add --compare"),
    (["logs", "--compare", "--variants", "main_tomm", "other"], None, "there is no 'other'; there are 'main_mmasia', "),
    (["logs/tomm-1", "--compare"], None, "nothing to compare by learned codes among 'main_tomm'"),
    (["logs", "-o", "no/where.csv"], None, "--output no/where.csv: there is no folder no"),
    (["logs"], ("results.json", "{"), "results.json: cannot be read as JSON"),
    (["logs"], ("results.json", "[{}]"), "results.json: not the results of a run"),
    (["logs"], ("config.json", "{}"), "config.json: holds no settings of a run"),
    (["logs"], ("config.json", '{"settings": {"dataset": "digits"}}'), "config.json: lacks the setting 'method'"),
    (["logs/tomm-1/config.json"], None, "has no column 'method'"),
]


@pytest.mark.parametrize(("arguments", "damaged", "message"), REFUSALS, ids=[str(case[:2]) for case in REFUSALS])
def test_bad_input_is_one_line(arguments, damaged, message, logs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    if damaged:
        (logs / "tomm-1" / damaged[0]).write_text(damaged[1])
    assert tables.main(arguments) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1 and output.out == ""


@pytest.mark.parametrize("old, new", [("0.500000", "half"), ("8,1,", "eight,1,")])
def test_a_damaged_csv_is_named(old, new, logs, tmp_path, capsys):
    path = tmp_path / "figures.csv"
    output_of(capsys, logs / "tomm-1", "-o", path)
    path.write_text(path.read_text().replace(old, new))
    assert tables.main([str(path)]) == 2
    assert f"{path}: row 1 is damaged" in capsys.readouterr().err
    path.write_text(path.read_text().rpartition(",")[0] + "\n")
    assert tables.main([str(path)]) == 2
    assert "fewer cells than the header" in capsys.readouterr().err
