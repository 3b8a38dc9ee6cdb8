"""Images as the network sees them, and codes that depend on nothing else."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import search.encode
from data import Options, load_data
from data.data_loader import eval_batches
from dataset import export_digits
from modules import AlexNetHash
from search.encode import Encoding, find_images, packed_codes, prepare_image, without_labels
from search.model import TrainedModel, load_model
from tests.image_trees import photo, save_photo
from tests.search.encode_small import SIZE, make_run
from tests.search.small_index import files_below
from utils.errors import UserError


def alexnet(code_length=32, image_size=64, seed=1):
    torch.manual_seed(seed)
    model = AlexNetHash(code_length, weights=None).eval()
    return TrainedModel(model, code_length, image_size, "folder", {}, "")


def assert_same(image, expected):
    assert torch.equal(torch.from_numpy(image), expected)


def test_an_image_is_prepared_as_by_the_loader_of_a_dataset(photos):
    save_photo(photos / "Äpfel" / "tall.png", 5, 40, 90)
    rotated = photo(6, 90, 40)
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated.save(photos / "Äpfel" / "turned.jpg", exif=exif)
    photo(7).convert("CMYK").save(photos / "Äpfel" / "cmyk.tif")
    split = load_data("folder", photos, Options(image_size=SIZE, cache="off", num_workers=1))
    seen = 0
    for half in (split.query, split.database):
        images = torch.cat([images for images, _, _ in eval_batches(half, batch_size=8)])
        for name, image in zip(half.paths, images, strict=True):
            assert_same(prepare_image(photos / name, SIZE, half.shorter_side), image)
            seen += 1
    assert seen == 33


def test_digits_are_seen_whole(tmp_path, small):
    split = load_data("digits", tmp_path, Options(image_size=SIZE))
    model = load_model(make_run(tmp_path / "run", dataset="digits"))
    assert model.shorter_side == split.query.shorter_side == SIZE
    pixels = split.query.pixels([3])[0]
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / "digit.png")
    assert_same(prepare_image(tmp_path / "digit.png", SIZE, SIZE), split.query[3][0])


def test_bit_order_and_the_sign_of_zero():
    class Given(torch.nn.Module):
        def forward(self, images):
            row = torch.tensor([0.5, -0.5, 0.0, -0.0, -1e-30, 1.0, -1.0, -1.0, -0.1, 0.1])
            return None, row.repeat(len(images), 1)

    images = np.zeros((3, 3, 8, 8), dtype=np.float32)
    packed = packed_codes(Given(), images, torch.device("cpu"))
    assert packed.tolist() == [[0b10110100, 0b01000000]] * 3


def test_a_network_that_gives_no_number_is_refused():
    class Broken(torch.nn.Module):
        def forward(self, images):
            return None, torch.full((len(images), 4), torch.nan)

    with pytest.raises(UserError, match="not a number"):
        packed_codes(Broken(), np.zeros((1, 3, 8, 8), dtype=np.float32), torch.device("cpu"))


def test_files_folders_and_lists(tmp_path):
    save_photo(tmp_path / "one" / "deep" / "er" / "日本 ü.png", 1)
    save_photo(tmp_path / "one" / "b.JPG", 2)
    save_photo(tmp_path / "one" / "a.webp", 3)
    (tmp_path / "one" / "notes.md").write_text("no image")
    (tmp_path / "one" / ".hidden.png").write_bytes(b"")
    lines = [
        "one\\b.JPG",
        "one/deep/er/日本 ü.png  ",
        str(tmp_path / "one" / "a.webp"),
        "one/b.JPG 0 1 0",
        "gone.png 4",
    ]
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n\r\n")
    one = str(tmp_path / "one")
    below = [f"{one}/a.webp", f"{one}/b.JPG", f"{one}/deep/er/日本 ü.png"]
    assert find_images([one]) == below
    assert find_images([f"{one}/b.JPG", one, f"{one}/b.JPG"]) == [below[1], *below, below[1]]
    assert find_images([str(tmp_path / "list.txt")]) == [
        below[1], below[2], below[0], below[1], str(tmp_path / "gone.png")
    ]  # fmt: skip


def test_a_list_beside_the_command_keeps_its_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("a.png\nb c.png\n")
    assert find_images(["list.txt"]) == ["a.png", "b c.png"]


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("a.jpg 0 1 0", "a.jpg"),
        ("a b.jpg\t3", "a b.jpg"),
        ("photo 1.jpg", "photo 1.jpg"),
        ("scan 12", "scan 12"),  # nothing says that the number is a label
        ("a.jpg x 1", "a.jpg x 1"),
        ("7.png", "7.png"),
    ],
)
def test_label_columns(line, name):
    assert without_labels(line) == name


def centre(model, paths):
    """Shift a random network's hash layer so that each bit is near 0, +1 for some images and -1 for others."""
    images = np.stack([prepare_image(path, model.image_size, model.shorter_side) for path in paths])
    with torch.inference_mode():
        features = model.model(torch.from_numpy(images))[0].mean(0)
        layer = model.model.hash_layer[0]
        layer.bias.copy_(-layer.weight @ features)


def test_codes_do_not_depend_on_the_batch_size(tmp_path, monkeypatch):
    """The real AlexNet on a CPU; the rows of the network's input are always the same, so are its roundings."""
    monkeypatch.setattr(search.encode, "CPU_ROWS", 16)  # as 64 do, in a quarter of the time
    paths = [str(tmp_path / f"{number}.png") for number in range(37)]
    for number, path in enumerate(paths):
        photo(number).save(path)
    model = alexnet()
    centre(model, paths)
    outputs: list[torch.Tensor] = []
    model.model.register_forward_hook(lambda network, inputs, output: outputs.append(output[1].clone()))
    results, continuous = {}, {}
    for batch_size in (1, 2, 7, 37, 64):
        batches = list(search.encode.encode_files(model, paths, Encoding(batch_size)))
        assert [len(names) for names, _ in batches[:-1]] == [batch_size] * (len(batches) - 1)
        assert all(len(names) == len(codes) <= batch_size for names, codes in batches)
        assert [name for names, _ in batches for name in names] == paths
        results[batch_size] = np.concatenate([codes for _, codes in batches])
        assert {len(rows) for rows in outputs} == {16}
        continuous[batch_size] = torch.cat(outputs)[:37]
        outputs.clear()
    assert all(np.array_equal(codes, results[1]) for codes in results.values())
    assert all(torch.equal(rows, continuous[1]) for rows in continuous.values())
    assert results[1].shape == (37, 4) and len(np.unique(results[1], axis=0)) > 30


def test_other_images_in_the_batch_change_an_output_by_rounding_only(tmp_path):
    """An image alone, and among others at any place: what sharding or a skipped image may change."""
    model = alexnet().model
    images = np.stack([prepare(number) for number in range(8)])

    def outputs(rows):
        with torch.inference_mode():
            return model(torch.from_numpy(images[rows]))[1].numpy()

    together = outputs(np.arange(8))
    moved = outputs(np.roll(np.arange(8), 3))
    alone = np.concatenate([outputs([row]) for row in range(8)])
    assert np.abs(np.roll(moved, -3, axis=0) - together).max() < 1e-6
    assert np.abs(alone - together).max() < 1e-6
    assert np.abs(together).max() > 1e-3


def prepare(number):
    return np.random.default_rng(number).normal(size=(3, 64, 64)).astype(np.float32)


def test_a_damaged_image_keeps_its_place(tmp_path, small, monkeypatch):
    """Blocks are cut at places of the list: the network sees the others where it would see them anyway."""
    monkeypatch.setattr(search.encode, "CPU_ROWS", 4)
    paths = [str(tmp_path / f"{number}.png") for number in range(13)]
    for number, path in enumerate(paths):
        photo(number).save(path)
    model = load_model(make_run(tmp_path / "run"))
    inputs: list[torch.Tensor] = []
    model.model.register_forward_pre_hook(lambda network, given: inputs.append(given[0].clone()))
    list(search.encode.encode_files(model, paths))
    whole, damaged = torch.cat(inputs), [0, 3, 4, 5, 6, 7, 10]
    inputs.clear()
    for number in damaged:
        Path(paths[number]).write_text("no image")
    heard: list[str] = []
    batches = search.encode.encode_files(model, paths, on_bad_image=lambda name, reason: heard.append(name))
    names = [name for names, _ in batches for name in names]
    assert heard == [paths[number] for number in damaged]
    assert names == [path for path in paths if path not in heard]
    whole[damaged] = 0
    assert torch.equal(torch.cat(inputs), torch.cat((whole[:4], whole[8:])))  # of the second block none is left


def test_few_images_are_read_ahead(run_folder, tmp_path, monkeypatch):
    """A consumer that stops after the first batch has not caused the whole list to be read."""
    save_photo(tmp_path / "a.png", 1)
    count, lock = 0, threading.Lock()
    prepared = search.encode.prepare_image

    def counting(*arguments):
        nonlocal count
        with lock:
            count += 1
        return prepared(*arguments)

    monkeypatch.setattr(search.encode, "prepare_image", counting)
    monkeypatch.setattr(search.encode, "CPU_ROWS", 4)
    batches = search.encode.encode_files(
        load_model(run_folder), (str(tmp_path / "a.png") for _ in range(10_000)), Encoding(4, num_workers=2)
    )
    names, codes = next(batches)
    assert (len(names), codes.shape) == (4, (4, 2))
    batches.close()
    assert 4 <= count <= 4 + 2 * 8 * 2


def test_bad_images_are_named_on_stderr_by_default(run_folder, tmp_path, capsys):
    (tmp_path / "bad.png").write_text("no image")
    assert list(search.encode.encode_files(load_model(run_folder), [str(tmp_path / "bad.png")])) == []
    assert "bad.png: skipped (" in capsys.readouterr().err


def test_exported_digits_are_what_a_run_sees(tmp_path, capsys):
    assert export_digits.main([str(tmp_path / "all")]) == 0
    assert "1,797 images of 10 classes" in capsys.readouterr().out
    split = load_data("digits", tmp_path, Options(seed=5))
    halves = {}
    for part, half in (("query", split.query), ("database", split.database)):
        assert export_digits.main([str(tmp_path / part), "--part", part, "--seed", "5"]) == 0
        halves[part] = {path.relative_to(tmp_path / part) for path in (tmp_path / part).rglob("*.png")}
        for place in (0, 7, len(half) - 1):
            label = int(half.labels[place].argmax())
            path = tmp_path / "all" / str(label) / f"{half.rows[place]:04d}.png"
            assert path.relative_to(tmp_path / "all") in halves[part]
            assert torch.equal(torch.from_numpy(prepare_image(path, 64, 64)), half[place][0])
    assert len(halves["query"]) == 300 and len(halves["database"]) == 1497
    assert halves["query"] | halves["database"] == set(files_below(tmp_path / "all"))
    (tmp_path / "file").write_text("")
    assert export_digits.main([str(tmp_path / "file")]) == 2
    assert "cannot be written to" in capsys.readouterr().err
