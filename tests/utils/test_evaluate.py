"""The metrics against loops written from the definitions, and their expectation against shuffled databases."""

from __future__ import annotations

import json
import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.naive_ranking import make_case, sort_and_average
from utils.evaluate import CUTOFFS, DENOMINATORS, average_precision, evaluate_codes, mean_average_precision
from utils.ranking_metrics import (
    cut,
    expected_average_precision,
    expected_ndcg,
    expected_within,
    harmonic_difference,
    within_radius,
)


def shuffled_average(case, limit, times, seed=0, denominator=None):
    """Mean and standard error of AP over random database orders: a Monte-Carlo estimate of the expectation."""
    query_code, database_code, query_labels, database_labels = (tensor.numpy() for tensor in case)
    rng = np.random.default_rng(seed)
    distance = -(query_code @ database_code.T)
    relevant = query_labels @ database_labels.T > 0
    draws = np.empty((times, len(query_code)))
    ranks = np.arange(1, limit + 1)
    for draw in range(times):
        order = rng.permutation(len(database_code))
        ranked = order[np.argsort(distance[:, order], axis=1, kind="stable")][:, :limit]
        hits = np.take_along_axis(relevant, ranked, axis=1)
        sums = (np.cumsum(hits, axis=1) / ranks * hits).sum(axis=1)
        draws[draw] = sums / (np.maximum(hits.sum(axis=1), 1) if denominator is None else denominator)
    return draws.mean(axis=0), draws.std(axis=0) / math.sqrt(times)


def expectation_by_enumeration(items, relevant, limit):
    """E[AP@R] of one query by the definition of expectation: every order of every tie, weighted alike.

    A tie is walked rank by rank; the state is how many relevant items have come, each with its probability and its
    expected sum of precisions.
    """
    states = {0: (1.0, 0.0)}  # relevant so far -> (probability, probability × E[Σ precision | so far])
    rank = 0
    before = 0
    for n, r in zip(items, relevant, strict=True):
        for slot in range(n):
            if rank == limit:
                break
            rank += 1
            following: dict[int, tuple[float, float]] = {}
            for found, (probability, total) in states.items():
                left = r - (found - before)
                hit = left / (n - slot)
                for now, chance in ((found + 1, hit), (found, 1 - hit)):
                    if chance > 0:
                        gain = chance * (total + (probability * now / rank if now > found else 0.0))
                        old = following.get(now, (0.0, 0.0))
                        following[now] = (old[0] + chance * probability, old[1] + gain)
            states = following
        else:
            # whole tie: every state has found all its relevant items
            before += r
            continue
        break
    return sum(total / found for found, (_, total) in states.items() if found)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bits": 1, "classes": 2, "share": 0.5},
        {"bits": 128, "classes": 200, "share": 0.02},
        {"zeros": "rows"},
        {"zeros": "everywhere"},
        {"bits": 3, "share": 0.02},
    ],
)
@pytest.mark.parametrize("topk", [None, 0, -1, 1, 10, 60, 79, 80, 1000])
def test_stable_is_a_stable_sort(options, topk):
    case = make_case(1, database=80, **options)
    limit = 80 if topk is None or topk <= 0 else min(topk, 80)
    values = average_precision(*case, topk=topk, ties="stable")
    assert values.dtype == torch.float64
    np.testing.assert_allclose(values, sort_and_average(*case, limit), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "options", [{"bits": 4}, {"bits": 12}, {"bits": 4, "zeros": "everywhere"}, {"bits": 1, "share": 0.1}]
)
@pytest.mark.parametrize("topk", [None, 1, 2, 17, 60, 119])
def test_expected_is_the_mean_of_shuffles(options, topk):
    case = make_case(2, database=120, **options)
    mean, error = shuffled_average(case, cut(topk, 120), 2000)
    values = average_precision(*case, topk=topk).numpy()
    assert (np.abs(values - mean) <= 4.5 * error + 1e-12).all()


@pytest.mark.parametrize("limit", [1, 2, 5, 9, 14, 20, 24])
@pytest.mark.parametrize(
    ("items", "relevant"),
    [
        ([24], [5]),
        ([24], [24]),
        ([24], [0]),
        ([24], [1]),
        ([4, 8, 0, 12], [1, 3, 0, 6]),
        ([4, 8, 0, 12], [0, 8, 0, 0]),
        ([1] * 24, [1, 0] * 12),
        ([2, 20, 2], [0, 7, 2]),
    ],
)
def test_expected_is_the_expectation_over_all_orders(items, relevant, limit):
    value = expected_average_precision(np.array([items]), np.array([relevant]), limit)
    np.testing.assert_allclose(value, expectation_by_enumeration(items, relevant, limit), rtol=1e-13, atol=1e-15)


def test_cut_inside_a_large_tie_is_exact():
    items, relevant = np.array([[900, 300]]), np.array([[350, 30]])
    for limit in (1, 250, 899, 1000, 1199):
        value = expected_average_precision(items, relevant, limit)
        np.testing.assert_allclose(value, expectation_by_enumeration(items[0], relevant[0], limit), rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6), st.integers(1, 60))
def test_expected_agrees_with_enumeration_on_any_histogram(ties, limit):
    items = np.array([n for n, _ in ties])
    relevant = np.array([min(n, r) for n, r in ties])
    value = expected_average_precision(items[None], relevant[None], limit)[0]
    assert value == pytest.approx(expectation_by_enumeration(items, relevant, limit), abs=1e-13)


@pytest.mark.parametrize("start", [0, 1, 5, 63, 64, 65, 1000, 193_734])
@pytest.mark.parametrize("count", [0, 1, 2, 70, 5000])
def test_harmonic_difference_keeps_its_digits(start, count):
    exact = math.fsum(1 / (start + j) for j in range(1, count + 1))
    assert float(harmonic_difference(start, count)) == pytest.approx(exact, rel=3e-14)


def test_hypergeometric_step_splits_into_blocks(monkeypatch):
    rng = np.random.default_rng(3)
    items = rng.integers(1, 50, (40, 5))
    items[:, -1] += items.sum(axis=1).max() - items.sum(axis=1)  # every query ranks the same database
    relevant = rng.integers(0, items + 1)
    whole = expected_average_precision(items, relevant, 70)
    monkeypatch.setattr("utils.ranking_metrics._HYPERGEOMETRIC_BLOCK", 50)
    np.testing.assert_allclose(expected_average_precision(items, relevant, 70), whole, rtol=1e-14)


def test_all_items_tied_and_one_item():
    labels = torch.tensor([1, 0, 1])
    code = torch.ones(3, 4)
    query = torch.ones(1, 4), code, torch.tensor([1]), labels
    # orders of (relevant, other, relevant): AP 1, 5/6 and 7/12, each with probability 1/3
    assert mean_average_precision(*query) == pytest.approx((1 + 5 / 6 + 7 / 12) / 3, abs=1e-15)
    assert mean_average_precision(*query, ties="stable") == pytest.approx(5 / 6, abs=1e-15)
    # the first item alone is relevant with probability 2/3, and AP@1 is then 1
    assert mean_average_precision(*query, topk=1) == pytest.approx(2 / 3, abs=1e-15)
    one = torch.ones(1, 4), torch.ones(1, 4), torch.tensor([1]), torch.tensor([1])
    assert mean_average_precision(*one) == 1.0
    assert mean_average_precision(*one[:3], torch.tensor([0])) == 0.0


def test_the_worked_example_of_the_docs():
    query_code = [[1, 1, 1, 1]]
    database_code = [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, -1], [1, 1, -1, -1], [0, 0, 0, 0]]
    query_labels, database_labels = [[1, 0]], [[0, 1], [1, 0], [1, 0], [1, 0], [0, 1]]
    case = [torch.tensor(rows) for rows in (query_code, database_code, query_labels, database_labels)]
    report = evaluate_codes(*case)
    assert report["map"]["expected"] == pytest.approx((3 / 4 + 2 / 3 + 27 / 40) / 3)
    assert report["map"]["stable"] == pytest.approx((1 / 2 + 2 / 3 + 3 / 4) / 3)
    assert mean_average_precision(*case, topk=1) == pytest.approx(1 / 2)
    assert mean_average_precision(*case, topk=4) == pytest.approx(103 / 144)
    assert report["precision_at"] == pytest.approx({1: 1 / 2, 2: 1 / 2, 5: 3 / 5})
    assert report["recall_at"] == pytest.approx({1: 1 / 6, 2: 1 / 3, 5: 1})
    assert report["precision_recall"]["precision"] == pytest.approx([1 / 2, 2 / 3, 3 / 5, 3 / 5, 3 / 5])
    assert report["precision_recall"]["recall"] == pytest.approx([1 / 3, 2 / 3, 1, 1, 1])
    assert report["zero_rows"] == 1


def test_a_cut_of_minus_one_keeps_the_last_item():
    code = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    case = torch.ones(1, 2), code, torch.tensor([1]), torch.tensor([0, 1])
    for topk in (None, 0, -1, 2, 100):
        for ties in ("expected", "stable"):
            assert mean_average_precision(*case, topk=topk, ties=ties) == 0.5
    assert mean_average_precision(*case, topk=1) == 0.0


def test_a_query_without_label_counts_as_zero():
    case = make_case(4, queries=2)
    case[2][1] = 0
    values = average_precision(*case)
    assert values[1] == 0
    assert mean_average_precision(*case) == pytest.approx(float(values[0]) / 2)


def test_arrays_and_tensors_give_the_same():
    case = make_case(5, zeros="everywhere")
    value = mean_average_precision(*case, topk=20)
    assert mean_average_precision(*[tensor.numpy() for tensor in case], topk=20) == value
    assert mean_average_precision(*[tensor.double() for tensor in case], "cpu", 20) == value
    assert isinstance(value, float)


@pytest.mark.parametrize("engine", ["compiled", "numpy", "torch"])
def test_every_engine_gives_the_same_metrics(engine, monkeypatch):
    pytest.importorskip("numba" if engine == "compiled" else "numpy")
    case = make_case(6, queries=20, database=5000, bits=32, zeros="rows")
    expected = evaluate_codes(*case, topk=700)
    monkeypatch.setattr("utils.hamming.default_engine", lambda *_: engine)
    report = evaluate_codes(*case, topk=700)
    assert report["map"].pop("stable") == pytest.approx(expected["map"].pop("stable"), abs=1e-12)
    assert report == expected


def naive_report(case, cutoffs, times=400):
    """precision@N, recall@N and NDCG@N as means over shuffles of a sorted list, metrics within a radius by a loop."""
    query_code, database_code, query_labels, database_labels = (tensor.numpy() for tensor in case)
    bits = query_code.shape[1]
    distance = (bits - query_code @ database_code.T) / 2
    shared = query_labels @ database_labels.T
    rng = np.random.default_rng(9)
    draws = {"precision_at": [], "recall_at": [], "ndcg_at": []}
    for _ in range(times):
        order = rng.permutation(len(database_code))
        ranked = order[np.argsort(distance[:, order], axis=1, kind="stable")]
        one = {name: np.zeros((len(query_code), len(cutoffs))) for name in draws}
        for i in range(len(query_code)):
            grades = shared[i, ranked[i]]
            best = np.sort(grades)[::-1]
            for j, n in enumerate(cutoffs):
                discount = 1 / np.log2(np.arange(2, n + 2))
                found = (grades[:n] > 0).sum()
                ideal = ((2 ** best[:n] - 1) * discount).sum()
                one["precision_at"][i, j] = found / n
                one["recall_at"][i, j] = found / max((grades > 0).sum(), 1)
                one["ndcg_at"][i, j] = ((2 ** grades[:n] - 1) * discount).sum() / ideal if ideal else 0.0
        for name, values in one.items():
            draws[name].append(values.mean(axis=0))
    at = {name: (np.mean(values, axis=0), np.std(values, axis=0) / math.sqrt(times)) for name, values in draws.items()}
    precision, recall, empty = np.zeros(bits + 1), np.zeros(bits + 1), 0
    for i in range(len(query_code)):
        for radius in range(bits + 1):
            inside = distance[i] <= radius
            found = (shared[i, inside] > 0).sum()
            precision[radius] += found / inside.sum() if inside.any() else 0.0
            recall[radius] += found / max((shared[i] > 0).sum(), 1)
        empty += not (distance[i] <= 2).any()
    return at, precision / len(query_code), recall / len(query_code), empty / len(query_code)


@pytest.mark.parametrize("zeros", ["none", "rows", "everywhere"])
@pytest.mark.parametrize("bits", [2, 8, 20])
def test_report_is_that_of_loops(bits, zeros):
    case = make_case(10 + bits, queries=8, database=60, bits=bits, classes=6, zeros=zeros)
    case[2][3] = 0  # a query without a label
    report = evaluate_codes(*case)
    cutoffs = [1, 2, 5, 10, 20, 50]
    at, precision, recall, empty = naive_report(case, cutoffs)
    for name, (mean, error) in at.items():
        assert list(report[name]) == cutoffs
        assert (np.abs(np.array(list(report[name].values())) - mean) <= 4.5 * error + 1e-12).all(), name
    np.testing.assert_allclose(report["precision_recall"]["precision"], precision, rtol=1e-13)
    np.testing.assert_allclose(report["precision_recall"]["recall"], recall, rtol=1e-13)
    assert report["radius_2"]["precision"] == pytest.approx(precision[min(2, bits)], rel=1e-13)
    assert report["radius_2"]["recall"] == pytest.approx(recall[min(2, bits)], rel=1e-13)
    assert report["radius_2"]["empty_share"] == empty
    assert report["zero_rows"] == int((case[1] == 0).all(1).sum())
    assert report["queries_without_relevant"] == int(((case[2] @ case[3].T > 0).sum(1) == 0).sum())
    assert report["map"]["expected"] == mean_average_precision(*case)
    assert report["map"]["stable"] == mean_average_precision(*case, ties="stable")


def test_single_label_report_has_no_ndcg_and_is_json():
    case = make_case(11, classes=4)
    one_hot = [torch.eye(4)[torch.arange(len(labels)) % 4] for labels in case[2:]]
    report = evaluate_codes(*case[:2], *one_hot, topk=20)
    assert set(report) == {
        "map", "precision_recall", "precision_at", "recall_at", "radius_2", "queries_without_relevant",
        "zero_rows", "topk", "denominator", "without_relevant",
    }  # fmt: skip
    assert report["topk"] == 20
    assert evaluate_codes(*case[:2], *one_hot, topk=10**6)["topk"] is None
    assert max(report["precision_at"]) == max(n for n in CUTOFFS if n <= len(case[1]))
    again = json.loads(json.dumps(report))
    assert again["map"] == report["map"]
    assert len(again["precision_recall"]["recall"]) == 13
    assert again["precision_recall"]["recall"][-1] == 1.0


def test_blocks_of_queries_do_not_change_the_metrics(monkeypatch):
    case = make_case(12, queries=30, zeros="everywhere")
    expected, values = evaluate_codes(*case), average_precision(*case)
    monkeypatch.setattr("utils.hamming._HISTOGRAM_BYTES", 2000)  # a few queries a block
    assert torch.equal(average_precision(*case), values)
    report = evaluate_codes(*case)
    assert report["map"]["expected"] == pytest.approx(expected["map"]["expected"], rel=1e-14)
    assert report["ndcg_at"] == pytest.approx(expected["ndcg_at"], rel=1e-13)
    assert report["zero_rows"] == expected["zero_rows"]


def test_metrics_of_one_histogram_by_hand():
    items, relevant = np.array([[2, 0, 1, 0, 1]]), np.array([[1, 0, 0, 0, 1]])  # K = 2: distances 0, 1, 2
    np.testing.assert_allclose(expected_within(items, relevant, [1, 2, 3, 4]), [[0.5, 1, 1, 2]])
    precision, recall, inside = within_radius(items, relevant)
    np.testing.assert_allclose(precision, [[1 / 2, 1 / 3, 1 / 2]])
    np.testing.assert_allclose(recall, [[1 / 2, 1 / 2, 1]])
    assert inside.tolist() == [[2, 3, 4]]
    # gains 3 or 0 at ranks 1 and 2, each with probability 1/2; 1 at rank 4; at best 3, 1
    graded = np.array([[[1, 0, 0, 0, 1], [1, 0, 0, 0, 0]]])
    ideal = 3 + 1 / math.log2(3)
    expected = [
        1.5 / 3,
        1.5 * (1 + 1 / math.log2(3)) / ideal,
        (1.5 * (1 + 1 / math.log2(3)) + 1 / math.log2(5)) / ideal,
    ]
    np.testing.assert_allclose(expected_ndcg(items, graded, [1, 2, 4]), [expected])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, b, ql, bl: (q[:, :5], b, ql, bl), "code length"),
        (lambda q, b, ql, bl: (q, b, ql[:, :5], bl), "classes"),
        (lambda q, b, ql, bl: (q[:5], b, ql, bl), "5 query codes but 6 rows"),
        (lambda q, b, ql, bl: (q, b, ql, bl[:9]), "150 database codes but 9 rows"),
        (lambda q, b, ql, bl: (q[0], b, ql, bl), "query_code must be a matrix"),
        (lambda q, b, ql, bl: (q, b, ql, bl.argmax(1)), "database_labels are class numbers and query_labels are not"),
        (lambda q, b, ql, bl: (q, b, ql, bl[:, None]), "database_labels must be a matrix"),
        (lambda q, b, ql, bl: (q, b, ql, bl.to_sparse()), "database_labels is sparse"),
        (lambda q, b, ql, bl: (q, b, -ql.argmax(1) - 1, bl.argmax(1)), "query_labels must hold a class number"),
        (lambda q, b, ql, bl: (q, b, ql.argmax(1), bl.argmax(1) + 0.5), "database_labels must hold a class number"),
        (lambda q, b, ql, bl: (q, b, ql.argmax(1), bl[:0, 0]), "database_labels must hold a class number"),
        (lambda q, b, ql, bl: (q, b * (torch.arange(12) > 0), ql, bl), "database_code has rows with both 0 and -1"),
        (lambda q, b, ql, bl: (q[:0], b, ql[:0], bl), "query_code must be a matrix"),
        (lambda q, b, ql, bl: (q, b[:0], ql, bl[:0]), "database_code must be a matrix"),
        (lambda q, b, ql, bl: (q * 0.7, b, ql, bl), "query_code must hold only -1, 0 and"),
        (lambda q, b, ql, bl: (q, b * torch.nan, ql, bl), "database_code must hold only -1, 0 and"),
        (lambda q, b, ql, bl: (q, 2 * b.int(), ql, bl), "database_code must hold only -1, 0 and"),
        (lambda q, b, ql, bl: (q, b, ql, -bl), "database_labels must be multi-hot"),
        (lambda q, b, ql, bl: (q, b, ql + 1, bl), "query_labels must be multi-hot"),
    ],
)
def test_bad_input_is_named(change, message):
    case = change(*make_case(13))
    for function in (average_precision, mean_average_precision, evaluate_codes):
        with pytest.raises(ValueError, match=message):
            function(*case)


@pytest.mark.parametrize("unknown", ["ties", "denominator", "without_relevant"])
def test_unknown_conventions_are_refused(unknown):
    with pytest.raises(ValueError, match=f"{unknown} must be one of .*, not 'random'"):
        mean_average_precision(*make_case(14), **{unknown: "random"})


# ---- What other projects save ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8, torch.bool])
def test_codes_of_0_and_1_are_read_as_bits(dtype):
    codes = torch.tensor([[0, 0, 0, 1]]), torch.tensor([[0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]])
    labels = torch.tensor([[1, 0]]), torch.tensor([[1, 0], [0, 1], [0, 1]])
    with pytest.warns(UserWarning, match="query_code and database_code without -1: read as bits"):
        value = mean_average_precision(*[code.to(dtype) for code in codes], *labels)
    assert value == 1.0 == mean_average_precision(*[2 * code - 1 for code in codes], *labels)


def test_only_the_codes_of_0_and_1_are_converted():
    case = make_case(16)
    with pytest.warns(UserWarning, match="^database_code without -1"):
        assert mean_average_precision(case[0], case[1] > 0, *case[2:]) == mean_average_precision(*case)


def test_rows_of_zeros_stay_never_encoded():
    """Also where every other row is +1 in all bits, so that there is no -1."""
    codes = torch.ones(1, 4), torch.tensor([[1.0] * 4, [0.0] * 4])
    report = evaluate_codes(*codes, torch.tensor([0]), torch.tensor([1, 0]))
    assert report["zero_rows"] == 1
    assert report["precision_recall"]["recall"] == [0, 0, 1, 1, 1]  # half the bits away


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.uint8])
def test_labels_of_one_column_are_class_numbers(dtype):
    case = make_case(18)
    numbers = [(torch.arange(len(labels)) * 7 % 2).to(dtype) for labels in case[2:]]
    one_hot = [torch.eye(2)[label.long()] for label in numbers]
    expected = mean_average_precision(*case[:2], *one_hot)
    assert mean_average_precision(*case[:2], *numbers) == expected
    with pytest.warns(UserWarning, match="one column: read as class numbers"):
        assert mean_average_precision(*case[:2], *[label[:, None] for label in numbers]) == expected


def test_class_numbers_may_be_huge():
    case = make_case(19)
    numbers = [torch.arange(len(labels)) % 5 for labels in case[2:]]
    expected = evaluate_codes(*case[:2], *numbers)
    assert evaluate_codes(*case[:2], *[label * 20_000_000_000 + 7 for label in numbers]) == expected


def test_a_hundred_thousand_classes_take_little_memory():
    """A million items; one-hot rows would take 100 GB."""
    draw = torch.Generator().manual_seed(0)
    codes = [2 * torch.randint(2, (n, 16), generator=draw, dtype=torch.int8) - 1 for n in (10, 1_000_000)]
    labels = torch.arange(10) * 9_999, torch.arange(1_000_000) % 100_000
    tracemalloc.start()
    try:
        value = mean_average_precision(*codes, *labels)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0 < value < 0.01
    assert peak < 256 << 20


# ---- Conventions ----


@pytest.mark.parametrize("ties", ["expected", "stable"])
@pytest.mark.parametrize("topk", [1, 17, 60, None])
def test_denominator_of_all_relevant_items(ties, topk):
    """Σ precision is AP times the relevant items in the first R; its mean over shuffles is the expectation."""
    case = make_case(20, database=120)
    limit = cut(topk, 120)
    total = (case[2] @ case[3].T > 0).sum(1).numpy()
    values = average_precision(*case, topk=topk, ties=ties, denominator="relevant").numpy()
    if ties == "stable":
        order = np.argsort(-(case[0] @ case[1].T).numpy(), axis=1, kind="stable")[:, :limit]
        hits = np.take_along_axis((case[2] @ case[3].T > 0).numpy(), order, axis=1)
        expected = (np.cumsum(hits, axis=1) / np.arange(1, limit + 1) * hits).sum(axis=1) / np.maximum(total, 1)
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12)
    else:
        mean, error = shuffled_average(case, limit, 2000, denominator=np.maximum(total, 1))
        assert (np.abs(values - mean) <= 4.5 * error + 1e-12).all()


def test_both_denominators_agree_on_the_whole_database():
    case = make_case(21)
    both = [average_precision(*case, denominator=denominator) for denominator in DENOMINATORS]
    torch.testing.assert_close(*both, rtol=1e-12, atol=0)


def test_queries_without_a_relevant_item_can_be_left_out():
    case = make_case(22, queries=4)
    case[2][1] = 0
    values = average_precision(*case)
    assert mean_average_precision(*case, without_relevant="skip") == pytest.approx(float(values.sum()) / 3)
    kept = [0, 2, 3]
    alone = evaluate_codes(case[0][kept], case[1], case[2][kept], case[3])
    report = evaluate_codes(*case, without_relevant="skip")
    assert report["map"] == alone["map"]
    assert report["precision_at"] == pytest.approx(alone["precision_at"])
    assert (report["queries_without_relevant"], report["without_relevant"]) == (1, "skip")
    case[2][:] = 0
    with pytest.raises(ValueError, match="No query has a relevant item"):
        mean_average_precision(*case, without_relevant="skip")


def test_inputs_are_left_alone():
    case = make_case(15, zeros="everywhere")
    copies = [tensor.clone() for tensor in case]
    evaluate_codes(*case)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(case, copies, strict=True))
