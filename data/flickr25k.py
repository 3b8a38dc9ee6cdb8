"""MIR-Flickr 25K with 38 labels, or 24 by the width of the label files.

A database list and a test list are pooled in this order; 1,000 images drawn by the seed are the queries. ``--split
lists`` keeps the lists as they are.
"""

from data.list_files import ListedDataset

FLICKR25K = ListedDataset(
    name="flickr25k",
    title="MIR-Flickr 25K",
    folders=("Flickr", "flickr25k", "flickr"),
    images="mirflickr",
    lists=(("db_image.txt", "database_label.txt"), ("test_image_m.txt", "test_label.txt")),
    widths=frozenset({24, 38}),
    num_query=1000,
    class_names="concepts.txt",
    command="prepare_flickr25k",
)
