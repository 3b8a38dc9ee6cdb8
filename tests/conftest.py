"""One thread: the networks of the tests are small, and on a busy machine two threads mostly wait for each other.

And what several test files start from. The imports are in the fixtures, so that a file that needs none pays for none.
"""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def small(monkeypatch):
    """Runs load the small network instead of a real one."""
    from search import model
    from tests.small_networks import SmallImageNet

    monkeypatch.setattr(model, "image_network", SmallImageNet)


@pytest.fixture
def run_folder(tmp_path, small):
    """The folder of a run of the small network, 12 bits."""
    from tests.search.encode_small import make_run

    return make_run(tmp_path / "run")


@pytest.fixture
def photos(tmp_path):
    """30 images of several kinds in three class folders, nested and with names outside ASCII."""
    from tests.image_trees import folder_tree

    folder_tree(tmp_path / "photos")
    return tmp_path / "photos"
