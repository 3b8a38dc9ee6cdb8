"""`python -m search build`."""

import json

import numpy as np
import torch

import search.encode
import search.model
from search.__main__ import main
from search.build import find_sources
from search.index import Index
from search.model import load_model
from tests.image_trees import save_photo
from tests.search.encode_small import use_small_parts
from tests.search.small_index import files_below
from utils.files import locked


def test_build_keeps_the_codes_that_encode_makes(index, run_folder, photos, tmp_path):
    loaded = Index.load(index)
    assert main(["encode", str(run_folder), str(photos), "-o", str(tmp_path / "codes.npz"), "--device", "cpu"]) == 0
    with np.load(tmp_path / "codes.npz") as content:
        assert np.array_equal(loaded.codes, content["codes"]) and len(np.unique(content["codes"], axis=0)) > 3
        assert [str(photos / name) for name in loaded.names] == content["names"].tolist()
        assert loaded.fingerprint == str(content["fingerprint"])
        assert loaded.settings == json.loads(str(content["settings"]))
    assert loaded.labels == [name.split("/")[0] for name in loaded.names] and len(set(loaded.labels)) == 3
    assert all(loaded.path_of(row).is_file() for row in range(30))
    loaded.matches(load_model(run_folder))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codes.npz", "index", "photos", "run"]


def test_the_stored_model_is_the_run_s_to_the_last_bit_and_small_where_it_loses_nothing(
    index, run_folder, photos, tmp_path
):
    model = load_model(run_folder)
    stored = torch.load(index / "model.pt", weights_only=True)["state"]
    assert {value.dtype for value in stored.values()} == {torch.float32}
    assert Index.load(index).model().fingerprint == model.fingerprint
    search.model.export_model(model, tmp_path / "half.pt")
    main(["build", str(tmp_path / "half.pt"), str(photos), "-o", str(tmp_path / "small"), "--device", "cpu"])
    stored = torch.load(tmp_path / "small" / "model.pt", weights_only=True)["state"]
    assert {value.dtype for value in stored.values()} == {torch.float16}
    small = Index.load(tmp_path / "small")
    assert small.model().fingerprint == load_model(tmp_path / "half.pt").fingerprint != model.fingerprint


def test_one_process_at_a_time_builds_an_index(run_folder, photos, tmp_path, capsys):
    line = ["build", str(run_folder), str(photos), "-o", str(tmp_path / "index"), "--device", "cpu"]
    with locked(tmp_path / ".index.lock"):
        assert main(line) == 2
        sentence = f"{tmp_path / 'index'}: another process builds this index; wait for it or name another folder.\n"
        assert capsys.readouterr().err == f"python -m search build: {sentence}"
        assert main([*line[:3], "-o", str(tmp_path / "other"), *line[5:]]) == 0
    assert main(line) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "other", "photos", "run"]


def test_unreadable_images_are_left_out_of_an_index_with_their_names(run_folder, photos, tmp_path, capsys):
    (photos / "Äpfel" / "Bild 00.jpg").write_bytes(b"no image")
    assert main(["build", str(run_folder), str(photos), "-o", str(tmp_path / "index"), "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert "29 images in 12 bits, 1 skipped" in printed.out and "Bild 00.jpg: skipped" in printed.err
    loaded = Index.load(tmp_path / "index")
    assert "Äpfel/Bild 00.jpg" not in loaded.names and len(loaded.names) == len(loaded.labels) == 29
    for name, label in zip(loaded.names, loaded.labels, strict=True):
        assert name.startswith(f"{label}/")
    for path in photos.rglob("*.*"):
        path.write_bytes(b"no image")
    assert main(["build", str(run_folder), str(photos), "-o", str(tmp_path / "none"), "--device", "cpu"]) == 2
    assert not (tmp_path / "none").exists() and not list(tmp_path.glob(".none*"))


def test_an_interrupted_build_continues(run_folder, photos, tmp_path, capsys, monkeypatch):
    use_small_parts(monkeypatch, 16)
    line = ["build", str(run_folder), str(photos), "--device", "cpu", "--num-workers", "1"]
    assert main([*line, "-o", str(tmp_path / "whole")]) == 0
    prepare, seen = search.encode.prepare_image, []

    def stop_at(limit):
        def prepare_some(path, *arguments):
            seen.append(path)
            if len(seen) == limit:
                raise KeyboardInterrupt
            return prepare(path, *arguments)

        return prepare_some

    monkeypatch.setattr(search.encode, "prepare_image", stop_at(25))
    assert main([*line, "-o", str(tmp_path / "index")]) == 130
    assert "run the same command again to continue" in capsys.readouterr().err and not (tmp_path / "index").exists()
    seen.clear()
    monkeypatch.setattr(search.encode, "prepare_image", stop_at(0))
    assert main([*line, "-o", str(tmp_path / "index")]) == 0
    assert len(seen) == 30 - 16
    assert files_below(tmp_path / "index") == files_below(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "photos", "run", "whole"]


def test_names_and_labels_follow_what_was_given(photos, tmp_path, monkeypatch):
    sources, base = find_sources([str(photos)])
    assert base == photos and ("日本/Bild 00.jpg", "日本") in {(name, label) for _, name, label in sources}
    save_photo(photos / "top.png", 1)
    save_photo(photos / "日本" / "deep" / "er.png", 2)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("photos/top.png\nphotos/日本/deep/er.png\n")
    sources, base = find_sources(["photos", "photos/top.png", "list.txt"])
    assert base == tmp_path and all((base / name).is_file() for _, name, _ in sources)
    found = [(name, label) for _, name, label in sources]
    assert ("photos/top.png", "") in found and ("photos/日本/deep/er.png", "日本") in found
    assert found[-3:] == [("photos/top.png", ""), ("photos/top.png", ""), ("photos/日本/deep/er.png", "")]


def test_an_index_without_class_folders_has_no_labels(run_folder, tmp_path, capsys):
    for number in range(3):
        save_photo(tmp_path / "flat" / f"{number}.png", number)
    assert (
        main(["build", str(run_folder), str(tmp_path / "flat"), "-o", str(tmp_path / "index"), "--device", "cpu"]) == 0
    )
    assert Index.load(tmp_path / "index").labels is None
    capsys.readouterr()
    assert main(["query", str(tmp_path / "index"), str(tmp_path / "flat" / "1.png"), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["rank", "distance", "name"]
