"""The retrieval gallery: neighbours in the right order, and frames, marks and texts that follow relevance."""

import numpy as np
import pytest
import torch
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from PIL import Image

from data import Options, load_data
from plots import gallery
from plots.style import GREEN, VERMILLION
from tests.image_trees import photo
from utils.errors import UserError


def make_gallery(**changes):
    """2 queries, 3 neighbours, 4 classes; every image is of one grey, its number."""
    numbers = np.arange(6).reshape(2, 3)
    images = np.broadcast_to(numbers[..., None, None, None], (2, 3, 3, 4, 4)).astype(np.uint8) * 10
    labels = np.zeros((2, 3, 4), bool)
    labels[0, [0, 1, 2], [0, 1, 2]] = True  # neighbour 0 has class 0, and so on
    labels[0, 1, 3] = True
    labels[1, 0, 1] = True
    arguments = {
        "query_images": np.full((2, 3, 4, 4), 200, np.uint8),
        "images": images,
        "distance": np.array([[0.0, 1.0, 1.0], [2.0, 2.5, 7.0]]),
        "query_labels": np.array([[1, 1, 0, 1], [0, 1, 0, 0]], bool),
        "labels": labels,
        "class_names": ["sky", "sea", "animals of the land", "boats"],
        "multi_label": True,
    }
    return gallery.Gallery(**(arguments | changes))


def drawn(content):
    axes = Figure().add_subplot()
    gallery.draw_gallery(axes, content)
    return axes


def texts_of(axes):
    """The lines under each image, by the image's name."""
    lines = {}
    for text in axes.texts:
        if text.get_gid() is not None:
            lines.setdefault(text.get_gid(), []).append(text.get_text())
    return {name: "\n".join(found) for name, found in lines.items()}


def test_frames_and_marks_follow_relevance():
    content = make_gallery()
    assert content.relevant.tolist() == [[True, True, False], [True, False, False]]
    axes = drawn(content)
    frames = {patch.get_gid(): patch for patch in axes.patches}
    assert len(frames) == 2 * (1 + 3)
    for row in range(2):
        for rank in range(3):
            frame = frames[f"neighbour-{row + 1}-{rank + 1}"]
            relevant = content.relevant[row, rank]
            assert same_color(frame.get_edgecolor(), GREEN if relevant else VERMILLION)
            assert frame.get_linestyle() == ("-" if relevant else "--"), "not by colour alone"
    marks = [text[0] for name, text in texts_of(axes).items() if name.startswith("neighbour")]
    assert marks == ["✓", "✓", "✗", "✓", "✗", "✗"]


def test_texts_tell_the_distance_and_the_shared_labels():
    axes = drawn(make_gallery())
    headings = [text.get_text() for text in axes.texts if text.get_gid() is None]
    assert "ties in database order; under each the labels that it shares" in headings[0]
    assert headings[1:] == ["query", "1", "2", "3"]
    assert texts_of(axes) == {
        "query-1": "sky, sea,\nboats",
        "neighbour-1-1": "✓ d = 0\nsky",
        "neighbour-1-2": "✓ d = 1\nsea, boats",
        "neighbour-1-3": "✗ d = 1\nnone",
        "query-2": "sea",
        "neighbour-2-1": "✓ d = 2\nsea",
        "neighbour-2-2": "✗ d = 2.5\nnone",
        "neighbour-2-3": "✗ d = 7\nnone",
    }


def test_single_label_sets_name_the_neighbours_own_class():
    labels = np.zeros((2, 3, 4), bool)
    labels[..., 2] = True
    axes = drawn(make_gallery(multi_label=False, labels=labels, query_labels=np.eye(4, dtype=bool)[[2, 1]]))
    assert "under each its class" in axes.texts[0].get_text()
    texts = texts_of(axes)
    assert texts["neighbour-1-1"] == "✓ d = 0\nanimals …" and texts["neighbour-2-1"] == "✗ d = 2\nanimals …"
    assert texts["query-1"] == "animals of\nthe land", "there is a line more under a query"
    numbers = make_gallery(class_names=None)
    assert numbers.text(np.array([True, False, False, True])) == "0, 3"
    assert numbers.text(np.zeros(4, bool)) == "no label"


def test_images_stand_in_their_cells():
    axes = drawn(make_gallery())
    frames = {patch.get_gid(): patch for patch in axes.patches}
    places = {}
    for image in axes.images:
        left, right, bottom, top = image.get_extent()
        (name,) = [gid for gid, frame in frames.items() if np.allclose(frame.get_xy(), (left, top))]
        assert right - left == pytest.approx(bottom - top), "square"
        places[name] = int(np.unique(image.get_array()).item())
    expected = {f"neighbour-{row + 1}-{rank + 1}": (3 * row + rank) * 10 for row in range(2) for rank in range(3)}
    assert places == expected | {"query-1": 200, "query-2": 200}


def test_nearest_is_by_distance_and_then_in_database_order():
    query = torch.tensor([[1.0, 1, 1, 1]])
    database = torch.tensor([[1.0, 1, -1, -1], [1, 1, 1, 1], [-1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1], [1, -1, 1, 1]])
    rows, distance = gallery.nearest(query, database, 5)
    assert rows.tolist() == [[1, 4, 2, 5, 0]]
    assert distance.tolist() == [[0, 0, 1, 1, 2]]
    assert gallery.nearest(query, database, 100)[0].tolist() == [[1, 4, 2, 5, 0, 3]], "a row of zeros lies at K/2"


def test_queries_are_the_first_of_each_class():
    labels = torch.tensor([[0, 1, 0], [0, 1, 1], [1, 0, 0], [0, 0, 1], [0, 0, 0]])
    assert gallery.choose_queries(labels, 10) == [2, 0, 1]
    assert gallery.choose_queries(labels, 2) == [2, 0]


def test_the_gallery_of_a_split_shows_its_images_and_labels():
    split = load_data("digits", "unused", Options(seed=3, image_size=32))
    random = torch.Generator().manual_seed(0)
    query, database = (
        torch.randint(0, 2, (len(half), 16), generator=random).float() * 2 - 1 for half in (split.query, split.database)
    )
    content = gallery.gallery_of(split, query, database, num_queries=4, num_neighbours=3)
    chosen = [int((split.query.labels[:, digit] > 0).nonzero()[0]) for digit in range(4)]
    for row, number in enumerate(chosen):
        distances = (16 - database @ query[number]) / 2
        order = np.argsort(distances.numpy(), kind="stable")[:3]
        assert content.distance[row].tolist() == distances[order].tolist()
        assert (content.labels[row] == split.database.labels[order].numpy()).all()
        same = split.database.labels[order].argmax(1) == split.query.labels[number].argmax()
        assert content.relevant[row].tolist() == same.tolist()
        np.testing.assert_array_equal(content.images[row], gallery.thumbnails(split.database, order.tolist()))
        np.testing.assert_array_equal(content.query_images[row], gallery.thumbnails(split.query, [number])[0])
    with pytest.raises(UserError, match="299 query codes but 300 query images of digits"):
        gallery.gallery_of(split, query[1:], database)


def test_thumbnails_are_the_middle_square():
    wide = np.asarray(photo(1, width=192, height=96)).transpose(2, 0, 1).copy()

    class Wide:
        def pixels(self, rows):
            return [torch.from_numpy(wide) for _ in rows]

    (small,) = gallery.thumbnails(Wide(), [0])
    np.testing.assert_array_equal(small, wide[:, :, 48:144])


def test_a_class_name_is_no_formula(tmp_path):
    names = ["$\\frac", "a$b$", "c", "d"]
    gallery.gallery_figure(tmp_path / "a.png", make_gallery(class_names=names))  # as formulas these do not parse
    assert texts_of(drawn(make_gallery(class_names=names)))["neighbour-1-2"] == "✓ d = 1\na$b$, d"


def test_written_pictures_are_the_same_twice_and_hold_the_images(tmp_path):
    content = make_gallery()
    first, second = (gallery.gallery_figure(tmp_path / f"{name}.png", content).read_bytes() for name in "ab")
    assert first == second
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert all((pixels == grey).all(axis=2).sum() > 5000 for grey in (200, 10, 50)), "the greys of the images"
    small = gallery.gallery_pixels(content, dpi=60)
    assert small.dtype == np.uint8 and small.shape[2] == 3 and small.shape[1] == pixels.shape[1] // 5
