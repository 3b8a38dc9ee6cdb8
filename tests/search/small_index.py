"""Small indexes for the tests, and short ways to look at them."""

import json

import numpy as np
import pytest

import search.backends
from search.__main__ import main
from search.index import Index

BITS = 12

needs_faiss = pytest.mark.skipif(not search.backends.has_faiss(), reason="faiss is not installed")


def random_bits(count, bits, seed=0, distinct=6, flipped=0.1):
    """uint8 [count, bits] of 0 and 1 around few centres: many ties, at distance 0 too."""
    random = np.random.default_rng(seed)
    centres = random.integers(0, 2, (distinct, bits), dtype=np.uint8)
    return centres[random.integers(0, distinct, count)] ^ (random.random((count, bits)) < flipped).astype(np.uint8)


def make_index(bits, **changes):
    """An index of the rows `bits`, with names and labels."""
    count, code_length = bits.shape
    values = {
        "codes": np.packbits(bits, axis=1),
        "names": [f"c/{row}.png" for row in range(count)],
        "labels": ["c"] * count,
        "code_length": code_length,
        "settings": {"backbone": "alexnet"},
        "fingerprint": "0" * 64,
    }
    return Index(**(values | changes))


def pairs(result):
    rows, distances = result
    assert rows.dtype == np.int64 and distances.dtype == np.int64
    return list(zip(rows.tolist(), distances.tolist(), strict=True))


def files_below(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip(path):
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def query_json(capsys, *line):
    assert main(["query", *map(str, line), "--json", "--device", "cpu"]) == 0
    return json.loads(capsys.readouterr().out)
