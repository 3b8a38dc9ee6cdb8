"""What several tests of the search start from."""

import pytest

from search.encode import Encoding
from search.model import Model
from search.store import build
from tests.image_trees import folder_tree
from tests.search.digits_page import Client, digits_store, serving
from tests.search.tiny_model import write_tiny_model


@pytest.fixture
def photos(tmp_path):
    """30 images of several kinds in three class folders, nested and with names outside ASCII."""
    folder_tree(tmp_path / "photos")
    return tmp_path / "photos"


@pytest.fixture
def model_file(tmp_path):
    """A tiny model of 12 bits."""
    return write_tiny_model(tmp_path / "model.onnx")


@pytest.fixture
def store(tmp_path, photos, model_file):
    """A store of `photos`."""
    return build(str(tmp_path / "store"), Model.load(model_file), [str(photos)], Encoding())[0]


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """A store of digits, which no test changes."""
    return digits_store(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def client(digits):
    """The page of `digits` without a server, and `server` with one."""
    return Client(digits)


@pytest.fixture(scope="session")
def server(digits):
    with serving(digits) as server:
        yield server
