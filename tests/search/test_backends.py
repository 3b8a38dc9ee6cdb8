"""The searches of faiss give our rows and distances, or say that they may miss some."""

import numpy as np
import pytest

import search.backends
from search.__main__ import main
from search.backends import (
    FaissBackend,
    NumpyBackend,
    build_structure,
    default_backend,
    default_nlist,
    default_tables,
    open_backend,
)
from search.index import Index
from tests.search.small_index import BITS, flip, make_index, needs_faiss, pairs, query_json, random_bits
from utils.errors import UserError


def faiss_backend(index, name):
    return FaissBackend(index, name, build_structure(name, index.codes))


def make_index_and_queries(count, code_length, distinct=6):
    """An index and 40 packed queries around the same centres."""
    bits = random_bits(count + 40, code_length, code_length, distinct, flipped=min(0.1, 4 / code_length))
    return make_index(bits[40:]), np.packbits(bits[:40], axis=1)


@needs_faiss
@pytest.mark.parametrize("code_length", [12, 32, 64, 100])
def test_flat_gives_our_rows_and_distances(code_length):
    # At 12 bits hundreds tie at a cut, more than are fetched at first.
    index, queries = make_index_and_queries(3000, code_length)
    backend = faiss_backend(index, "flat")
    for k, radius in ((1, None), (10, None), (3000, None), (5000, None), (None, 5), (3, 5), (None, 0), (None, 9999)):
        ours = index.search(queries, k, radius)
        theirs = backend.search(queries, k, radius)
        assert [pairs(one) for one in theirs] == [pairs(one) for one in ours]
    raw, _ = backend.structure.search(queries, 10)
    assert np.array_equal(raw, [distances for _, distances in index.search(queries, 10)])


@needs_faiss
def test_ivf_that_looks_at_every_list_is_exact_and_one_list_is_not():
    index, queries = make_index_and_queries(2000, 32, distinct=200)
    structure = build_structure("ivf", index.codes, nlist=16)
    exact = [pairs(one) for one in index.search(queries, 10)]
    every = FaissBackend(index, "ivf", structure, nprobe=16)
    assert every.is_exact(None) and [pairs(one) for one in every.search(queries, 10)] == exact
    one_list = FaissBackend(index, "ivf", structure, nprobe=1)
    some = [pairs(one) for one in one_list.search(queries, 10)]
    assert not one_list.is_exact(None) and some != exact
    assert [pairs(one) for one in every.search(queries, 10)] == exact  # each keeps its own nprobe
    assert_true_distances(index, queries, some)
    again = FaissBackend(index, "ivf", build_structure("ivf", index.codes, nlist=16), nprobe=1).search(queries, 10)
    assert [pairs(one) for one in again] == some  # the centres are learnt the same each time


def assert_true_distances(index, queries, found):
    """In order, without repetition, each at the distance that it is said to have."""
    for query, result in zip(queries, found, strict=True):
        assert [(row, int(np.unpackbits(index.codes[row] ^ query).sum())) for row, _ in result] == result
        assert sorted(result, key=lambda pair: pair[::-1]) == result
        assert len({row for row, _ in result}) == len(result)


@needs_faiss
def test_hundreds_of_ties_at_the_cut_are_put_in_order():
    """Lists are read by their centres, so that faiss meets later rows first and keeps those."""
    index, queries = make_index_and_queries(20_000, 12)
    structure = build_structure("ivf", index.codes, nlist=16)
    backend = FaissBackend(index, "ivf", structure, nprobe=16)
    exact = index.search(queries, 3)
    assert [pairs(one) for one in backend.search(queries, 3)] == [pairs(one) for one in exact]
    distances, rows = structure.search(queries, 3)
    assert np.array_equal(distances, [near for _, near in exact])
    assert not np.array_equal(np.sort(rows, axis=1), [np.sort(where) for where, _ in exact])


@needs_faiss
@pytest.mark.parametrize("code_length", [12, 32, 64, 100])
def test_multihash_finds_all_within_a_radius(code_length):
    index, queries = make_index_and_queries(2000, code_length)
    backend = faiss_backend(index, "multihash")
    for radius in (0, 2, 5, 7):
        found = [pairs(one) for one in backend.search(queries, radius=radius)]
        assert found == [pairs(one) for one in index.search(queries, radius=radius)]
        assert any(found) or radius == 0
    assert_true_distances(index, queries, [pairs(one) for one in backend.search(queries, 10)])
    if code_length == 64:
        narrow = FaissBackend(index, "multihash", backend.structure, nflip=0)
        assert [pairs(one) for one in narrow.search(queries, radius=7)] != found
        assert backend.is_exact(7) and narrow.is_exact(3) and not narrow.is_exact(4) and not backend.is_exact(None)


@needs_faiss
@pytest.mark.parametrize("kind", ["ivf", "multihash"])
def test_a_stored_structure_is_used_and_checked(kind, run_folder, photos, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "index"
    line = ["build", str(run_folder), str(photos), "-o", str(folder), "--device", "cpu", "--backend", kind]
    assert main(line) == 0
    query = str(photos / "Äpfel" / "Bild 01.png")
    index = Index.load(folder)
    with monkeypatch.context() as patches:
        patches.setattr(search.backends, "build_structure", None)  # would fail if it were called
        backend = open_backend(index)
        assert backend.name == kind
    capsys.readouterr()
    assert main(["query", str(folder), query, "--device", "cpu", "--nprobe", "1"]) == 0
    assert f"Searched with {kind}, which may miss neighbours" in capsys.readouterr().out
    for other in ("numpy", "flat"):
        answer = query_json(capsys, folder, query, "--backend", other)
        assert answer["backend"] == other and answer["exact"] and answer["queries"][0]["neighbours"][0]["distance"] == 0
    flip(folder / "faiss.bin")
    assert main(["query", str(folder), query, "--device", "cpu"]) == 2
    assert "faiss.bin: has changed" in capsys.readouterr().err
    monkeypatch.setattr(search.backends, "has_faiss", lambda: False)
    assert query_json(capsys, folder, query)["backend"] == "numpy"


def test_without_faiss_numpy_searches_and_the_others_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(search.backends, "has_faiss", lambda: False)
    index = make_index(random_bits(5, BITS))
    assert isinstance(open_backend(index), NumpyBackend) and default_backend(10**9) == "numpy"
    with pytest.raises(UserError, match=r"--backend flat: needs faiss \(pip install -r requirements-search.txt\)"):
        open_backend(index, "flat")
    with pytest.raises(UserError, match="--backend annoy: must be one of"):
        open_backend(index, "annoy")


def test_the_backend_follows_the_number_of_codes(monkeypatch):
    monkeypatch.setattr(search.backends, "has_faiss", lambda: True)
    most = search.backends.MOST_FOR_EXACT
    assert [default_backend(count) for count in (1, most, most + 1)] == ["numpy", "numpy", "ivf"]
    assert default_tables(1000, 64) == (4, 16) and default_tables(10**7, 64) == (3, 21)
    assert default_tables(1, 8) == (1, 8) and default_tables(1000, 104) == (6, 17)
    assert [default_nlist(count) for count in (1, 3, 4, 10**6, 10**7)] == [1, 1, 2, 512, 2048]
