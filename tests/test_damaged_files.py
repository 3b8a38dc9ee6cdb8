"""Damaged files: whatever has happened to a file, a reader returns its content or raises one of our error messages.

Each kind of file is damaged `MUTATIONS` times, half of them in its bytes and half in its content, where it has the
right format with the wrong things in it.
"""

import copy
import csv
import io
import json
import random

import numpy as np
import pandas as pd
import pytest
import torch

import main_mmasia
import run
from data import Options, load_data
from data.image_files import find_files
from data.list_files import read_labels
from data.name_lists import read_names
from data.pixel_cache import open_cache
from data.pixels import ImageFiles
from modules import trained
from modules.pretrained import read_state
from modules.trained import load_network
from reports import tables
from reports.code_files import find_code_sets
from reports.evaluate import evaluate_set
from reports.figures import group_runs, load_run, metrics_by_length
from search.model import Model
from tests import image_trees as trees
from tests.search.tiny_model import write_tiny_model
from tests.small_networks import SmallImageNet, constructors, shrink
from training.checkpoint import Checkpoint
from training.command_line import parse_command
from training.progress import result_table
from training.recorder import Recorder
from training.run_folder import RunFolder
from utils.errors import UserError
from utils.files import load_tensors, save_tensors
from utils.runs import read_failure, read_metrics, read_results

MUTATIONS = 100
FLAGS = ["--dataset", "digits", "--image-size", "16", "--num-samples", "60", "--max-epoch", "1", "--max-iter", "2"]
FLAGS += ["--validate", "50", "--code-length", "8", "--save-iter", "1", "--num-query", "30"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run of a small network."""
    logs = tmp_path_factory.mktemp("logs")
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch, main_mmasia)
        assert run.main([*FLAGS, "--logs", str(logs)]) == 0
    (found,) = logs.iterdir()
    (found / "failed.json").write_text(json.dumps({"message": "A", "time": "B", "traceback": "C"}))
    return found


# ---- Damage ----


def damaged_bytes(content, chance):
    """One accident of a disk or a copy."""
    data, place = bytearray(content), chance.randrange(len(content))
    end = min(len(data), place + chance.choice([1, 4, 64, 1000]))
    accident = chance.randrange(5)
    if accident == 0:
        data[place] ^= 1 << chance.randrange(8)
    elif accident == 1:
        del data[place:]
    elif accident == 2:
        del data[place:end]
    elif accident == 3:
        data[place:end] = bytes(end - place)
    else:
        data[place:place] = chance.randbytes(end - place)
    return bytes(data)


WRONG = [None, True, -1, 0, 2.5, 10**30, 10**400, float("nan"), float("inf"), "", "x", "\0", [], [[]], {}, {"a": 1}]


def damaged_content(content, chance, wrong):
    """A copy of nested dictionaries and lists in which one entry is replaced by one of `wrong`, or is missing."""
    content = copy.deepcopy(content)
    places = list(inside(content))
    holder, key = chance.choice([(None, None), *places])
    if holder is None:
        return chance.choice(wrong)
    if chance.random() < 0.25:
        del holder[key]
    else:
        holder[key] = chance.choice(wrong)
    return content


def inside(content):
    """(container, key) of every entry, at any depth."""
    keys = list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else []
    for key in keys:
        yield content, key
        yield from inside(content[key])


def wrong_tensors():
    """What no reader expects."""
    return [
        *(value for value in WRONG if value != 10**400),  # torch.save takes no larger integers
        torch.eye(4).to_sparse(),
        torch.eye(4).to_sparse_csr(),
        torch.zeros(0),
        torch.zeros(3, 2, dtype=torch.int8),
        torch.zeros(1, dtype=torch.complex64),
        torch.full((30, 8), float("nan")),
        torch.zeros(1).expand(10**9),
        torch.quantize_per_tensor(torch.zeros(4), 0.1, 0, torch.qint8),
        torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        np.zeros(3),
    ]


def check(path, read, write=None, content=None, wrong=WRONG):
    """Damage the file at `path`, in its bytes and by `write(path, damaged content)`, and `read()` it each time.

    Returns how often it was refused.
    """
    whole, chance, refused = path.read_bytes(), random.Random(path.name), 0
    read()
    try:
        for number in range(MUTATIONS):
            if write is None or number % 2:
                path.write_bytes(damaged_bytes(whole, chance))
            else:
                write(path, damaged_content(content, chance, wrong))
            try:
                read()
            except UserError as error:
                refused += 1
                assert "\n" not in str(error).strip() and len(str(error)) < 1500, str(error)
    finally:
        path.write_bytes(whole)
    read()
    return refused


def write_json(path, content):
    path.write_text(json.dumps(content))


# ---- JSON and CSV ----


def reports_of(folder):
    tables.wide_tables(tables.as_runs(tables.collect([folder])))
    tables.curves([folder])
    group_runs([load_run(folder)])
    metrics_by_length(folder)


def test_the_json_files_of_a_run(folder, monkeypatch):
    monkeypatch.setattr(trained, "image_network", SmallImageNet)

    def read():
        reports_of(folder)
        parse_command(["--resume", str(folder)], method_name="main_mmasia")
        load_network(folder)

    path = folder / "config.json"
    assert check(path, read, write_json, json.loads(path.read_text())) > MUTATIONS / 4
    path = folder / "results.json"

    def read_rows():
        result_table(read_results(folder))
        reports_of(folder)

    assert check(path, read_rows, write_json, json.loads(path.read_text())) > MUTATIONS / 4
    path = folder / "failed.json"
    check(path, lambda: read_failure(folder), write_json, json.loads(path.read_text()))


def test_the_log_of_a_run(folder):
    path = folder / "metrics.jsonl"

    def write(path, rows):
        rows = rows if isinstance(rows, list) else [rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    check(path, lambda: reports_of(folder), write, read_metrics(folder))


def test_the_csv_files(folder, tmp_path):
    path, curves = tmp_path / "runs.csv", tmp_path / "curves.csv"
    tables.collect([folder]).to_csv(path, index=False)
    found = tables.curves([folder])
    found.to_csv(curves, index=False)

    def write(path, rows):
        rows = [row if isinstance(row, dict) else {"0": row} for row in (rows if isinstance(rows, list) else [rows])]
        with path.open("w", encoding="utf-8", newline="") as file:  # pandas cannot write every number of Python
            writer = csv.DictWriter(file, list(dict.fromkeys(field for row in rows for field in row)))
            writer.writeheader()
            writer.writerows(rows)

    rows = pd.read_csv(path, dtype=str).to_dict("records")
    check(path, lambda: tables.wide_tables(tables.as_runs(tables.collect([path]))), write, rows)
    rows = pd.read_csv(curves, dtype=str).to_dict("records")
    check(curves, lambda: tables.add_curves(curves, found), write, rows)


# ---- Tensors ----


def tensors_of(path):
    return torch.load(path, weights_only=True)


def save_old(path, content):
    """As older versions and other projects save: without a checksum."""
    try:
        torch.save(content, path)
    except RuntimeError:  # what torch cannot save
        path.write_bytes(b"")


def test_checkpoints(folder):
    settings = parse_command(["--resume", str(folder)], method_name="main_mmasia").settings
    split = load_data("digits", "", Options(seed=0, image_size=16, num_query=30))
    split.validation = split.query
    build = constructors()
    image, label = build["image_network"]("", 8), build["MLP"](10, 8)
    cycle = build["CycleNet"](8, image_dim=24)
    (path,) = folder.glob("checkpoint-8bits-000002.pt")
    newest = tensors_of(path)

    def read():
        folder_of_run = RunFolder(settings, torch.device("cpu"), folder)
        folder_of_run.data = newest["data"]
        optimizer = torch.optim.Adam([*image.parameters(), *label.parameters(), *cycle.parameters()], fused=True)
        parts = {"model_image": image, "model_label": label, "model_cycle": cycle, "optimizer": optimizer}
        recorder = Recorder(folder_of_run, 8, split, image)
        Checkpoint(folder_of_run, 8, torch.zeros(*newest["codes"].shape), **parts, report=recorder).restore()
        optimizer.step()

    state = torch.get_rng_state()
    assert check(path, read, save_old, newest, wrong_tensors()) > MUTATIONS / 2
    torch.set_rng_state(state)


def test_code_files(folder):
    (code_set,) = find_code_sets([folder])
    for path, _ in code_set.files.values():
        assert check(path, lambda: evaluate_set(code_set, topk=None), save_old, {"": tensors_of(path)}, wrong_tensors())


def test_models_exports_and_weights(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(trained, "image_network", SmallImageNet)
    path = folder / "model_image-8bits.pt"
    assert check(path, lambda: load_network(folder), save_old, tensors_of(path), wrong_tensors()) > MUTATIONS / 2
    check(path, lambda: read_state(path), save_old, tensors_of(path), wrong_tensors())
    path = write_tiny_model(tmp_path / "model.onnx")
    assert check(path, lambda: Model.load(path).codes(np.zeros((1, 32, 32, 3), np.uint8))) > 0.9 * MUTATIONS


def test_a_single_flipped_bit_is_noticed(tmp_path):
    path, chance = tmp_path / "a.pt", random.Random(0)
    save_tensors(path, {"a": torch.arange(100.0)})
    whole = path.read_bytes()
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.arange(100.0))
    assert torch.equal(torch.load(path, weights_only=True, mmap=True)["a"], torch.arange(100.0))
    places = [*range(50), *range(len(whole) - 110, len(whole)), *chance.sample(range(len(whole)), 100)]
    for place in places:
        data = bytearray(whole)
        data[place] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"a\.pt: damaged, or not a model saved by torch\.save \("):
            load_tensors(path, "a model")


def test_a_flipped_bit_in_the_numbers_of_an_older_file_is_noticed(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"a": torch.full((100,), 1.5)}, path)
    whole = bytearray(path.read_bytes())
    whole[whole.index(b"\0\0\xc0\x3f" * 100) + 42] ^= 1
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"its part a/data/0 has changed: its CRC-32 differs"):
        load_tensors(path, "a model")


# ---- Lists and caches ----


def test_lists(tmp_path):
    names, labels = tmp_path / "names.txt", tmp_path / "labels.txt"
    names.write_text("".join(f"photos/{number}.jpg\n" for number in range(50)))
    labels.write_text("0 1 0 1 1 0 0\n1 0 0 0 0 0 1\n" * 25)
    check(names, lambda: read_names(names))
    check(labels, lambda: read_labels(labels))


def test_the_cache_of_pixels(tmp_path):
    for number in range(4):
        trees.save_photo(tmp_path / f"{number}.png", number, 9, 8)
    files = ImageFiles(tmp_path, [f"{number}.png" for number in range(4)], 8)
    path, stats = tmp_path / "a.pixels", find_files(tmp_path, files.names, 1)

    def read():
        pixels = open_cache(path, files, stats, 1)
        return [pixels.image(row) for row in range(4)]

    expected = read()
    whole, chance = path.read_bytes(), random.Random(0)
    behind = whole.index(b"PK")  # the pixels before it have no checksum
    for _ in range(MUTATIONS):
        path.write_bytes(whole[:behind] + damaged_bytes(whole[behind:], chance))
        assert all(map(torch.equal, read(), expected))


def test_what_is_not_a_file_of_torch_says_what_it_is(tmp_path):
    path = tmp_path / "a.t"
    buffer = io.BytesIO()
    torch.save(torch.zeros(50), buffer)
    torch.save(np.zeros(3), path)
    cases = [
        (path.read_bytes(), "it holds NumPy arrays; save torch.from_numpy(array)"),
        (b"", "it is empty"),
        (buffer.getvalue()[:300], "it is cut short, or its end has changed"),
        (b"no tensors", "its content is not that of torch.save"),
    ]
    for content, reason in cases:
        path.write_bytes(content)
        with pytest.raises(UserError) as refusal:
            load_tensors(path, "a tensor")
        assert str(refusal.value) == f"{path}: damaged, or not a tensor saved by torch.save ({reason})."
    torch.save(torch.eye(3).to_sparse(), path)
    with pytest.raises(UserError, match=r"it holds a tensor of the layout sparse_coo; save dense ones"):
        load_tensors(path, "a tensor")
