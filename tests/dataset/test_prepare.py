"""The preparation commands with small releases in the official formats: lists, counts, safety, running again."""

from __future__ import annotations

import os
import re
import signal
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data import Options, load_data
from data.list_files import read_labels
from data.name_lists import read_names
from dataset import export_digits, official_release, prepare_flickr25k, prepare_nus_wide
from tests import image_trees as trees
from utils.errors import UserError


def flickr_main(archives: list[Path], output: Path, *flags: str) -> int:
    return prepare_flickr25k.main([*map(str, archives), "-o", str(output), *flags])


@pytest.mark.parametrize("labels", [24, 38])
def test_flickr_lists(tmp_path: Path, labels: int, capsys: pytest.CaptureFixture[str]) -> None:
    archives, members = trees.flickr_release(tmp_path / "release")
    output = tmp_path / "dataset" / "Flickr"
    assert flickr_main(archives, output, "--labels", str(labels)) == 0
    columns = read_names(output / "concepts.txt")
    assert columns[:24] == trees.FLICKR_CONCEPTS and len(columns) == labels
    assert columns[24:] == [f"{name}_r1" for name in trees.FLICKR_STRICT][: labels - 24]
    seen = set()
    for names_file, labels_file in (("db_image.txt", "database_label.txt"), ("test_image_m.txt", "test_label.txt")):
        names, rows = read_names(output / names_file), read_labels(output / labels_file, {labels})
        numbers = [int(re.fullmatch(r"mirflickr/im(\d+)\.jpg", name)[1]) for name in names]
        assert numbers == sorted(numbers) and len(numbers) == len(rows)
        for number, row in zip(numbers, rows.tolist(), strict=True):
            assert row == [float(number in members[name]) for name in columns]
            assert sum(row) > 0
        seen |= set(numbers)
    assert seen == set(range(1, 38))  # 38 to 40 have no label
    report = capsys.readouterr().out
    assert "images: 40   (complete release: 25,000), 40 of them unpacked now" in report
    assert "without a label, dropped: 3" in report and "images in the lists: 37   (complete release: 24,581)" in report
    split = load_data("flickr25k", tmp_path / "dataset", Options(num_query=5, image_size=32))
    assert (len(split.query), len(split.database), split.class_names) == (5, 32, columns)
    with zipfile.ZipFile(archives[0]) as archive:
        assert (output / "mirflickr" / "im7.jpg").read_bytes() == archive.read("mirflickr/im7.jpg")


def test_flickr_keep_unlabelled(tmp_path: Path) -> None:
    archives, _ = trees.flickr_release(tmp_path)
    assert flickr_main(archives, tmp_path / "out", "--keep-unlabelled") == 0
    assert len(read_names(tmp_path / "out" / "db_image.txt") + read_names(tmp_path / "out" / "test_image_m.txt")) == 40


def test_flickr_can_be_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Interrupted while unpacking: what is whole stays, what is cut short or missing is unpacked."""
    archives, _ = trees.flickr_release(tmp_path)
    output = tmp_path / "out"
    assert flickr_main(archives, output) == 0
    before = {path.relative_to(output): path.read_bytes() for path in output.rglob("*") if path.is_file()}
    (output / "mirflickr" / "im3.jpg").unlink()
    image = output / "mirflickr" / "im4.jpg"
    image.write_bytes(image.read_bytes()[:100])
    (output / "mirflickr" / "im5.jpg.part").write_bytes(b"half")
    (output / "db_image.txt").unlink()
    capsys.readouterr()
    assert flickr_main(archives, output) == 0
    assert "2 of them unpacked now" in capsys.readouterr().out
    (output / "mirflickr" / "im5.jpg.part").unlink(missing_ok=True)
    assert {path.relative_to(output): path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    assert flickr_main(archives[1:], output) == 0  # the images are there: their archive is not needed


def test_flickr_missing_images_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archives, members = trees.flickr_release(tmp_path)
    output = tmp_path / "out"
    assert flickr_main(archives, output) == 0
    for number in (2, 9):
        (output / "mirflickr" / f"im{number}.jpg").unlink()
    capsys.readouterr()
    assert flickr_main(archives[1:], output) == 0
    report = capsys.readouterr().out
    assert "missing images with a label, dropped: 2" in report and "im2.jpg, im9.jpg" in report
    assert {2, 9} <= set().union(*members.values())
    assert not {"mirflickr/im2.jpg", "mirflickr/im9.jpg"} & set(read_names(output / "db_image.txt"))


@pytest.mark.parametrize(
    "member", ["../evil.jpg", "mirflickr/../../im1.jpg", "/tmp/im1.jpg", "..\\im1.jpg", "C:\\im1.jpg", "a/../im1.jpg"]
)
def test_flickr_refuses_members_that_lead_out(tmp_path: Path, member: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "deep" / "evil.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mirflickr/im1.jpg", b"first")
        archive.writestr(member, b"evil")
    assert flickr_main([path], tmp_path / "deep" / "out") == 2
    assert "leads out of the folder" in capsys.readouterr().err
    assert [p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()] == [Path("deep/evil.zip")]


def test_flickr_other_members_are_not_unpacked(tmp_path: Path) -> None:
    archives, _ = trees.flickr_release(tmp_path)
    with zipfile.ZipFile(archives[0], "a") as archive:
        archive.writestr("mirflickr/meta/tags/tags1.txt", "x")
        archive.writestr("mirflickr/sub/im1.jpg", b"not this one")
        archive.writestr("mirflickr/setup.py", "x")
    assert flickr_main(archives, tmp_path / "out") == 0
    assert {path.name for path in (tmp_path / "out" / "mirflickr").iterdir()} == {f"im{n}.jpg" for n in range(1, 41)}


def make_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_flickr_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    archives, _ = trees.flickr_release(tmp_path)
    out = tmp_path / "out"

    def message(*given: Path, flags: tuple[str, ...] = ()) -> str:
        assert flickr_main(list(given), out, *flags) == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error and error.startswith("python -m dataset.prepare_flickr25k: ")
        return error

    assert "38 of 38 annotations are in none of the archives" in message(archives[0])
    (out / "mirflickr").rename(tmp_path / "kept")
    assert "has no im<N>.jpg; give mirflickr25k.zip too" in message(archives[1])
    assert "none.zip cannot be read or written" in message(tmp_path / "none.zip")
    (tmp_path / "cut.zip").write_bytes(archives[0].read_bytes()[:-500])
    assert "cut.zip is damaged or not a zip archive" in message(tmp_path / "cut.zip")
    content = bytearray(archives[0].read_bytes())
    content[content.index(b"\xff\xda") + 20] ^= 0xFF  # inside an image
    (tmp_path / "flipped.zip").write_bytes(content)
    assert "flipped.zip is damaged" in message(tmp_path / "flipped.zip")
    assert "has neither" in message(make_zip(tmp_path / "other.zip", {"a.txt": b"1"}))
    bad = make_zip(tmp_path / "bad.zip", {"clouds.txt": b"1\n2\nthree\n"})
    assert "bad.zip, clouds.txt, line 3: 'three' is not an image number" in message(bad)
    packed = tmp_path / "packed.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("clouds.txt", b"1\n2\n3\n" * 50)
    content = bytearray(packed.read_bytes())
    content[45:60] = bytes(15)  # inside the member
    packed.write_bytes(content)
    assert "packed.zip is damaged or not a zip archive" in message(packed)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(bad, "a") as archive:
        archive.writestr("clouds.txt", b"4\n")
    assert "bad.zip: 2 members have the name 'clouds.txt'; download it again." in message(bad)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
        assert re.search(
            r"the images need 0\.0 GB in .*mirflickr, but 0\.0 GB are free; free some", message(archives[0])
        )
    monkeypatch.setattr(prepare_flickr25k, "_LARGEST", 10)
    assert "bytes, not an image" in message(archives[0])


def test_flickr_images_of_another_release(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archives, _ = trees.flickr_release(tmp_path)
    (tmp_path / "out" / "mirflickr").mkdir(parents=True)
    trees.save_photo(tmp_path / "out" / "mirflickr" / "im999.jpg", 1)
    assert flickr_main(archives[1:], tmp_path / "out") == 2
    assert "only 0 image has a label" in capsys.readouterr().err


def test_nus_wide_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "NUS-WIDE"
    names, labels = trees.nus_wide_release(folder, count=300)
    assert prepare_nus_wide.main([str(folder)]) == 0
    order = np.argsort(-labels.sum(0).astype(int), kind="stable")
    row_of = {f"images/{name}": row for row, name in enumerate(names)}
    for width, lists in (
        (21, [("database_img.txt", "database_label_onehot.txt"), ("test_img.txt", "test_label_onehot.txt")]),
        (10, [("img_tc10.txt", "targets_onehot_tc10.txt")]),
    ):
        columns = order[:width]
        listed: list[int] = []
        for names_file, labels_file in lists:
            rows = [row_of[name] for name in read_names(folder / names_file)]
            assert rows == sorted(rows)
            assert read_labels(folder / labels_file, {width}).tolist() == labels[rows][:, columns].tolist()
            listed += rows
        assert sorted(listed) == np.flatnonzero(labels[:, columns].any(1)).tolist()
        want = [f"concept{column:02d}" for column in columns.tolist()]
        assert read_names(folder / f"concepts_tc{width}.txt") == want
    report = capsys.readouterr().out
    assert "images in the ground truth: 300   (complete release: 269,648)" in report
    assert "(complete release: 195,834)" in report and "(complete release: 186,577)" in report
    tc21 = load_data("nus-wide-tc21", tmp_path, Options(image_size=32))
    assert len(tc21.query) == 21 and tc21.class_names == read_names(folder / "concepts_tc21.txt")
    assert (tc21.query.labels.sum(0) >= 1).all()
    assert len(load_data("nus-wide-tc10", tmp_path, Options(num_query=9, image_size=32)).query) == 9
    before = {path.name: path.read_bytes() for path in folder.glob("*.txt")}
    assert prepare_nus_wide.main([str(folder)]) == 0
    assert {path.name: path.read_bytes() for path in folder.glob("*.txt")} == before
    assert prepare_nus_wide.main([str(folder), "--seed", "3"]) == 0
    assert (folder / "test_img.txt").read_bytes() != before["test_img.txt"]


def test_nus_wide_of_the_whole_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test list of a collection large enough: 100 a concept, no image twice."""
    labels = (np.random.default_rng(0).random((6000, 21)) < np.linspace(0.3, 0.03, 21)).astype(np.uint8)
    test = prepare_nus_wide.draw_test(labels, 100, seed=0)
    assert len(test) == len(set(test.tolist())) == 2100
    assert (labels[test].sum(0) >= 100).all()


def test_nus_wide_missing_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names, _ = trees.nus_wide_release(tmp_path)
    for name in names[:3]:
        (tmp_path / "images" / name).unlink()
    (tmp_path / "images" / names[5]).rename(tmp_path / "images" / Path(names[5]).name)  # flat instead of nested
    assert prepare_nus_wide.main([str(tmp_path)]) == 0
    report = capsys.readouterr().out
    assert "missing images, dropped: 3" in report and f"images/{names[0]}, images/{names[1]}" in report
    listed = read_names(tmp_path / "database_img.txt") + read_names(tmp_path / "test_img.txt")
    assert not {f"images/{name}" for name in names[:3]} & set(listed)
    assert f"images/{Path(names[5]).name}" in listed or f"images/{names[5]}" not in listed
    assert prepare_nus_wide.main([str(tmp_path), "--keep-missing"]) == 0
    assert "listed anyway: 3" in capsys.readouterr().out
    assert f"images/{names[0]}" in read_names(tmp_path / "img_tc10.txt")


def test_nus_wide_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trees.nus_wide_release(tmp_path / "n")
    folder, truth = tmp_path / "n", tmp_path / "n" / "Groundtruth" / "AllLabels"

    def message(where: Path = folder) -> str:
        assert prepare_nus_wide.main([str(where)]) == 2
        return capsys.readouterr().err

    assert "is not a folder" in message(tmp_path / "none")
    (folder / "images").rename(tmp_path / "away")
    assert "None of the 60 images is in" in message()
    (tmp_path / "away").rename(folder / "images")

    path = truth / "Labels_concept03.txt"
    good = path.read_text()
    path.write_text(good[:-2])
    assert "Labels_concept03.txt has 59 lines, Labels_concept00.txt has 60" in message()
    path.write_text(good.replace("1", "7", 1))
    assert re.search(r"Labels_concept03\.txt, line \d+ has '7'", message())
    path.write_text("")
    assert "Labels_concept03.txt is empty" in message()
    path.write_text(good)

    image_list = folder / "ImageList" / "Imagelist.txt"
    lines = image_list.read_text()
    image_list.write_text(lines + "actor\\more.jpg\n")
    assert re.search(r"Imagelist\.txt has 61 lines, .* have 60", message())
    image_list.unlink()
    assert "Imagelist.txt is missing" in message()
    image_list.write_text(lines)
    for number in range(5):
        (truth / f"Labels_concept{number:02d}.txt").unlink()
    assert "has 20 files Labels_<concept>.txt, but 21 are needed" in message()


def test_nus_wide_too_few_images(tmp_path: Path) -> None:
    trees.nus_wide_release(tmp_path, count=12)
    with pytest.raises(UserError, match="too few for a test list"):
        prepare_nus_wide.prepare(tmp_path)


def test_lists_are_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official_release.write_names(tmp_path / "list.txt", ["old"])

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("utils.files.os.fsync", fail)
    with pytest.raises(
        UserError, match=r"list\.txt: could not be written \(No space left on device\); free some space"
    ):
        official_release.write_names(tmp_path / "list.txt", ["new", "er"])
    assert (tmp_path / "list.txt").read_text() == "old\n" and len(list(tmp_path.iterdir())) == 1


MAINS = {"prepare_flickr25k": prepare_flickr25k.main, "prepare_nus_wide": prepare_nus_wide.main}
MAINS["export_digits"] = export_digits.main


@pytest.mark.parametrize("command", MAINS)
@pytest.mark.parametrize("flags", [["x", "--seed", "-1"], ["x", "--seed", "many"], ["x", "--colour", "red"], []])
def test_bad_flags_are_one_line(command: str, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert MAINS[command](flags) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"python -m dataset.{command}: ") and error.count("\n") == 1


def test_a_stopped_command_says_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archives, _ = trees.flickr_release(tmp_path / "release")
    replace = os.replace
    renamed = []

    def stop_at_the_third(source: Path, target: Path) -> None:
        renamed.append(target)
        if len(renamed) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        replace(source, target)

    monkeypatch.setattr(prepare_flickr25k.os, "replace", stop_at_the_third)
    assert flickr_main(archives, tmp_path / "out") == 143
    assert "SIGTERM; the files written so far are kept; run the command again" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out" / "mirflickr").iterdir()) == ["im1.jpg", "im2.jpg"]
    monkeypatch.undo()
    assert flickr_main(archives, tmp_path / "out") == 0
    assert "38 of them unpacked now" in capsys.readouterr().out
