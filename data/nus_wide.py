"""NUS-WIDE with its 21 (tc21) or 10 (tc10) most frequent concepts, from the lists that its users share.

tc21: the images of the test list (2,100) are the queries, those of the database list (193,734) the database. tc10: of
one list (186,577), 5,000 images drawn by the seed are the queries.
"""

from data.list_files import ListedDataset

_FOLDERS = ("NUS-WIDE", "nus-wide", "NUS_WIDE")

TC21 = ListedDataset(
    name="nus-wide-tc21",
    title="NUS-WIDE (21 concepts)",
    folders=_FOLDERS,
    images="images",
    lists=(("database_img.txt", "database_label_onehot.txt"), ("test_img.txt", "test_label_onehot.txt")),
    widths=frozenset({21}),
    num_query=None,
    class_names="concepts_tc21.txt",
    command="prepare_nus_wide",
)
TC10 = ListedDataset(
    name="nus-wide-tc10",
    title="NUS-WIDE (10 concepts)",
    folders=_FOLDERS,
    images="images",
    lists=(("img_tc10.txt", "targets_onehot_tc10.txt"),),
    widths=frozenset({10}),
    num_query=5000,
    class_names="concepts_tc10.txt",
    command="prepare_nus_wide",
)
