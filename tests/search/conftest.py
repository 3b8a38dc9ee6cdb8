"""What several tests of the search start from."""

import pytest

import search.model
from search.__main__ import main
from tests.image_trees import folder_tree
from tests.search.encode_small import make_run
from tests.small_networks import SmallImageNet


@pytest.fixture
def small(monkeypatch):
    """Runs load the small network instead of a real one."""
    monkeypatch.setattr(search.model, "image_network", SmallImageNet)


@pytest.fixture
def run_folder(tmp_path, small):
    """The folder of a run of the small network, 12 bits."""
    return make_run(tmp_path / "run")


@pytest.fixture
def photos(tmp_path):
    """30 images of several kinds in three class folders, nested and with names outside ASCII."""
    folder_tree(tmp_path / "photos")
    return tmp_path / "photos"


@pytest.fixture
def index(run_folder, photos, tmp_path, capsys):
    assert main(["build", str(run_folder), str(photos), "-o", str(tmp_path / "index"), "--device", "cpu"]) == 0
    assert "30 images in 12 bits: index written to" in capsys.readouterr().out
    return tmp_path / "index"
