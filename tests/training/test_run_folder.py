"""The folder of a run belongs to one process, and to the data with which it began."""

import json
import threading

import pytest
import torch

import main_mmasia
import run
from data import Options, data_digest, hold_out, load_data
from modules import image_network
from tests import image_trees as trees
from tests.small_networks import SmallImageNet, shrink
from tests.training.test_checkpoint import FLAGS
from training import preflight
from training.run_folder import RunFolder, _new_folder
from training.settings import Settings
from utils.errors import UserError
from utils.files import locked


@pytest.fixture
def small(monkeypatch):
    shrink(monkeypatch, main_mmasia, dropout=0.5)


def one_run(logs, *flags):
    assert run.main([*FLAGS, "--logs", str(logs), "--max-iter", "2", "--code-length", "8", *flags]) == 0
    (folder,) = logs.iterdir()
    return folder


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path):
    made, start = [], threading.Barrier(8)

    def make():
        start.wait(60)
        made.append(_new_folder(tmp_path / "logs" / "run"))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(path.name for path in made) == ["run", *(f"run-{number}" for number in range(2, 9))]

    settings = Settings(logs=str(tmp_path / "second"))
    first, second = (RunFolder(settings, torch.device("cpu")) for _ in range(2))
    second.path = first.path  # neither has made its folder yet
    with first, second:
        first.open("data")
        second.open("data")
    assert second.path.name == f"{first.path.name}-2"
    assert all((each.path / "config.json").exists() for each in (first, second))


def test_a_second_resume_of_a_running_run_is_refused_before_its_data_are_read(tmp_path, small, monkeypatch, capsys):
    folder = one_run(tmp_path)
    monkeypatch.setattr(preflight, "load_data", lambda *_: pytest.fail("the data were read"))
    with locked(folder / ".lock"):
        assert run.main(["--resume", str(folder)]) == 2
    assert f"{folder}: another process trains in this folder; wait until it ends." in capsys.readouterr().err


def test_results_are_read_again_when_the_folder_is_free(tmp_path, small):
    """Else a run that ends between the first look and the lock would be trained again over its own results."""
    folder = one_run(tmp_path)
    results = (folder / "results.json").read_bytes()
    (folder / "results.json").unlink()
    late = RunFolder(Settings(max_iter=2), torch.device("cpu"), folder)
    assert not late.is_finished(8)
    (folder / "results.json").write_bytes(results)
    with late:
        assert late.is_finished(8)


def test_what_a_killed_process_left_is_removed_at_resume(tmp_path, small):
    folder = one_run(tmp_path)
    left = [
        ".checkpoint-8bits-000002.pt.k3_x9abc.tmp",
        ".model_image-8bits.pt.abcdefgh",
        ".a-query_code.t.01234567.tmp",
    ]
    kept = [".lock", ".notes.settings", "checkpoint-8bits-000002.pt", ".config.json.old"]
    for name in (*left, *kept):
        (folder / name).touch()
    assert run.main(["--resume", str(folder)]) == 0
    assert not [name for name in left if (folder / name).exists()]
    assert all((folder / name).exists() for name in kept)


def test_the_initial_weights_are_not_needed_where_there_is_a_checkpoint(tmp_path, monkeypatch, capsys):
    asked = []

    def network(backbone, code_length, *, weights, image_size):
        asked.append(weights)
        if weights != "none":
            image_network(backbone, code_length, weights=weights, image_size=64)
        return SmallImageNet(backbone, code_length)

    shrink(monkeypatch, main_mmasia)
    monkeypatch.setattr(main_mmasia, "image_network", network)
    file = tmp_path / "weights.pt"
    torch.save(image_network("alexnet", 8, weights=None, image_size=64).state_dict(), file)
    folder = one_run(tmp_path / "logs", "--weights", str(file))
    (folder / "results.json").unlink()
    file.unlink()
    assert run.main(["--resume", str(folder)]) == 0
    assert asked == [str(file), "none"]
    (folder / "results.json").unlink()
    for path in folder.glob("checkpoint*"):
        path.unlink()
    assert run.main(["--resume", str(folder)]) == 2
    assert f"--weights {file}: there is no such file" in capsys.readouterr().err


# ---- The same data ----


def test_the_digest_covers_names_labels_and_split(tmp_path):
    classes = trees.folder_tree(tmp_path)
    options = Options(image_size=32, cache="off")

    def digest(**changed):
        return data_digest(load_data("folder", tmp_path, Options(image_size=32, cache="off", **changed)))

    first = digest()
    assert first == digest() and len(first) == 64
    assert first != digest(seed=1) and first != digest(query_share=0.3)
    split = load_data("folder", tmp_path, options)
    assert data_digest(hold_out(split, 5, 0)) not in (first, data_digest(hold_out(split, 6, 0)))
    split.database.labels[3] = split.database.labels[3].roll(1)
    assert data_digest(split) != first
    image = next((tmp_path / classes[0]).iterdir())
    image.rename(image.with_stem("renamed"))
    renamed = digest()
    (tmp_path / classes[0]).rename(tmp_path / f"{classes[0]}2")
    assert len({first, renamed, digest()}) == 3
    digits = {data_digest(load_data("digits", "", Options(seed=seed, image_size=8))) for seed in (0, 0, 1)}
    assert len(digits) == 2


@pytest.fixture
def photos(tmp_path):
    trees.folder_tree(tmp_path / "photos")
    return tmp_path / "photos"


def test_a_run_whose_data_have_changed_is_not_resumed(tmp_path, photos, small, capsys):
    flags = ["--dataset", "folder", "--root", str(photos), "--weights", "none", "--num-samples", "20", "--cache", "off"]
    folder = one_run(tmp_path / "logs", *flags)
    (folder / "results.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    checkpoint = folder / "checkpoint-8bits-000002.pt"
    assert config["data"] == torch.load(checkpoint, weights_only=True)["data"]
    image = next(path for path in sorted(photos.rglob("*")) if path.is_file())
    image.rename(image.with_stem("another"))
    refusal = "the images' names, labels or split have changed since the run began; restore them"
    assert run.main(["--resume", str(folder)]) == 2
    assert f"{folder}/config.json: {refusal}" in capsys.readouterr().err
    del config["data"]  # of an older version; the checkpoint still knows
    (folder / "config.json").write_text(json.dumps(config))
    assert run.main(["--resume", str(folder)]) == 2
    assert f"{checkpoint}: {refusal}" in capsys.readouterr().err
    image.with_stem("another").rename(image)
    (folder / "config.json").write_text(json.dumps(config))
    assert run.main(["--resume", str(folder)]) == 0
    assert "data" in json.loads((folder / "config.json").read_text())


def test_a_run_of_an_older_version_says_nothing_of_its_data(tmp_path):
    with RunFolder(Settings(logs=str(tmp_path)), torch.device("cpu")) as folder:
        folder.open("one")
    config = json.loads((folder.path / "config.json").read_text())
    for data, fits in ((None, True), ("one", True), ("two", False)):
        (folder.path / "config.json").write_text(
            json.dumps({name: value for name, value in (config | {"data": data}).items() if value is not None})
        )
        with RunFolder(Settings(logs=str(tmp_path)), torch.device("cpu"), folder.path) as again:
            if fits:
                again.open("one")
                continue
            with pytest.raises(UserError, match="names, labels or split have changed"):
                again.open("one")
