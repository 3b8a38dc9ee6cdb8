"""What is wrong is found before the first image is decoded, and labels that teach nothing are reported."""

import re

import pytest
import torch

import run
from data import Options, load_data
from modules import image_network
from tests.image_trees import save_photo
from training import preflight
from training.settings import Settings
from utils.devices import require_working
from utils.errors import UserError


@pytest.fixture
def no_data(monkeypatch):
    def load(*_):
        raise AssertionError("images were decoded")

    monkeypatch.setattr(preflight, "load_data", load)


def torch_file(path, content):
    torch.save(content, path)
    return str(path)


CHEAP = [
    (["--weights", "/nowhere.pt"], r"--weights /nowhere\.pt: there is no such file\."),
    (["--image-size", "62"], r"--image-size 62: alexnet needs 63 or more"),
    (["--image-size", "100000"], r"--image-size: '100000' must be a whole number, 8 or more, at most 4096"),
    (["--image-size", "100", "--backbone", "vit_b_16"], r"--image-size 100: vit_b_16 needs a multiple of 16"),
    (["--code-length", "1e20"], r"--code-length: '1e20' must be a whole number"),
    (["--code-length", "9" * 30], r"--code-length: '9{30}' must be a whole number, 1 or more, at most 4096"),
    (["--code-length", "٣٢"], r"--code-length: '٣٢' must be a whole number"),
    (["--lr", "٠.١"], r"--lr: '٠.١' must be a number"),
    (["--device", "cuda:٠"], r"--device cuda:٠: not a device"),
    (["--num-workers", "99999"], r"--num-workers: '99999' must be a whole number, 0 or more, at most 1024"),
    (["--dataset", "digit"], r"--dataset: 'digit' is none of cifar-10, .*did you mean digits\?"),
    (["--method", "csq", "--latent", "tanh"], r"--latent: csq has nothing that it changes"),
    (
        ["--backbone", "resnet18", "--image-size", "32", "--num-samples", "65"],
        r"--batch-size 64: a pass over 65 images has a batch of 1, and resnet18 cannot train on so few with "
        r"--image-size 32 \(Expected more than 1 value per channel.*\); choose another --batch-size\.$",
    ),
]


@pytest.mark.parametrize(("flags", "message"), CHEAP, ids=[" ".join(flags)[:40] for flags, _ in CHEAP])
def test_mistakes_are_found_before_anything_is_decoded(flags, message, tmp_path, no_data, capsys):
    assert run.main(["--dataset", "digits", "--weights", "none", "--logs", str(tmp_path), *flags]) == 2
    assert re.search(message, capsys.readouterr().err.strip()), message
    assert not list(tmp_path.iterdir())


def test_weights_of_another_code_length_are_found_before_anything_is_decoded(tmp_path, no_data, capsys):
    file = torch_file(tmp_path / "w.pt", image_network("squeezenet1_0", 12, weights=None).state_dict())
    flags = ["--backbone", "squeezenet1_0", "--weights", file, "--code-length", "12,16", "--logs", str(tmp_path / "l")]
    with pytest.raises(AssertionError, match="images were decoded"):  # the weights of 12 bits fit
        run.main([*flags[:-4], "--code-length", "12", *flags[-2:]])
    assert run.main(flags) == 2
    error = capsys.readouterr().err
    assert "'hash_layer.0.weight' has shape (12, 512), but the network needs (16, 512)" in error
    assert "non-meta" not in error


def test_a_code_length_with_a_checkpoint_needs_no_weights(no_data, tmp_path):
    settings = Settings.for_dataset("digits", weights="/gone.pt", code_length=(12, 16), logs=str(tmp_path))
    with pytest.raises(UserError, match="there is no such file"):
        preflight.preflight(settings, fresh=[16])
    with pytest.raises(AssertionError, match="images were decoded"):
        preflight.preflight(settings, fresh=[])


def test_a_device_that_cannot_compute_is_one_line():
    with pytest.raises(UserError, match=r"--device meta: torch .* cannot compute there \(.*\); use another GPU or"):
        require_working(torch.device("meta"))
    require_working(torch.device("cpu"))


def test_the_last_batch_of_one_image_trains_where_it_can():
    settings = Settings.for_dataset("digits", num_samples=65)
    preflight.require_batches(settings)  # AlexNet has no batch norm
    for size, fits in ((32, False), (64, True)):  # the last maps have 1 × 1 and 2 × 2 pixels
        settings = Settings.for_dataset("digits", num_samples=65, backbone="resnet18", image_size=size)
        if fits:
            preflight.require_batches(settings)
        else:
            with pytest.raises(UserError, match="a batch of 1"):
                preflight.require_batches(settings)


# ---- Labels ----


def with_labels(train, query):
    """A split of the digits with other labels: multi-hot rows of the database and of the queries."""
    split = load_data("digits", "unused", Options(num_query=20, image_size=8))
    for half, rows in ((split.database, train), (split.query, query)):
        half.rows, half.labels = half.rows[: len(rows)], torch.tensor(rows, dtype=torch.float32)
    return split


def test_one_class_is_refused(tmp_path, capsys):
    for number in range(12):
        save_photo(tmp_path / "photos" / "cat" / f"{number}.png", number)
    for train in ([[1, 0], [1, 0]], [[0, 1], [0, 0]]):
        with pytest.raises(UserError, match="--dataset digits: the training images have 1 class, so"):
            preflight.require_two_classes(with_labels(train, [[1, 0]]))
    flags = ["--dataset", "folder", "--root", str(tmp_path / "photos"), "--weights", "none"]
    assert run.main([*flags, "--logs", str(tmp_path / "l")]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1] == (
        "run.py: --dataset folder: the training images have 1 class, so there is nothing to tell apart; give images "
        "of two classes or more."
    )
    assert not list((tmp_path / "l").glob("*"))


@pytest.mark.parametrize(
    ("train", "query", "messages"),
    [
        ([[1, 0], [1, 0], [0, 1]], [[1, 0], [0, 1]], []),
        ([[1, 0], [1, 1], [0, 1]], [[1, 0], [0, 1]], []),
        ([[1, 1], [1, 0], [1, 1]], [[0, 1]], ["Every two training images share a label: the codes can learn nothing"]),
        ([[1, 0], [0, 1]], [[1, 0]], ["No two training images share a label: the codes can learn nothing"]),
        (
            [[1, 1, 0], [1, 1, 0], [1, 0, 0]],
            [[1, 0, 0], [1, 1, 0]],
            ["Every two", "Every query shares a label with every database image: every mAP will be 1"],
        ),
        (
            [[1, 0, 0], [1, 0, 0], [0, 1, 0]],
            [[0, 0, 1], [0, 0, 0]],
            ["No query shares a label with any database image: every mAP will be 0"],
        ),
    ],
)
def test_labels_that_say_nothing_are_reported(train, query, messages, caplog):
    preflight.require_two_classes(with_labels(train, query))
    assert len(caplog.messages) == len(messages)
    assert all(text.startswith(start) for text, start in zip(caplog.messages, messages, strict=True))
