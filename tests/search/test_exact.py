"""Exact search is a sort by distance, then row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import search.exact
from search.exact import as_words
from tests.search.small_index import BITS, make_index, pairs, random_bits
from utils.errors import UserError


def by_a_loop(bits, query, k=None, radius=None):
    """(row, distance) of the neighbours of one row of bits, from the definition."""
    found = [(sum(a != b for a, b in zip(row, query, strict=True)), place) for place, row in enumerate(bits.tolist())]
    found = sorted(pair for pair in found if radius is None or pair[0] <= radius)
    if k is None and radius is None:
        k = 10
    return [(place, distance) for distance, place in found[:k]]


@given(
    count=st.integers(1, 60),
    code_length=st.sampled_from([1, 7, 8, 12, 16, 24, 32, 48, 64, 65, 100, 128, 300]),
    block=st.sampled_from([1, 3, 16, 1 << 16]),
    k=st.none() | st.integers(1, 70),
    radius=st.none() | st.integers(0, 40),
    seed=st.integers(0, 999),
)
def test_search_is_a_sort_by_distance_then_row(count, code_length, block, k, radius, seed):
    bits = random_bits(count + 3, code_length, seed)
    queries, bits = bits[:3], bits[3:]
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(search.exact, "_ROWS_AT_ONCE", block)
        found = make_index(bits).search(np.packbits(queries, axis=1), k=k, radius=radius)
    assert [pairs(result) for result in found] == [by_a_loop(bits, query, k, radius) for query in queries.tolist()]


def test_a_block_with_far_more_ties_than_k_keeps_the_first_rows():
    bits = np.zeros((5000, 64), np.uint8)
    bits[1000:, 0] = 1
    index = make_index(bits)
    (rows, distances), (far, _) = index.search(np.packbits(np.array([bits[0], bits[-1]]), axis=1), k=3)
    assert rows.tolist() == [0, 1, 2] and distances.tolist() == [0, 0, 0]
    assert far.tolist() == [1000, 1001, 1002]
    assert index.search(index.codes[:1], k=1002)[0][0].tolist() == list(range(1002))


def test_words_are_the_codes_themselves_where_a_word_holds_one():
    codes = np.arange(32, dtype=np.uint8).reshape(4, 8)
    (word,) = as_words(codes)
    assert word.dtype == np.uint64 and np.shares_memory(word, codes)
    assert [word.dtype for word in as_words(codes[:, :3])] == [np.uint32]
    assert len(as_words(np.zeros((4, 13), np.uint8))) == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"query_codes": np.zeros((1, 3), np.uint8)}, r"uint8 \[q, 2\] for 12 bits, not uint8 \[1, 3\]"),
        ({"query_codes": np.zeros((1, 2), np.int64)}, "not int64"),
        ({"query_codes": np.zeros(2, np.uint8)}, r"not uint8 \[2\]"),
        ({"k": 0}, "-k 0"),
        ({"radius": -1}, "--radius -1"),
    ],
)
def test_wrong_arguments_of_a_search_are_refused(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        make_index(random_bits(5, BITS)).search(**({"query_codes": np.zeros((1, 2), np.uint8)} | arguments))
