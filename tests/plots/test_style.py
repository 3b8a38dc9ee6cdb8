"""The style of figures: series that differ without colour, no effect of a matplotlibrc, the same bytes every time."""

import errno
import os

import matplotlib
import pytest
from matplotlib.figure import Figure

from plots import curves, style
from utils.errors import UserError


def test_no_two_series_look_alike_even_without_colour():
    styles = [style.series_style(index) for index in range(40)]
    assert len({(one["marker"], str(one["linestyle"])) for one in styles}) == 40


def test_a_users_matplotlibrc_changes_nothing_and_is_left_alone(tmp_path):
    named = {"A": [{"precision": [1.0, 0.5], "recall": [0.1, 1.0]}]}
    plain = curves.precision_recall_figure(tmp_path / "plain.png", named, "digits").read_bytes()
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "savefig.dpi": 30}):
        other = curves.precision_recall_figure(tmp_path / "other.png", named, "digits").read_bytes()
        assert matplotlib.rcParams["font.size"] == 20
    assert plain == other


@pytest.mark.parametrize("ending", ["png", "pdf"])
def test_the_same_data_give_the_same_bytes(ending, tmp_path, monkeypatch):
    series = {"A": {12: [0.5, 0.6], 32: [0.7, 0.8]}}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")  # the day that matplotlib would write into the file
    first = curves.map_figure(tmp_path / f"a.{ending}", series).read_bytes()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "2000000000")
    second = curves.map_figure(tmp_path / f"b.{ending}", series).read_bytes()
    assert first == second
    assert first.startswith({"png": b"\x89PNG", "pdf": b"%PDF"}[ending])


def test_a_figure_of_another_format_or_in_a_file_is_refused(tmp_path):
    series = {"A": {12: [0.5]}}
    with pytest.raises(UserError, match="written as png or pdf"):
        curves.map_figure(tmp_path / "a.gif", series)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="could not be written"):
        curves.map_figure(tmp_path / "file" / "a.png", series)


@pytest.mark.parametrize("ending", ["png", "pdf"])
def test_a_full_disk_leaves_the_figure_that_was_there(ending, tmp_path, monkeypatch):
    path = tmp_path / f"a.{ending}"
    first = curves.map_figure(path, {"A": {12: [0.5]}}).read_bytes()

    def full(self, file, **_):
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(UserError, match=rf"a\.{ending}: could not be written \(No space left on device\); free some"):
        curves.map_figure(path, {"A": {12: [0.6]}})
    assert path.read_bytes() == first and list(tmp_path.iterdir()) == [path]


def test_a_long_name_in_a_legend_is_wrapped(tmp_path):
    """A variant with many flags; its legend must lie inside the figure."""
    name = "MM Asia, lr 0.0001, no_cycle_terms True, num_samples 5000, backbone squeezenet1_0, image_size 64"
    short, long = ({label: {12: [0.5], 32: [0.7]}, "B": {12: [0.4], 32: [0.6]}} for label in ("A", name))
    figures = []
    for number, series in enumerate((short, long)):
        with pytest.MonkeyPatch.context() as context:
            context.setattr(curves, "save", lambda figure, path: figures.append(figure))
            curves.map_figure(tmp_path / f"{number}.png", series)
    for figure in figures:
        figure.draw_without_rendering()
        box, page = figure.legends[0].get_window_extent(), figure.bbox
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0
    assert figures[1].get_figheight() > figures[0].get_figheight()


def test_a_name_that_no_font_can_show_is_said(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(style, "FONTS", ("DejaVu Sans", "no such font"))
    curves.map_figure(tmp_path / "a.png", {"Äpfel": {12: [0.5]}})
    assert not caplog.messages
    curves.map_figure(tmp_path / "b.png", {"猫": {12: [0.5]}})
    (message,) = caplog.messages
    assert message.endswith(
        "b.png: a name has characters that no installed font has; install Noto Sans CJK, for example."
    )
