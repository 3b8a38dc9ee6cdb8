"""Reading the folder of a run."""

import json

import pytest

from tests.plots.rows import metrics
from utils.errors import UserError
from utils.runs import read_metrics, read_results


def test_a_last_line_that_is_still_being_written_is_left_out(tmp_path):
    lines = "".join(json.dumps(row) + "\n" for row in metrics())
    for cut in ('{"code_length": 32, "iter', '{"code_length": 32, "iter\n', "\0" * 40, "\xff\n", ""):
        (tmp_path / "metrics.jsonl").write_text(lines + cut)
        assert read_metrics(tmp_path) == metrics()
    (tmp_path / "metrics.jsonl").write_text(lines.rstrip("\n"))  # cut just before the end of the line
    assert read_metrics(tmp_path) == metrics()
    (tmp_path / "metrics.jsonl").write_text("{\n" + lines)
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 1 is not an iteration of a run; remove it\."):
        read_metrics(tmp_path)


def row(**maps):
    return {"code_length": 12, "topk": -1, "map": {kind: {"expected": value} for kind, value in maps.items()}}


def test_results_need_the_metric_of_the_network(tmp_path):
    path = tmp_path / "results.json"
    assert read_results(tmp_path) == []
    for good in (row(network=0.5), row(learned=0.6, learned_filled=0.6, network=0.5)):
        path.write_text(json.dumps([good]))
        assert read_results(tmp_path) == [good]
    for bad in (row(learned=0.5), row(network="0.5"), row(network=0.5, learned=None), {"map": {}}, 1):
        path.write_text(json.dumps([bad]))
        with pytest.raises(UserError, match=r"results.json: not the results of a run"):
            read_results(tmp_path)
