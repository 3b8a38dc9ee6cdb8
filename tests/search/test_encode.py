"""`python -m search encode` and what it is made of: any images, hashed by a trained run."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import search.encode
import search.model
from data import Options, load_data
from data.data_loader import eval_batches
from modules import AlexNetHash, image_network
from search import code_file
from search.encode import prepare_image
from search.encode_command import find_images, main, without_labels
from search.model import TrainedModel, export_model, fingerprint, load_model
from tests.image_trees import photo, save_photo
from tests.search.encode_small import make_run
from tests.small_networks import SmallImageNet
from training.network_codes import encode
from utils.errors import UserError
from utils.hamming import pack_words

BITS, SIZE = 12, 32


def read(path):
    with np.load(path, allow_pickle=False) as content:
        return {name: content[name] for name in content.files}


def signs(content):
    """±1 [n, K] from a read npz."""
    return np.unpackbits(content["codes"], axis=1, count=int(content["code_length"])).astype(np.int8) * 2 - 1


def alexnet(code_length=32, image_size=64, seed=1):
    torch.manual_seed(seed)
    model = AlexNetHash(code_length, weights=None).eval()
    return TrainedModel(model, code_length, image_size, "folder", {}, "")


# ---- The file ----


def test_codes_are_those_of_the_collection_s_own_evaluation(run_folder, photos, tmp_path, capsys):
    output = tmp_path / "codes.npz"
    assert main([str(run_folder), str(photos), "-o", str(output), "--device", "cpu"]) == 0
    assert "30 images in 12 bits: written to" in capsys.readouterr().out
    content = read(output)
    assert sorted(content) == ["code_length", "codes", "fingerprint", "names", "request", "settings"]
    assert content["codes"].dtype == np.uint8 and content["codes"].shape == (30, 2)
    assert content["names"].dtype.kind == "U" and len(content["names"]) == 30
    assert int(content["code_length"]) == BITS
    settings = json.loads(str(content["settings"]))
    assert settings == {
        "backbone": "alexnet",
        "code_length": BITS,
        "image_size": SIZE,
        "dataset": "folder",
        "method": "main_mmasia",
    }
    split = load_data("folder", photos, Options(image_size=SIZE, cache="off", num_workers=1))
    model = load_model(run_folder)
    assert str(content["fingerprint"]) == model.fingerprint
    own = {}
    for half in (split.query, split.database):
        codes = encode(model.model, half, batch_size=7, device=torch.device("cpu"))
        own |= dict(zip((str(photos / name) for name in half.paths), codes.numpy(), strict=True))
    assert list(content["names"]) == sorted(own)
    assert np.array_equal(signs(content), [own[name] for name in content["names"]])
    assert len(np.unique(content["codes"], axis=0)) > 1  # the small network does tell images apart


def assert_same(image, expected):
    assert torch.equal(torch.from_numpy(image), expected)


def test_an_image_is_prepared_as_the_collection_s_loader_makes_it(photos):
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


def test_the_same_images_give_the_same_bytes(run_folder, photos, tmp_path):
    for name in ("a.npz", "b.npz"):
        assert main([str(run_folder), str(photos), "-o", str(tmp_path / name), "--num-workers", "3"]) == 0
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_bit_order_and_the_sign_of_zero():
    class Given(torch.nn.Module):
        def forward(self, images):
            row = torch.tensor([0.5, -0.5, 0.0, -0.0, -1e-30, 1.0, -1.0, -1.0, -0.1, 0.1])
            return None, row.repeat(len(images), 1)

    images = np.zeros((3, 3, 8, 8), dtype=np.float32)
    packed = search.encode._packed_codes(Given(), images, torch.device("cpu"))
    assert packed.tolist() == [[0b10110100, 0b01000000]] * 3


def test_bits_lie_as_the_evaluation_packs_them(run_folder, photos, tmp_path):
    main([str(run_folder), str(photos), "-o", str(tmp_path / "codes.npz")])
    content = read(tmp_path / "codes.npz")
    (words,) = pack_words(torch.from_numpy(signs(content)))  # 12 bits in a word of two bytes
    assert words.tobytes() == content["codes"].tobytes()


def test_a_network_that_gives_no_number_is_refused():
    class Broken(torch.nn.Module):
        def forward(self, images):
            return None, torch.full((len(images), 4), torch.nan)

    with pytest.raises(UserError, match="not a number"):
        search.encode._packed_codes(Broken(), np.zeros((1, 3, 8, 8), dtype=np.float32), torch.device("cpu"))


def test_the_bytes_do_not_depend_on_the_blocks(run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(code_file, "_BYTES_AT_ONCE", 1000)
    model = load_model(run_folder)
    names = [f"{'folder/' * (number % 5)}{number}.png" for number in range(200)]
    codes = np.random.default_rng(1).integers(0, 256, (200, 2), dtype=np.uint8)
    written = []
    for size in (200, 64, 7):
        starts = range(0, 200 + size, size)  # the last block is empty
        blocks = [names[row : row + size] for row in starts]
        with (tmp_path / "codes.npz").open("wb") as file:
            rows = (codes[row : row + size] for row in starts)
            code_file.write_codes(file, lambda blocks=blocks: blocks, rows, model, "request")
        written.append((tmp_path / "codes.npz").read_bytes())
    assert written[0] == written[1] == written[2]
    content = read(tmp_path / "codes.npz")
    assert list(content["names"]) == names and np.array_equal(content["codes"], codes)


# ---- Which images ----


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


@pytest.mark.parametrize("what", ["empty folder", "missing", "empty list", "blank line"])
def test_no_image_found(what, run_folder, tmp_path, capsys):
    given = tmp_path / {"empty folder": "empty", "missing": "gone.jpg"}.get(what, "list.txt")
    if what == "empty folder":
        given.mkdir()
    elif what != "missing":
        given.write_text("" if what == "empty list" else "a.jpg\n\nb.jpg\n")
    assert main([str(run_folder), str(given), "-o", str(tmp_path / "codes.npz")]) == 2
    message = capsys.readouterr().err
    assert str(given) in message and message.count("\n") == 1
    assert not (tmp_path / "codes.npz").exists()


def test_damaged_images_are_named_and_left_out(run_folder, photos, tmp_path, capsys):
    good = find_images([str(photos)])
    (photos / "Äpfel" / "cut.jpg").write_bytes(Path(good[0]).read_bytes()[:300])
    (photos / "日本" / "text.png").write_text("no image")
    (tmp_path / "more.txt").write_text("gone.png\n")
    output = tmp_path / "codes.npz"
    assert main([str(run_folder), str(photos), str(tmp_path / "more.txt"), "-o", str(output)]) == 0
    captured = capsys.readouterr()
    assert "30 images in 12 bits, 3 skipped: written to" in captured.out
    skipped = [line for line in captured.err.splitlines() if "skipped (" in line]
    assert [line.split(": skipped")[0] for line in skipped] == [
        str(photos / "Äpfel" / "cut.jpg"),
        str(photos / "日本" / "text.png"),
        str(tmp_path / "gone.png"),
    ]
    assert skipped[2].endswith("(missing)")
    assert list(read(output)["names"]) == good
    main([str(run_folder), *good, "-o", str(tmp_path / "good.npz")])
    assert np.array_equal(read(output)["codes"], read(tmp_path / "good.npz")["codes"])


def test_no_image_can_be_read(run_folder, tmp_path, capsys):
    (tmp_path / "bad.png").write_text("no image")
    assert main([str(run_folder), str(tmp_path / "bad.png"), "-o", str(tmp_path / "codes.npz")]) == 2
    assert "None of the 1 images could be read" in capsys.readouterr().err
    assert not (tmp_path / "codes.npz").exists()


def test_a_name_that_is_no_unicode(run_folder, tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    try:
        photo(1).save(name)
    except OSError:
        pytest.skip("this file system has Unicode names only")
    assert main([str(run_folder), str(tmp_path), "-o", str(tmp_path / "codes.npz")]) == 0
    assert list(read(tmp_path / "codes.npz")["names"]) == [name]


# ---- Batches ----


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
        batches = list(search.encode.encode_files(model, paths, batch_size=batch_size))
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


def test_company_moves_an_output_by_roundings_only(tmp_path):
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
        load_model(run_folder), (str(tmp_path / "a.png") for _ in range(10_000)), batch_size=4, num_workers=2
    )
    names, codes = next(batches)
    assert (len(names), codes.shape) == (4, (4, 2))
    batches.close()
    assert 4 <= count <= 4 + 2 * 8 * 2


def test_bad_images_are_logged_where_nobody_asks(run_folder, tmp_path, caplog):
    (tmp_path / "bad.png").write_text("no image")
    assert list(search.encode.encode_files(load_model(run_folder), [str(tmp_path / "bad.png")])) == []
    assert "bad.png cannot be used" in caplog.text


# ---- The model ----


def test_the_code_length_must_be_clear(tmp_path, small, photos, capsys):
    folder = make_run(tmp_path / "run", 12, 24)
    with pytest.raises(UserError, match=r"models of 12, 24 bits; choose one with --code-length"):
        load_model(folder)
    with pytest.raises(UserError, match=r"--code-length 32.*it holds 12, 24 bits"):
        load_model(folder, 32)
    assert load_model(folder, 24).code_length == 24
    assert main([str(folder), str(photos), "--code-length", "24", "-o", str(tmp_path / "codes.npz")]) == 0
    assert read(tmp_path / "codes.npz")["codes"].shape == (30, 3)


def test_loading_draws_no_random_numbers_and_evaluates(run_folder):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model = load_model(run_folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.model.training
    assert all(value.dtype == torch.float32 and not value.is_meta for value in model.model.state_dict().values())
    assert model.settings["dataset"] == "folder" and (model.image_size, model.shorter_side) == (SIZE, 37)


def test_runs_of_before_there_was_a_choice_of_backbone(run_folder):
    config = json.loads((run_folder / "config.json").read_text())
    del config["settings"]["backbone"]
    (run_folder / "config.json").write_text(json.dumps(config))
    assert load_model(run_folder).summary["backbone"] == "alexnet"


def test_another_backbone(tmp_path):
    folder = tmp_path / "run"
    make_run(folder, 8, backbone="resnet18")
    network = image_network("resnet18", 8, weights=None).eval()
    torch.save(network.state_dict(), folder / "model_image-8bits.pt")
    images = torch.randn(2, 3, SIZE, SIZE)
    loaded = load_model(folder)
    with torch.inference_mode():
        assert torch.equal(loaded.model(images)[1], network(images)[1])
    export_model(loaded, tmp_path / "model.pt")  # batch normalisation counts in whole numbers, which stay so
    again = load_model(tmp_path / "model.pt")
    assert again.summary["backbone"] == "resnet18"
    assert again.model.state_dict()["backbone.bn1.num_batches_tracked"].dtype == torch.int64


def spoil(folder: Path, how: str) -> None:
    model = folder / f"model_image-{BITS}bits.pt"
    state = torch.load(model, weights_only=True)
    if how == "no folder":
        (folder / "config.json").unlink()
        model.unlink()
        folder.rmdir()
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "damaged config":
        (folder / "config.json").write_text("{")
    elif how == "no settings":
        (folder / "config.json").write_text("{}")
    elif how == "wrong settings":
        (folder / "config.json").write_text(json.dumps({"settings": {"dataset": "folder", "image_size": "64"}}))
    elif how == "no model":
        model.unlink()
    elif how == "cut short":
        model.write_bytes(model.read_bytes()[:1000])
    elif how == "code":
        torch.save({"hash_layer.0.weight": os.system}, model)
    elif how == "a tensor":
        torch.save(torch.zeros(3), model)
    elif how == "missing entry":
        torch.save({name: value for name, value in state.items() if name != "net.3.bias"}, model)
    elif how == "further entry":
        torch.save(state | {"classifier.6.bias": torch.zeros(2)}, model)
    elif how == "another shape":
        torch.save(SmallImageNet("alexnet", BITS + 1).state_dict(), model)
    elif how == "whole numbers":
        torch.save({name: value.long() for name, value in state.items()}, model)
    elif how == "not finite":
        torch.save(state | {"net.3.bias": state["net.3.bias"] / 0}, model)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no folder", "there is no such folder"),
        ("no config", r"config.json: there is no such file"),
        ("damaged config", "cannot be read as JSON"),
        ("no settings", "holds no settings"),
        ("wrong settings", "image_size '64'"),
        ("no model", r"holds no model_image-\*bits.pt"),
        ("cut short", r"model_image-12bits.pt: damaged"),
        ("code", r"model_image-12bits.pt: damaged"),
        ("a tensor", "holds no state dict"),
        ("missing entry", r"lacks 'net.3.bias' \(1 such\)"),
        ("further entry", "has the unknown entry 'classifier.6.bias'"),
        ("another shape", r"'hash_layer.0.weight' has shape \(13, 24\), not \(12, 24\)"),
        ("whole numbers", "holds numbers of another kind"),
        ("not finite", "not finite"),
    ],
)
def test_a_wrong_model_is_one_sentence(how, message, run_folder, tmp_path, photos, capsys):
    spoil(run_folder, how)
    with pytest.raises(UserError, match=message):
        load_model(run_folder)
    assert main([str(run_folder), str(photos), "-o", str(tmp_path / "codes.npz")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("python -m search encode: ") and captured.err.count("\n") == 1
    assert not (tmp_path / "codes.npz").exists()


def test_the_fingerprint_is_of_the_numbers(run_folder):
    model = load_model(run_folder)
    state = model.model.state_dict()
    assert fingerprint(state) == model.fingerprint and len(model.fingerprint) == 64
    assert fingerprint(dict(reversed(state.items()))) == model.fingerprint
    strided = {name: value.t().contiguous().t() if value.ndim == 2 else value for name, value in state.items()}
    assert fingerprint(strided) == model.fingerprint
    changed = {name: value.clone() for name, value in state.items()}
    changed["net.3.bias"][0] += 1e-6
    assert fingerprint(changed) != model.fingerprint
    renamed = {name.replace("net.3", "net.4"): value for name, value in state.items()}
    assert fingerprint(renamed) != model.fingerprint


# ---- The export ----


def test_an_export_stands_for_the_folder(run_folder, photos, tmp_path, capsys):
    model = tmp_path / "model.pt"
    assert main([str(run_folder), "--export", str(model)]) == 0
    content = torch.load(model, weights_only=True)
    assert content["settings"] == load_model(run_folder).summary
    assert {value.dtype for value in content["state"].values()} == {torch.float16}
    loaded = load_model(model)
    assert {value.dtype for value in loaded.model.state_dict().values()} == {torch.float32}
    for name, value in load_model(run_folder).model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value.half().float())
    assert loaded.summary == load_model(run_folder).summary
    assert main([str(model), str(photos), "-o", str(tmp_path / "half.npz")]) == 0
    assert main([str(run_folder), str(photos), "-o", str(tmp_path / "full.npz")]) == 0
    half, full = read(tmp_path / "half.npz"), read(tmp_path / "full.npz")
    assert np.array_equal(half["names"], full["names"])
    assert (signs(half) != signs(full)).mean() < 0.05
    assert str(half["fingerprint"]) == loaded.fingerprint != str(full["fingerprint"])
    assert main([str(model), "--export", str(tmp_path / "again.pt")]) == 0  # nothing more is lost
    assert load_model(tmp_path / "again.pt").fingerprint == loaded.fingerprint
    with pytest.raises(UserError, match="holds a model of 12 bits"):
        load_model(model, 24)


def test_the_size_of_an_alexnet_s_export():
    with torch.device("meta"):
        state = AlexNetHash(48, weights=None).state_dict()
    assert sum(value.numel() for value in state.values()) * torch.float16.itemsize <= 120e6


def test_a_run_s_model_in_half_precision_runs_in_float32(run_folder, photos):
    path = run_folder / f"model_image-{BITS}bits.pt"
    state = torch.load(path, weights_only=True)
    torch.save({name: value.half() for name, value in state.items()}, path)
    assert {value.dtype for value in load_model(run_folder).model.state_dict().values()} == {torch.float32}


def test_weights_beyond_half_precision(run_folder, tmp_path):
    model = load_model(run_folder)
    model.model.net[3].bias.data[0] = 1e5
    with pytest.raises(UserError, match=r"'net.3.bias' has weights beyond 65,504"):
        export_model(model, tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize("content", [{"a": torch.zeros(1)}, {"format": search.model.EXPORT_FORMAT}, [1, 2]])
def test_another_file_is_no_export(content, tmp_path):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt: "):
        load_model(tmp_path / "other.pt")


# ---- What goes wrong ----


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "0"], "--batch-size 0"),
        (["--num-workers", "-1"], "--num-workers -1"),
        (["--code-length", "0"], "--code-length 0"),
        (["--device", "tpu"], "--device tpu"),
        (["--export", "model.pt"], "--export model.pt"),
        (["-o", "gone/codes.npz"], "there is no folder gone"),
        (["-o", "."], "is a folder"),
    ],
)
def test_bad_flags(flags, message, run_folder, photos, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([str(run_folder), str(photos), *flags]) == 2
    captured = capsys.readouterr().err
    assert message in captured and captured.count("\n") == 1


def test_options_may_stand_anywhere(run_folder, photos, tmp_path):
    one, two = find_images([str(photos)])[:2]
    output = str(tmp_path / "codes.npz")
    for line in (
        [str(run_folder), "-o", output, one, two],
        [str(run_folder), one, "-o", output, "--device", "cpu", two],
        ["--device", "cpu", str(run_folder), one, "-o", output, "--", two],
    ):
        assert main(line) == 0
        assert list(read(output)["names"]) == [one, two]
        Path(output).unlink()


def test_no_images_given(run_folder, capsys):
    assert main([str(run_folder)]) == 2
    assert "no images given" in capsys.readouterr().err


@pytest.mark.parametrize("export", [False, True])
def test_a_full_disk(export, run_folder, photos, tmp_path, capsys):
    """Files may have 100 bytes: the write fails midway, and what stood there stands."""
    output = tmp_path / "out"
    output.write_bytes(b"before")
    listing = sorted(os.listdir(tmp_path))
    command = ["--export", str(output)] if export else [str(photos), "-o", str(output)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        status = main([str(run_folder), *command])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 2
    message = capsys.readouterr().err
    assert "could not be written" in message and "--logs" not in message and message.count("\n") == 1
    assert output.read_bytes() == b"before"
    assert sorted(os.listdir(tmp_path)) == listing


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped(number, status, run_folder, photos, tmp_path, capsys, monkeypatch):
    prepared = search.encode.prepare_image

    def stop(*arguments):
        os.kill(os.getpid(), number)
        return prepared(*arguments)

    monkeypatch.setattr(search.encode, "prepare_image", stop)
    before, handler = sorted(os.listdir(tmp_path)), signal.getsignal(signal.SIGTERM)
    assert main([str(run_folder), str(photos), "-o", str(tmp_path / "codes.npz"), "--num-workers", "1"]) == status
    assert f"stopped by {signal.Signals(number).name}; nothing was written" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == before
    assert signal.getsignal(signal.SIGTERM) == handler


def test_as_a_program(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "search", "encode", str(tmp_path / "gone"), str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.startswith("python -m search encode: ") and result.stderr.count("\n") == 1
