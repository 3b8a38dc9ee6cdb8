"""Reading the folder of a run and code files."""

import json

import pytest
import torch

from tests.naive_ranking import make_case
from tests.plots.rows import metrics
from utils.errors import UserError
from utils.runs import ROLES, find_code_sets, load_code_set, read_metrics, read_results


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


def test_class_numbers_become_one_hot(tmp_path):
    case = make_case(4)
    numbers = [torch.arange(len(labels)) % 3 for labels in case[2:]]
    for role, tensor in zip(ROLES, [*case[:2], *numbers], strict=True):
        torch.save(tensor, tmp_path / f"a-{role}.t")
    (code_set,) = find_code_sets([tmp_path])
    loaded = load_code_set(code_set)
    assert all(torch.equal(one, other) for one, other in zip(loaded[:2], case[:2], strict=True))
    assert all(torch.equal(one.float(), torch.eye(3)[n]) for one, n in zip(loaded[2:], numbers, strict=True))
    torch.save(numbers[0] - 1, tmp_path / "a-query_targets.t")
    with pytest.raises(UserError, match="0 or more"):
        load_code_set(code_set)


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
