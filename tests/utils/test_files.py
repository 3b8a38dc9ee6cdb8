"""Files: read safely, written whole or not at all, locked."""

import errno
import os
import pickle
import threading
from pathlib import Path

import pytest
import torch

from utils.errors import UserError
from utils.files import Locked, load_tensors, locked, read_json, require_place, save_tensors, write_file, write_json


def test_json_round_trip_and_what_is_refused(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": [1, None]})
    assert read_json(path, dict) == {"a": [1, None]} and path.read_text().endswith("\n")
    with pytest.raises(UserError, match=r"a\.json: not the file of a run"):
        read_json(path, list)
    path.write_text("{")
    with pytest.raises(UserError, match=r"a\.json: cannot be read as JSON"):
        read_json(path, dict)
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"a\.json: cannot be read as JSON"):
        read_json(path, dict)
    with pytest.raises(UserError, match=r"b\.json: there is no such file"):
        read_json(tmp_path / "b.json", dict)


class Payload:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_tensors_and_nothing_that_could_run_code(tmp_path, capsys):
    path = tmp_path / "a.pt"
    torch.save({"a": torch.ones(2)}, path)
    assert torch.equal(load_tensors(path, "a model")["a"], torch.ones(2))
    for content in (b"", b"x" * 100, pickle.dumps(Payload())):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.pt: damaged, or not a model saved by torch\.save"):
            load_tensors(path, "a model")
    torch.save({"a": Payload()}, path)
    with pytest.raises(UserError, match="damaged, or not a model"):
        load_tensors(path, "a model")
    with pytest.raises(UserError, match="there is no such file"):
        load_tensors(tmp_path / "none.pt", "a model")
    assert capsys.readouterr().out == ""


def test_a_write_that_fails_leaves_the_previous_file(tmp_path):
    path = tmp_path / "a"
    write_file(path, lambda file: file.write(b"first"))

    def full(file):
        file.write(b"half of the sec")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match=r"-o .*a: could not be written .No space left.*name another file"):
        write_file(path, full, "-o")
    assert path.read_bytes() == b"first" and [entry.name for entry in tmp_path.iterdir()] == ["a"]
    with pytest.raises(UserError, match=r"could not be written .No such file or directory"):
        write_file(tmp_path / "none" / "a", lambda file: None)


def test_a_link_stays_and_its_file_is_replaced_whole(tmp_path):
    target, link = tmp_path / "elsewhere" / "a", tmp_path / "link"
    target.parent.mkdir()
    target.write_bytes(b"first")
    link.symlink_to(target)
    require_place(link, "-o")

    def full(file):
        file.write(b"half of the sec")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match=r"link: could not be written .No space left"):
        write_file(link, full)
    assert link.is_symlink() and target.read_bytes() == b"first"
    write_file(link, lambda file: file.write(b"second"))
    assert link.is_symlink() and target.read_bytes() == b"second" and len(list(target.parent.iterdir())) == 1


def test_a_device_is_written_in_place(tmp_path):
    write_file(Path("/dev/null"), lambda file: file.write(b"x"))
    with open(tmp_path / "a", "wb") as file:
        write_file(Path(f"/dev/fd/{file.fileno()}"), lambda written: written.write(b"x"))
        file.seek(0, os.SEEK_END)
        file.write(b"y")
    assert (tmp_path / "a").read_bytes() == b"xy"
    with pytest.raises(UserError, match=r"-o /dev/full: could not be written .No space left on device.*another file"):
        save_tensors(Path("/dev/full"), {"a": torch.zeros(10_000)}, "-o")


def test_a_place_is_checked_before_the_computation(tmp_path):
    require_place(tmp_path / "a", "-o")
    with pytest.raises(UserError, match=r"-o .*: is a folder; name a file"):
        require_place(tmp_path, "-o")
    with pytest.raises(UserError, match=r"there is no folder .*none; make it"):
        require_place(tmp_path / "none" / "a", "-o")
    assert not list(tmp_path.iterdir())


def test_one_holds_a_lock_and_the_other_waits_or_is_refused(tmp_path, caplog):
    path, order = tmp_path / ".lock", []
    with locked(path):
        with pytest.raises(Locked), locked(path):
            pass
        waiting = threading.Event()

        def second():
            waiting.set()
            with locked(path, waiting="another run builds the cache: waiting"):
                order.append("second")

        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(60)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]
    with locked(path):
        pass
