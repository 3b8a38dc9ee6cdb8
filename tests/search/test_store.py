"""The store: it grows and shrinks, every change is whole, and a search is the same however it is done."""

import multiprocessing
import os
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import search.store
from data.image_paths import labelled_images
from search.encode import Encoding, encode_files
from search.model import Model
from search.store import Added, NoStore, Store, build, default_probes
from tests.image_trees import save_photo
from tests.search.all_changes import all_changes
from tests.search.tiny_model import BITS, tiny_model
from utils.errors import UserError
from utils.files import locked

ENCODING = Encoding(num_workers=1)
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.search.all_changes"])


def contents(store):
    """{name: (row, label, code)} of all images."""
    collection = store.collection()
    items = [collection.item(position) for position in range(len(collection))]
    return {
        name: (row, label, code.tobytes()) for (row, name, label), code in zip(items, collection.codes, strict=True)
    }


def codes_of(model, folder, names):
    """{name: code} as `search encode` makes them."""
    paths = [str(folder / name) for name in names]
    return {
        os.path.relpath(path, folder): code.tobytes()
        for seen, codes, _ in encode_files(model, paths, ENCODING)
        for path, code in zip(seen, codes, strict=True)
    }


def names_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))


# ---- Build, open ----


def test_a_store_has_the_codes_names_labels_and_the_model(store, photos, model_file):
    store = Store(store.uri)
    model = Model.load(model_file)
    held = contents(store)
    assert {name: code for name, (_, _, code) in held.items()} == codes_of(model, photos, names_below(photos))
    assert len({code for _, _, code in held.values()}) > 10
    assert all(label == name.split("/")[0] for name, (_, label, _) in held.items())
    assert {name: row for name, (row, _, _) in held.items()} == {
        name: row for row, name in enumerate(names_below(photos))
    }
    assert len(store) == 30
    assert store.labels() == ["große Hunde", "Äpfel", "日本"]
    assert all(store.path_of(name).is_file() for name in held)
    assert (store.code_length, store.settings, store.fingerprint) == (BITS, model.settings, model.fingerprint)
    assert store.model().content == model.content and store.model() is store.model()
    assert {*os.listdir(store.uri)} == {"model.lance", "images.lance", ".lock"}


def test_names_and_labels_follow_what_was_given(tmp_path, photos, model_file, monkeypatch):
    save_photo(photos / "top.png", 1)
    save_photo(photos / "日本" / "deep" / "er.png", 2)
    (photos / "link").symlink_to(photos / "日本" / "deep")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("photos/top.png\nphotos/日本/deep/er.png\n")
    found = labelled_images(["photos", "photos/top.png", "list.txt"])
    assert all(os.path.isfile(path) and path.startswith(str(tmp_path)) for path in found)
    assert found[f"{photos}/日本/deep/er.png"] == "日本" and found[f"{photos}/top.png"] == "" and len(found) == 33
    given = labelled_images(["list.txt", "photos/日本/Bild 00.jpg"])
    assert given == dict.fromkeys(
        [f"{photos}/{name}" for name in ("top.png", "日本/deep/er.png", "日本/Bild 00.jpg")], ""
    )
    # From several inputs: names from the current folder, labels from the folders given.
    several, _ = build("several", Model.load(model_file), ["photos", "photos/top.png", "list.txt"], ENCODING)
    held = contents(several)
    assert held["photos/日本/deep/er.png"][1] == "日本" and held["photos/top.png"][1] == "" and len(held) == 32 + 1
    # From one folder: both from there, whatever is added later and however it is named.
    alone, _ = build("alone", Model.load(model_file), ["photos/日本"], ENCODING)
    assert contents(alone)["deep/er.png"][1] == "deep" and contents(alone)["Bild 00.jpg"][1] == ""
    monkeypatch.chdir(photos)
    assert alone.add(["日本/deep", "日本/../日本/Bild 00.jpg"], ENCODING).unchanged == 2
    assert alone.add(["Äpfel"], ENCODING).added == 10
    assert contents(alone)[f"{photos}/Äpfel/Bild 00.jpg"][1] == ""


def test_a_name_that_is_not_utf_8_is_left_out(tmp_path, model_file, caplog):
    save_photo(tmp_path / "photos" / "good.png", 1)
    save_photo(tmp_path / "photos" / os.fsdecode(b"bad\xff.png"), 2)
    store, _ = build(str(tmp_path / "store"), Model.load(model_file), [str(tmp_path / "photos")], ENCODING)
    assert list(contents(store)) == ["good.png"]
    bad = tmp_path / "photos" / "bad\N{REPLACEMENT CHARACTER}.png"
    assert caplog.messages == [f"{bad}: skipped (its name is not UTF-8; rename it)"]


def test_another_model_and_other_things_are_refused(store, photos, tmp_path):
    other = Model.from_bytes(tiny_model(seed=1), "other")
    with pytest.raises(UserError, match="its codes are of another model"):
        build(store.uri, other, [str(photos)], ENCODING)
    with pytest.raises(UserError, match="is a store already"):
        Store.create(store.uri, other)
    (tmp_path / "file").write_text("mine")
    for name, sentence in (
        ("photos", "already exists and is not a store"),
        ("file", "already exists and is not a store"),
        ("no/where", "cannot write there"),
    ):
        with pytest.raises(UserError, match=sentence):
            Store.create(str(tmp_path / name), other)
    for name in ("nothing", "photos", "file"):
        with pytest.raises(NoStore, match="there is no store"):
            Store(str(tmp_path / name))
    assert not (tmp_path / "nothing").exists() and names_below(photos) == sorted(contents(store))
    (tmp_path / "empty").mkdir()
    assert len(Store.create(str(tmp_path / "empty"), other)) == 0


def test_an_index_of_an_earlier_version_says_what_to_do(tmp_path, model_file, photos):
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "index.json").write_text('{"format": "schn-index-1"}')
    sentence = "an index of an earlier version; run `python -m search build` with a new --store"
    with pytest.raises(UserError, match=sentence):
        Store(str(tmp_path / "index"))
    with pytest.raises(UserError, match=sentence):
        build(str(tmp_path / "index"), Model.load(model_file), [str(photos)], ENCODING)


def test_a_store_of_another_decoding_or_with_another_model_is_refused(store, monkeypatch):
    table = pa.table({"content": pa.array([tiny_model(seed=1)], pa.large_binary())})
    store._database.create_table("model", table, mode="overwrite")
    with pytest.raises(UserError, match="holds another model than that of its codes"):
        Store(store.uri).model()
    monkeypatch.setattr(search.store, "DECODING", 99)
    with pytest.raises(UserError, match="one of another version of this program; build it again"):
        Store(store.uri)


def test_nothing_readable_is_an_error(tmp_path, model_file, capsys):
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="none of the 1 images could be read"):
        build(str(tmp_path / "store"), Model.load(model_file), [str(tmp_path / "bad.png")], ENCODING)
    assert "bad.png: skipped (" in capsys.readouterr().err


def test_damage_is_one_sentence(store):
    for path in sorted((search.store.Path(store.uri) / "images.lance").rglob("*")):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="LanceDB cannot read or write it") as caught:
        Store(store.uri).collection()
    assert "\n" not in str(caught.value) and ".rs:" not in str(caught.value)


# ---- Add and remove ----


def test_add_encodes_only_what_is_new_or_has_changed(store, photos, monkeypatch, capsys):
    before = contents(store)
    assert store.add([str(photos)], ENCODING) == Added(0, 0, 30, 0)
    save_photo(photos / "日本" / "Bild 00.jpg", 77)
    save_photo(photos / "日本" / "new.jpg", 78)
    (photos / "Äpfel" / "Bild 01.png").write_bytes(b"no image any more")
    seen = []
    prepare = search.encode.prepare_image
    monkeypatch.setattr(search.encode, "prepare_image", lambda path, *rest: seen.append(path) or prepare(path, *rest))
    assert store.add([str(photos), str(photos / "日本")], ENCODING) == Added(1, 1, 28, 1)
    assert sorted(map(os.path.basename, seen)) == ["Bild 00.jpg", "Bild 01.png", "new.jpg"]
    assert "Bild 01.png: skipped (" in capsys.readouterr().err
    after = contents(store)
    changed = "日本/Bild 00.jpg"
    assert after.pop("日本/new.jpg")[:2] == (30, "日本")
    assert after[changed][2] != before[changed][2] and after[changed][:2] == before[changed][:2]
    assert after | {changed: before[changed]} == before
    expected = codes_of(store.model(), photos, [changed, "日本/new.jpg"])
    assert {name: contents(store)[name][2] for name in expected} == expected
    rows = store.collection().rows
    assert rows.tolist() == list(range(31)) and store.collection().position_of(30) == 30


def test_a_row_is_never_used_again(store, photos):
    last = store.collection().item(29)[1]
    assert store.remove([last, "not there"]) == [last]
    assert store.remove(["not there"]) == [] and len(store) == 29
    with pytest.raises(KeyError):
        store.collection().position_of(29)
    assert store.add([str(photos)], ENCODING) == Added(1, 0, 29, 0)
    assert contents(store)[last][0] == 30
    assert len(store.remove(list(contents(store)))) == 30 and len(store) == 0 and store.remove() == []
    [none] = store.search(np.zeros((1, 2), np.uint8), k=3)
    assert len(none.rows) == 0 and none.names == []
    store.add([str(photos / "日本")], ENCODING)
    assert sorted(row for row, _, _ in contents(store).values()) == list(range(31, 41))


def test_missing_files_are_removed_but_not_when_all_are(store, photos, tmp_path):
    assert store.remove() == []
    (photos / "日本" / "Bild 00.jpg").unlink()
    assert store.remove() == ["日本/Bild 00.jpg"] and len(store) == 29
    photos.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"none of its 29 images is in .*--images-folder"):
        store.remove()
    store.images = tmp_path / "moved"
    assert store.remove() == [] and len(store) == 29
    assert store.add([str(tmp_path / "moved")], ENCODING) == Added(0, 0, 29, 0)


def test_one_process_at_a_time_writes_and_others_read(store, photos):
    with locked(search.store.Path(store.uri) / ".lock"):
        for change in (
            lambda: store.add([str(photos)], ENCODING),
            lambda: store.remove(["a"]),
            store.remove,
            store.optimize,
        ):
            with pytest.raises(UserError, match="another process writes to this store; wait for it"):
                change()
        assert len(Store(store.uri).collection()) == 30


def test_a_change_by_another_program_is_seen_at_once(store):
    reader = Store(store.uri)
    first = reader.collection()
    assert reader.collection() is first
    store.remove([first.item(3)[1]])
    assert len(reader.collection()) == len(reader) == 29 and 3 not in reader.collection().rows


# ---- Search ----


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A store of 3,000 made-up codes of 16 bits with many ties, which changed after the index was made."""
    store = Store.create(str(tmp_path_factory.mktemp("large") / "store"), Model.from_bytes(tiny_model(16), "tiny"))
    random = np.random.default_rng(5)
    centres = random.integers(0, 2, (40, 16), dtype=np.uint8)
    bits = centres[random.integers(0, 40, 3000)] ^ (random.random((3000, 16)) < 0.1)
    codes = np.packbits(bits, axis=1)
    images = [(f"{row}.png", ["it's", "b", ""][row % 3], 0, 0) for row in range(3000)]
    store._write(images[:2800], codes[:2800], are_new=True)
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(search.store, "_RECALL_QUERIES", 50)
        store.measured = store.optimize(index=True)
    store._write(images[2800:], codes[2800:], are_new=True)
    store._write(images[:100], codes[100:200], are_new=False)  # these have changed
    store.remove([name for name, *_ in images[300:330]])
    assert store.lists() == 32
    return store


@pytest.mark.parametrize("how", [{"k": 1}, {"k": 10}, {"k": 700}, {"radius": 0}, {"radius": 3}, {"k": 5, "radius": 2}])
@pytest.mark.parametrize("label", [None, "it's", "", "nobody"])
def test_an_index_finds_the_same_rows_in_the_same_order(large, how, label):
    """With all its lists; also the images that came after it was made, and at the cut the rows that tie."""
    codes = large.collection().codes
    _, places, counts = np.unique(codes, axis=0, return_index=True, return_counts=True)
    queries = codes[[places[counts.argmax()], 1500, 2969]]
    exact = large.search(queries, **how, label=label, exact=True)
    for found, expected in zip(large.search(queries, **how, label=label, probes=32), exact, strict=True):
        assert found.rows.tolist() == expected.rows.tolist() and found.rows.dtype == np.int64
        assert found.distances.tolist() == expected.distances.tolist() and found.distances.dtype == np.int64
        assert (found.names, found.labels) == (expected.names, expected.labels)
        assert found.names == [f"{row}.png" for row in found.rows] and {*found.labels} <= {label, *"b", "", "it's"}
        assert label is None or {*found.labels} <= {label}
    assert (len(exact[0].rows) > 0) == (label != "nobody")


def test_fewer_lists_find_fewer_and_the_recall_says_so(large):
    queries = large.collection().codes[:50]
    exact = large.search(queries, exact=True)
    few = large.search(queries, probes=1)
    right = np.mean(
        [(found.distances <= best.distances[-1]).sum() / 10 for found, best in zip(few, exact, strict=True)]
    )
    assert 0.3 < right < 1
    assert right < large.measured <= 1
    assert all((np.diff(found.distances) >= 0).all() for found in few)


def test_an_index_is_made_dropped_and_has_no_more_lists_than_different_codes(store, photos, monkeypatch):
    assert store.optimize() is None and store.lists() is None
    different = len(np.unique(store.collection().codes, axis=0))
    assert store.optimize(index=True, lists=1000) > 0.5 and store.lists() == different
    save_photo(photos / "日本" / "new.jpg", 78)
    store.add([str(photos)], ENCODING)
    name = f"lists_{different}"
    assert store._table.index_stats(name).num_unindexed_rows == 1
    assert store.optimize() is None and store.lists() == different and len(store) == 31
    assert store._table.index_stats(name).num_unindexed_rows == 0
    store.optimize(index=True, lists=2)
    assert store.lists() == 2
    store.optimize(index=False)
    assert store.lists() is None
    monkeypatch.setattr(search.store, "MOST_FOR_EXACT", 30)
    assert store.optimize() == 1.0 and store.lists() == 4
    store.remove(list(contents(store)))
    with pytest.raises(UserError, match="has no images for an index"):
        store.optimize(index=True)


def test_a_query_reads_an_eighth_of_many_lists():
    assert [default_probes(n) for n in (1, 16, 512, 8192)] == [1, 8, 64, 1024]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"codes": np.zeros((1, 3), np.uint8)}, r"uint8 \[q, 2\] for 16 bits, not uint8 \[1, 3\]"),
        ({"codes": np.zeros((1, 2), np.int64)}, "not int64"),
        ({"codes": np.zeros(2, np.uint8)}, r"not uint8 \[2\]"),
        ({"k": 0}, "-k 0"),
        ({"radius": -1}, "--radius -1: must be at least"),
    ],
)
def test_wrong_arguments_of_a_search_are_refused(large, arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        large.search(**({"codes": np.zeros((1, 2), np.uint8)} | arguments))


def test_parquet_has_what_other_databases_load(large, tmp_path):
    assert large.write_parquet(tmp_path / "codes.parquet") == 2970
    table = pq.read_table(tmp_path / "codes.parquet").sort_by("row")
    collection = large.collection()
    assert table.column_names == ["row", "name", "label", "code", "hex"]
    assert table["row"].to_numpy().tolist() == collection.rows.tolist()
    assert [bytes(code) for code in table["code"].to_pylist()] == [code.tobytes() for code in collection.codes]
    assert [bytes.fromhex(text) for text in table["hex"].to_pylist()] == [bytes(code) for code in collection.codes]
    assert table["name"].to_pylist() == collection.names.to_pylist()
    assert table["label"].to_pylist() == collection.labels.to_pylist()
    assert table.schema.metadata[b"fingerprint"].decode() == large.fingerprint


# ---- Kill -9 ----


@pytest.mark.parametrize(
    ("change", "least", "most"), [(1, 0, 4), (5, 16, 20), (9, 15, 30), (12, 23, 27), (14, 30, 30), (15, 15, 30)]
)
def test_a_killed_program_leaves_a_whole_store(tmp_path, photos, model_file, change, least, most):
    model = Model.load(model_file)
    expected = codes_of(model, photos, names_below(photos))
    uri, begun = str(tmp_path / "store"), CONTEXT.Value("i", 0)
    process = CONTEXT.Process(target=all_changes, args=(uri, str(photos), str(model_file), begun, change))
    process.start()
    while begun.value < change:
        assert process.is_alive()
        time.sleep(0.001)
    time.sleep(0.0007 * change)
    process.kill()
    process.join()
    found = contents(Store(uri))
    assert least <= len(found) <= most
    rows = [row for row, _, _ in found.values()]
    assert len(set(rows)) == len(rows) == len(found)
    assert {name: code for name, (_, _, code) in found.items()}.items() <= expected.items()
    store, _ = build(uri, model, [str(photos)], ENCODING)  # the same command again
    assert {name: code for name, (_, _, code) in contents(store).items()} == expected
    store.optimize()
    assert len(contents(store)) == len(store) == 30


def test_a_program_killed_while_it_made_the_store_leaves_none(tmp_path, photos, model_file, monkeypatch):
    uri = str(tmp_path / "store")
    monkeypatch.setattr(search.store.pa, "schema", None)  # not callable: the second of the two tables is not made
    with pytest.raises(UserError):
        Store.create(uri, Model.load(model_file))
    monkeypatch.undo()
    assert os.listdir(uri) == ["model.lance"]
    os.makedirs(f"{uri}/images.lance/data")  # without a version
    with pytest.raises(NoStore):
        Store(uri)
    assert build(uri, Model.load(model_file), [str(photos)], ENCODING)[1].added == 30


# ---- S3 ----


@pytest.fixture
def bucket(monkeypatch):
    """The address of a bucket of a server of S3 on this machine."""
    boto3, server = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    running = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    try:
        address = "http://{}:{}".format(*running.get_host_and_port())
        for name, value in {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": address,
            "AWS_ALLOW_HTTP": "true",
        }.items():
            monkeypatch.setenv(name, value)
        boto3.client("s3", endpoint_url=address, region_name="us-east-1").create_bucket(Bucket="photos")
        yield "s3://photos"
    finally:
        running.stop()


def test_the_same_on_s3(bucket, tmp_path, photos, model_file, store):
    uri = f"{bucket}/path/store"
    with pytest.raises(NoStore):
        Store(uri)
    remote, added = build(uri, Model.load(model_file), [str(photos)], ENCODING)
    assert added == Added(30, 0, 0, 0) and contents(remote) == contents(store)
    assert remote.model().content == store.model().content
    save_photo(photos / "日本" / "new.jpg", 78)
    for one in (remote, store):
        assert one.add([str(photos)], ENCODING) == Added(1, 0, 30, 0)
        assert one.remove(["日本/Bild 00.jpg"]) == ["日本/Bild 00.jpg"]
    assert contents(Store(uri)) == contents(remote) == contents(store)
    remote.optimize(index=True, lists=2)
    queries = store.collection().codes[:3]
    for found, expected in zip(remote.search(queries, k=4), store.search(queries, k=4), strict=True):
        assert found.names == expected.names and found.rows.tolist() == expected.rows.tolist()
    with pytest.raises(UserError, match=r"s3://nobody/store: .*NoSuchBucket"):
        Store("s3://nobody/store")
