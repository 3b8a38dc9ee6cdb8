"""Counting by distance: all three engines against a loop over pairs, and against each other."""

from __future__ import annotations

import importlib.util
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.naive_ranking import count_pairs, make_case, sort_and_average
from utils import hamming
from utils.hamming import (
    ENGINES,
    Matrices,
    count_by_distance,
    default_engine,
    pack_words,
    query_blocks,
    stable_precisions,
)

HAS_NUMBA = importlib.util.find_spec("numba") is not None
AVAILABLE = [
    pytest.param(
        engine,
        marks=pytest.mark.skipif(engine == "compiled" and not HAS_NUMBA, reason="numba is not installed"),
    )
    for engine in ENGINES
]
ZEROS = ("none", "rows", "queries", "everywhere")


def count(case, engine, *, grades=1):
    """`count_by_distance` with a given engine."""
    with pytest.MonkeyPatch.context() as context:
        context.setattr(hamming, "default_engine", lambda *_: engine)
        return count_by_distance(Matrices(*case), grades=grades)


def rank(case, limit, engine):
    """AP of each query by `stable_precisions` with a given engine."""
    with pytest.MonkeyPatch.context() as context:
        context.setattr(hamming, "default_engine", lambda *_: engine)
        precisions, found = stable_precisions(Matrices(*case), limit)
    return precisions / np.maximum(found, 1)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("engine", AVAILABLE)
@pytest.mark.parametrize("zeros", ZEROS)
@pytest.mark.parametrize(
    ("bits", "classes", "database", "grades"),
    [
        (1, 1, 1, 1),
        (3, 10, 150, 1),
        (12, 10, 150, 3),
        (13, 70, 90, 2),
        (64, 21, 90, 4),
        (65, 1, 90, 1),
        (128, 200, 60, 90),
    ],
)
def test_counts_are_those_of_a_loop_over_pairs(engine, zeros, bits, classes, database, grades):
    case = make_case(bits, bits=bits, classes=classes, database=database, zeros=zeros)
    items, relevant = count(case, engine, grades=grades)
    expected_items, expected_relevant = count_pairs(*case, grades)
    np.testing.assert_array_equal(items, expected_items)
    np.testing.assert_array_equal(relevant, expected_relevant)


@pytest.mark.parametrize("engine", AVAILABLE)
@pytest.mark.parametrize("zeros", ZEROS)
@pytest.mark.parametrize("bits", [1, 2, 12, 33, 128])
def test_stable_order_is_that_of_a_stable_sort(engine, zeros, bits):
    case = make_case(bits, bits=bits, zeros=zeros)
    for limit in (1, 7, 149, 150):
        expected = sort_and_average(*case, limit)
        np.testing.assert_allclose(rank(case, limit, engine), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("engine", AVAILABLE)
@pytest.mark.parametrize("threads", [1, 2])
def test_counts_do_not_depend_on_chunks_or_threads(engine, threads, monkeypatch, two_threads):
    torch.set_num_threads(threads)
    case = make_case(3, queries=9, database=9000, bits=24, zeros="everywhere")
    whole, in_order = count(case, "torch"), sort_and_average(*case, 5000)
    monkeypatch.setattr(hamming, "_NUMBERS_PER_CHUNK", 1)  # three chunks of at most 4096 rows
    items, relevant = count(case, engine)
    np.testing.assert_array_equal(items, whole[0])
    np.testing.assert_array_equal(relevant, whole[1])
    averages = rank(case, 5000, engine)
    np.testing.assert_allclose(averages, in_order, rtol=0, atol=1e-12)


@pytest.mark.parametrize("engine", AVAILABLE)
@pytest.mark.parametrize("classes", [1, 5, 300])
def test_class_numbers_count_as_one_hot_rows(engine, classes, monkeypatch):
    """Also where no class of a chunk is that of a query."""
    monkeypatch.setattr(hamming, "_NUMBERS_PER_CHUNK", 1)  # chunks of 4096 rows
    codes = make_case(9, queries=5, database=9000, zeros="rows")[:2]
    numbers = [torch.arange(5) % classes, torch.arange(9000) * classes // 9000]
    one_hot = [torch.nn.functional.one_hot(labels, classes) for labels in numbers]
    expected = count([*codes, *one_hot], "torch")
    items, relevant = count([*codes, *numbers], engine)
    np.testing.assert_array_equal(items, expected[0])
    np.testing.assert_array_equal(relevant, expected[1])
    averages = rank([*codes, *numbers], 700, engine)
    np.testing.assert_allclose(averages, sort_and_average(*codes, *one_hot, 700), rtol=0, atol=1e-12)


@pytest.mark.parametrize("engine", AVAILABLE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.int8, torch.bfloat16, torch.float16])
def test_any_number_type_counts_alike(engine, dtype):
    case = make_case(5, zeros="rows")
    expected = count(case, "torch")
    converted = [tensor.to(dtype) for tensor in case[:2]] + [tensor.bool() for tensor in case[2:]]
    items, relevant = count(converted, engine)
    np.testing.assert_array_equal(items, expected[0])
    np.testing.assert_array_equal(relevant, expected[1])


@pytest.mark.parametrize("engine", AVAILABLE)
def test_views_that_are_not_contiguous_count_alike(engine):
    case = make_case(6, zeros="rows")
    expected = count(case, "torch")
    items, relevant = count([tensor.T.contiguous().T for tensor in case], engine)
    np.testing.assert_array_equal(items, expected[0])
    np.testing.assert_array_equal(relevant, expected[1])


@pytest.mark.skipif(not HAS_NUMBA, reason="reads the source of the compiled counting")
@pytest.mark.parametrize("zeros", ZEROS)
def test_compiled_code_means_what_it_says_as_plain_python(zeros, monkeypatch):
    """The same source, run by the interpreter, gives the same counts."""
    import numba

    path = Path(hamming.__file__).with_name("hamming_compiled.py")
    spec = importlib.util.spec_from_file_location("utils.hamming_compiled", path)
    plain = importlib.util.module_from_spec(spec)
    with monkeypatch.context() as context:
        context.setattr(numba.config, "DISABLE_JIT", True)
        spec.loader.exec_module(plain)
    assert not hasattr(plain.count_blocks, "py_func")
    monkeypatch.setitem(sys.modules, "utils.hamming_compiled", plain)
    case = make_case(7, queries=3, database=70, bits=9, classes=3, zeros=zeros)
    with np.errstate(over="ignore"):  # counting ones multiplies modulo 2**64
        items, relevant = count(case, "compiled", grades=2)
        averages = [rank(case, limit, "compiled") for limit in (5, 70)]
    expected = count_pairs(*case, 2)
    np.testing.assert_array_equal(items, expected[0])
    np.testing.assert_array_equal(relevant, expected[1])
    for limit, average in zip((5, 70), averages, strict=True):
        np.testing.assert_allclose(average, sort_and_average(*case, limit), rtol=0, atol=1e-12)


@pytest.mark.parametrize("engine", [parameter for parameter in AVAILABLE if parameter.values[0] != "torch"])
def test_memory_does_not_grow_as_queries_times_database(engine, two_threads):
    case = make_case(8, queries=400, database=100_000, bits=16, classes=10)  # 40 M pairs
    count([tensor[:10] for tensor in case], engine)
    tracemalloc.start()
    try:
        count(case, engine)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20


def test_packed_words_hold_the_signs():
    rows = torch.tensor([[1.0] * 9 + [-1.0], [-1.0] * 9 + [1.0]])
    (word,) = pack_words(rows)
    assert word.dtype == np.uint16
    assert [int(value).bit_count() for value in word] == [9, 1]
    assert len(pack_words(torch.ones(3, 65))) == 2
    assert pack_words(torch.ones(3, 20))[0].dtype == np.uint32


def test_engine_is_chosen_by_device_size_and_what_is_installed(monkeypatch):
    assert default_engine(1, "cuda") == "torch"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert default_engine(1 << 30) == "compiled"
    assert default_engine(1) == "numpy"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert default_engine(1 << 30) == "numpy"


def test_query_blocks_cover_every_query_once():
    matrices = Matrices(*make_case(1, queries=10_000, database=2, bits=128))
    blocks = list(query_blocks(matrices, 4))
    slices = [rows for rows, _ in blocks]
    assert [rows.start for rows in slices[1:]] == [rows.stop for rows in slices[:-1]]
    assert (slices[0].start, slices[-1].stop) == (0, 10_000)
    assert len(slices) > 1
    for rows, part in blocks:
        assert torch.equal(part.query_code, matrices.query_code[rows])
        assert torch.equal(part.query_labels, matrices.query_labels[rows])
        assert part.database_code is matrices.database_code
