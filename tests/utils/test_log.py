"""The one progress bar: a bar on a terminal, log lines elsewhere."""

import sys

import pytest

from utils import log


class Clock:
    """Stands for the time of tqdm, so that no test waits."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr("tqdm.std.time", lambda: self.now)
        monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)


@pytest.fixture
def clock(monkeypatch, caplog):
    caplog.set_level("INFO")
    return Clock(monkeypatch)


def test_without_a_terminal_there_is_a_line_at_least_every_30_seconds(clock, caplog, capsys):
    with log.progress_bar("12 bits: encoding the database", 100, " images") as bar:
        seen = []
        for step in range(100):
            clock.now += 4
            bar.update()
            if len(caplog.messages) > len(seen):
                seen.append(step)
    assert max(later - earlier for earlier, later in zip([-1, *seen], [*seen, 99], strict=True)) * 4 <= 30
    assert caplog.messages[0] == "12 bits: encoding the database: 5 % (5/100 images), 00:20, 06:20 left"
    assert len(caplog.messages) == len(seen) < 25
    assert "\r" not in capsys.readouterr().err


def test_short_work_and_other_processes_print_nothing(clock, caplog, monkeypatch):
    with log.progress_bar("short", 3, "batch") as bar:
        for _ in range(3):
            clock.now += 5
            bar.update()
    monkeypatch.setenv("RANK", "1")
    with log.progress_bar("long", 3, "batch") as bar:
        for _ in range(3):
            clock.now += 500
            bar.update()
    assert caplog.messages == []


def test_on_a_terminal_there_is_a_bar(clock, caplog, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with log.progress_bar("12 bits", 10, "batch", initial=4, leave=True) as bar:
        clock.now += 60
        bar.update(3)
    shown = capsys.readouterr().err
    assert "12 bits:  70%" in shown and "7/10 [01:00<01:00" in shown and caplog.messages == []
