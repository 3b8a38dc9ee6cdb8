"""Exact search is a sort by distance, then row."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import search.exact
from search.exact import Collection, as_words, search_words


def random_bits(count, bits, seed=0, distinct=6, flipped=0.1):
    """uint8 [count, bits] of 0 and 1 around few centres: many ties, at distance 0 too."""
    random = np.random.default_rng(seed)
    centres = random.integers(0, 2, (distinct, bits), dtype=np.uint8)
    return centres[random.integers(0, distinct, count)] ^ (random.random((count, bits)) < flipped).astype(np.uint8)


def nearest(bits, queries, k, radius):
    """[(position, distance)] for each query."""
    words, query_words = (as_words(np.packbits(rows, axis=1)) for rows in (bits, queries))
    found = search_words(words, query_words, k, radius)
    assert all(column.dtype == np.int64 for pair in found for column in pair)
    return [list(zip(*(column.tolist() for column in pair), strict=True)) for pair in found]


def by_a_loop(bits, query, k, radius):
    """(position, distance) of the neighbours of one row of bits, from the definition."""
    found = [(sum(a != b for a, b in zip(row, query, strict=True)), place) for place, row in enumerate(bits.tolist())]
    return [(place, distance) for distance, place in sorted(found) if distance <= radius][:k]


@given(
    count=st.integers(1, 60),
    code_length=st.sampled_from([1, 7, 8, 12, 16, 24, 32, 48, 64, 65, 100, 128, 300]),
    block=st.sampled_from([1, 3, 16, 1 << 16]),
    k=st.integers(1, 70),
    radius=st.integers(0, 40) | st.just(300),
    seed=st.integers(0, 999),
)
def test_search_is_a_sort_by_distance_then_row(count, code_length, block, k, radius, seed):
    bits = random_bits(count + 3, code_length, seed)
    queries, bits = bits[:3], bits[3:]
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(search.exact, "_ROWS_AT_ONCE", block)
        found = nearest(bits, queries, k, radius)
    assert found == [by_a_loop(bits, query, k, radius) for query in queries.tolist()]


def test_a_block_with_far_more_ties_than_k_keeps_the_first_rows():
    bits = np.zeros((5000, 64), np.uint8)
    bits[1000:, 0] = 1
    near, far = nearest(bits, bits[[0, -1]], 3, 64)
    assert near == [(0, 0), (1, 0), (2, 0)] and far == [(1000, 0), (1001, 0), (1002, 0)]
    assert [row for row, _ in nearest(bits, bits[:1], 1002, 64)[0]] == list(range(1002))


def test_words_are_the_codes_themselves_where_a_word_holds_one():
    codes = np.arange(32, dtype=np.uint8).reshape(4, 8)
    (word,) = as_words(codes)
    assert word.dtype == np.uint64 and np.shares_memory(word, codes)
    assert [word.dtype for word in as_words(codes[:, :3])] == [np.uint32]
    assert len(as_words(np.zeros((4, 13), np.uint8))) == 2


@pytest.mark.parametrize("label", ["a", "b'c", "", "none"])
def test_a_label_leaves_only_its_images(label):
    bits = random_bits(90, 12)
    labels = ["a", "b'c", ""] * 30
    rows = np.arange(90) * 7
    collection = Collection(
        rows, np.packbits(bits, axis=1), pa.chunked_array([[f"{row}" for row in rows]]), pa.chunked_array([labels])
    )
    [found] = collection.search(np.packbits(bits[:1], axis=1), 100, 12, label)
    chosen = [place for place in range(90) if labels[place] == label]
    expected = [(chosen[place] * 7, near) for place, near in by_a_loop(bits[chosen], bits[0].tolist(), 100, 12)]
    assert list(zip(found.rows.tolist(), found.distances.tolist(), strict=True)) == expected
    assert found.names == [str(row) for row in found.rows] and found.labels == [label] * len(chosen)


def test_a_row_is_found_by_its_number():
    collection = Collection(
        np.array([2, 5, 9]),
        np.zeros((3, 1), np.uint8),
        pa.chunked_array([["a", "b", "c"]]),
        pa.chunked_array([[""] * 3]),
    )
    assert [collection.position_of(row) for row in (2, 5, 9)] == [0, 1, 2] and collection.item(1) == (5, "b", "")
    for row in (-1, 0, 3, 10):
        with pytest.raises(KeyError):
            collection.position_of(row)
