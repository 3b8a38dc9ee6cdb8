"""The gallery of image files."""

import numpy as np
from matplotlib.figure import Figure

from plots import gallery
from plots.file_gallery import file_thumbnail, gallery_of_files
from tests.image_trees import save_photo


def test_the_gallery_shows_queries_neighbours_and_missing_files(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(12)]
    for number, path in enumerate(paths):
        save_photo(path, number)
    paths[3].unlink()
    neighbours = [(path, number, f"text {number}") for number, path in enumerate(paths)]
    content, missing = gallery_of_files([(str(paths[0]), neighbours), (str(paths[1]), neighbours[:2])])
    assert missing == [(str(paths[3]), "missing")]
    assert content.images.shape == (2, 10, 3, gallery.THUMBNAIL, gallery.THUMBNAIL)
    assert content.texts[0] == ["0.png", "1.png"] and content.texts[1][0] == [f"text {number}" for number in range(10)]
    assert content.texts[1][1] == ["text 0", "text 1"] and content.distance[0].tolist() == list(range(10))
    assert np.array_equal(content.images[0, 2], file_thumbnail(paths[2])) and np.ptp(content.images[0, 3]) == 0
    assert np.array_equal(content.query_images[1], file_thumbnail(paths[1]))
    axes = Figure().add_subplot()
    gallery.draw_gallery(axes, content)
    frames = {patch.get_gid() for patch in axes.patches}
    assert len(frames) == 2 + 10 + 2 and {"query-2", "neighbour-1-10", "neighbour-2-2"} <= frames
    shown = [text.get_text() for text in axes.texts if text.get_gid() == "neighbour-1-1"]
    assert shown == ["d = 0", "text 0"]
    assert not any(mark in text.get_text() for text in axes.texts for mark in "✓✗")
