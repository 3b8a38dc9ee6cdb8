"""Many images encoded in parts, by one or several processes: kills, continuing, merging (docs/encode.md)."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import search.encode
import search.encode_job
from search.__main__ import main
from search.code_file import write_codes
from search.encode import find_images
from search.encode_command import which_share
from search.encode_job import Job, encode_share, merge, require_own_parts, share_of
from search.model import load_model
from tests.image_trees import save_photo
from tests.search.encode_small import make_run, start, use_small_parts
from utils.errors import UserError
from utils.files import locked

ROOT = Path(__file__).parent.parent.parent
IMAGES, PART, PARTS = 150, 32, 5


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A run, 150 photos, four of them damaged, and single.npz, their codes at once; then parts have 32 names."""
    make_run(tmp_path / "run")
    for index in range(IMAGES):
        save_photo(tmp_path / "photos" / f"{index % 7}" / f"Bild {index}.png", index, 20, 24)
    for name in ("0/Bild 0.png", "0/Bild 7.png", "0/Bild 105.png", "6/Bild 146.png"):
        (tmp_path / "photos" / name).write_bytes(b"damaged")
    use_small_parts(monkeypatch, 4096)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the programs that are started have
    assert run(tmp_path, output="single.npz") == 0
    assert not (tmp_path / "single.npz.parts").exists()
    use_small_parts(monkeypatch, PART)
    yield tmp_path
    torch.set_num_threads(threads)


def command_line(place, *arguments, output="codes.npz"):
    return [*map(str, (place / "run", place / "photos", "-o", place / output, "--device", "cpu", *arguments))]


def run(place, *arguments, output="codes.npz"):
    return main(["encode", *command_line(place, *arguments, output=output)])


def job_of(place, seen=slice(None)):
    return Job(load_model(place / "run"), find_images([str(place / "photos")])[seen], place / "codes.npz")


def encode_all(job, shard=0, shards=1):
    """The number of parts that were encoded."""
    before = len(job.missing())
    encode_share(job, shard, shards)
    return before - len(job.missing())


def wait_for_parts(place, count, *processes):
    deadline = time.monotonic() + 60
    while len(parts_of(place)) < count and time.monotonic() < deadline:
        assert all(process.is_alive() for process in processes)
        time.sleep(0.01)


def parts_of(place):
    """{part's file: time of its last change}"""
    return {path: path.stat().st_mtime_ns for path in (place / "codes.npz.parts").glob("[0-9]*.npz")}


def assert_as_single(place):
    assert (place / "codes.npz").read_bytes() == (place / "single.npz").read_bytes()
    assert not (place / "codes.npz.parts").exists()


def test_shares_are_contiguous_and_whole():
    for parts in (0, 1, 5, 1000):
        for shards in (1, 2, 3, 7):
            shares = [share_of(parts, shard, shards) for shard in range(shards)]
            assert [part for share in shares for part in share] == list(range(parts))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_part_is_whole_blocks():
    assert search.encode_job.PART % search.encode.CPU_ROWS == 0


def test_torchrun(place):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--", "-m", "tests.search.encode_small", *command_line(place)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"146 images in 12 bits, 4 skipped: written to {place / 'codes.npz'}\n"
    assert done.stderr.count("skipped (") == 4
    assert_as_single(place)


def test_shards_by_hand(place, capsys):
    capsys.readouterr()
    assert run(place, "--shard", "2/3") == 0
    assert capsys.readouterr().out == f"{place / 'codes.npz'}.parts: 3 of 5 parts are still missing.\n"
    assert run(place, "--shard", "0/3") == 0
    assert run(place, "--merge") == 2
    assert "2 of 5 parts are missing" in capsys.readouterr().err
    assert not (place / "codes.npz").exists()
    assert run(place, "--shard", "1/3") == 0
    assert capsys.readouterr().out.endswith(f"146 images in 12 bits, 4 skipped: written to {place / 'codes.npz'}\n")
    assert_as_single(place)
    before = (place / "codes.npz").stat().st_mtime_ns
    for late in (("--shard", "1/3"), ("--merge",)):  # another process has ended the job
        assert run(place, *late) == 0
        assert "delete it to encode again" in capsys.readouterr().out
    assert (place / "codes.npz").stat().st_mtime_ns == before
    assert not (place / "codes.npz.parts").exists()


def test_parts_copied_to_one_folder_are_merged(place, capsys):
    """Machines without a common folder: each has its own parts, which somebody copies to one place."""
    first = job_of(place)
    assert encode_all(first, 0, 2) == 2
    first.folder.rename(place / "elsewhere")
    assert encode_all(first, 1, 2) == 3
    for path in (place / "elsewhere").iterdir():
        path.rename(first.folder / path.name)
    capsys.readouterr()
    assert run(place, "--merge") == 0
    assert "146 images in 12 bits, 4 skipped" in capsys.readouterr().out
    assert_as_single(place)


def test_a_killed_job_continues(place, capsys, monkeypatch):
    """Two processes are killed once two parts are there; the next start, of one process, hashes only the rest."""
    processes = [
        start(command_line(place, "--shard", f"{shard}/2", "--num-workers", 1), place / "output", 0.02)
        for shard in range(2)
    ]
    wait_for_parts(place, 2, *processes)
    for process in processes:
        process.kill()
        process.join()
    done = parts_of(place)
    assert 2 <= len(done) < PARTS
    (place / "codes.npz.parts" / f".{next(iter(done)).name}.half").write_bytes(b"of a killed process")
    job, hashed = job_of(place), []
    unfinished = [name for number in job.missing() for name in job.names_of(number)]
    prepare = search.encode.prepare_image
    monkeypatch.setattr(search.encode, "prepare_image", lambda path, *rest: hashed.append(path) or prepare(path, *rest))
    kept = {}
    merging = search.encode_job.merge
    monkeypatch.setattr("search.encode_job.merge", lambda job: kept.update(parts_of(place)) or merging(job))
    capsys.readouterr()
    assert run(place) == 0
    assert sorted(hashed) == sorted(unfinished) and len(hashed) < IMAGES
    assert {path: kept[path] for path in done} == done and len(kept) == PARTS
    assert "146 images in 12 bits, 4 skipped" in capsys.readouterr().out
    assert_as_single(place)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_says_what_is_kept(number, status, place, capsys, monkeypatch):
    last = find_images([str(place / "photos")])[100]
    with monkeypatch.context() as patches:
        prepare = search.encode.prepare_image

        def stop(path, *arguments):
            if path == last:
                os.kill(os.getpid(), number)
            return prepare(path, *arguments)

        patches.setattr(search.encode, "prepare_image", stop)
        assert run(place, "--num-workers", 1) == status
    message = capsys.readouterr().err.splitlines()[-1]
    assert message == (
        f"python -m search encode: stopped by {signal.Signals(number).name}; finished parts are kept in "
        f"{place / 'codes.npz.parts'}; run the same command again to continue."
    )
    assert len(parts_of(place)) in (2, 3) and not (place / "codes.npz").exists()
    assert run(place) == 0
    assert_as_single(place)


def test_another_number_of_processes_finds_the_parts(place):
    job = job_of(place)
    assert encode_all(job, 0, 2) == 2
    assert encode_all(job, 0, 1) == 3
    assert job.missing() == []


@pytest.mark.parametrize("flags", [[], ["--shard", "0/2"], ["--merge"]])
def test_parts_of_another_job_are_refused(flags, place, capsys):
    encode_all(job_of(place), 0, 2)
    before = parts_of(place)
    make_run(place / "run", seed=1)
    assert run(place, *flags) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "codes.npz.parts: has parts by another model from an unfinished job;" in message
    make_run(place / "run")
    save_photo(place / "photos" / "more.png", 1)
    assert run(place, *flags) == 2
    assert "codes.npz.parts: has parts of other images" in capsys.readouterr().err
    assert parts_of(place) == before and not (place / "codes.npz").exists()


def test_a_job_knows_its_own_parts(place, monkeypatch):
    require_own_parts(job_of(place))  # no folder yet
    encode_all(job_of(place), 0, 5)
    require_own_parts(job_of(place))
    with pytest.raises(UserError, match="of other images"):
        require_own_parts(job_of(place, slice(1, None)))
    monkeypatch.setattr(search.encode_job, "PART", 64)
    with pytest.raises(UserError, match="of other images"):
        require_own_parts(job_of(place))


@pytest.mark.parametrize("how", ["cut short", "another width", "another length", "empty"])
def test_a_damaged_part_is_named(how, place):
    job = job_of(place)
    encode_all(job)
    path = job.part(3)
    with np.load(path) as content:
        codes, readable = content["codes"], content["readable"]
    if how == "cut short":
        path.write_bytes(path.read_bytes()[:100])
    elif how == "another width":
        np.savez(path, codes=codes[:, :1], readable=readable)
    elif how == "another length":
        np.savez(path, codes=codes[:-1], readable=readable[:-1])
    else:
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"000003-.*damaged.*delete it"):
        merge(job)
    assert not job.output.exists() and job.missing() == []
    path.unlink()
    assert encode_all(job) == 1 and merge(job) == (146, 4)
    assert_as_single(place)


def test_files_of_the_user_are_not_removed(place):
    job = job_of(place)
    encode_all(job)
    (job.folder / "mine.npz").write_bytes(b"")
    assert merge(job) == (146, 4)
    assert [path.name for path in job.folder.iterdir()] == ["mine.npz"]
    assert merge(job) is None  # as for a process that comes late


def test_no_image_can_be_read(place, capsys):
    """Nothing is kept: the next start looks at the images again."""
    for path in (place / "photos").rglob("*.png"):
        path.write_bytes(b"damaged")
    assert run(place) == 2
    assert "None of the 150 images could be read; nothing was written." in capsys.readouterr().err
    assert sorted(path.name for path in place.iterdir()) == ["photos", "run", "single.npz"]


def test_an_image_that_occurs_twice(place):
    names = find_images([str(place / "photos")])
    names = [name for name in names[:20] for _ in range(2)] + names
    job = Job(load_model(place / "run"), names, place / "codes.npz")
    encode_all(job)
    assert merge(job) == (len(names) - 4 - 2 * 3, 4 + 2 * 3)
    with np.load(job.output) as content, np.load(place / "single.npz") as single:
        own = dict(zip(single["names"].tolist(), single["codes"].tolist(), strict=True))
        assert content["names"].tolist() == [name for name in names if name in own]
        assert content["codes"].tolist() == [own[name] for name in names if name in own]


def test_the_network_sees_the_blocks_of_the_whole_list(place):
    job, inputs = job_of(place), []
    job.trained.model.register_forward_pre_hook(lambda network, given: inputs.append(given[0].clone()))
    list(search.encode.encode_files(job.trained, job.names, on_bad_image=lambda name, reason: None))
    whole = torch.cat(inputs)
    inputs.clear()
    encode_all(job)
    assert len(inputs) == 10 and torch.equal(torch.cat(inputs), whole)


def test_many_parts_give_the_bytes_of_a_file_written_at_once(place, monkeypatch):
    size, parts = 48, 100
    monkeypatch.setattr(search.encode_job, "PART", size)
    trained = load_model(place / "run")
    names = [f"{'folder/' * 20}{index:07d}.png" for index in range(size * parts)]
    random = np.random.default_rng(1)
    readable = random.random(len(names)) < 0.9
    codes = random.integers(0, 256, (len(names), 2), dtype=np.uint8)
    job = Job(trained, names, place / "codes.npz")
    job.folder.mkdir()
    for number in range(parts):
        rows = slice(number * size, (number + 1) * size)
        np.savez(job.part(number), codes=codes[rows][readable[rows]], readable=readable[rows])
    kept = [name for name, good in zip(names, readable, strict=True) if good]
    with (place / "single.npz").open("wb") as file:
        write_codes(file, kept, codes[readable], trained, job.request)
    assert merge(job) == (len(kept), len(names) - len(kept))
    assert_as_single(place)


def test_of_two_processes_that_merge_one_waits_and_notices(place):
    job = job_of(place)
    encode_all(job)
    lock = place / ".codes.npz.lock"
    results = []
    with locked(lock):
        late = threading.Thread(target=lambda: results.append(merge(job)))
        late.start()
        assert not job.output.exists() and job.missing() == []
        shutil.copy(place / "single.npz", job.output)  # what the process with the lock does
        shutil.rmtree(job.folder)
        lock.unlink()
    late.join(60)
    assert results == [None]
    assert_as_single(place)
    assert not lock.exists()


def test_which_share(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert which_share(None) == (0, 1) and which_share("1/4") == (1, 4)
    for wrong in ("4/4", "a/2", "1", "-1/2", "1/2/3", "0/0", "1/"):
        with pytest.raises(UserError, match="must be I/N"):
            which_share(wrong)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert which_share(None) == (2, 3)
    with pytest.raises(UserError, match="torchrun already divides the images"):
        which_share("0/3")


def test_flags_that_exclude_each_other(place, capsys, monkeypatch):
    assert run(place, "--shard", "0/2", "--merge") == 2
    assert "without --shard" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(place, "--merge") == 2
    assert "in one process" in capsys.readouterr().err
