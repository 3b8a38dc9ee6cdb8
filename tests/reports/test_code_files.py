"""Code files of torch, numpy and Matlab."""

import random

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import torch

from reports.code_files import CodeFile, find_code_sets, load_code_set, read_array
from tests.naive_ranking import make_case
from tests.test_damaged_files import damaged_bytes
from utils.errors import UserError
from utils.runs import ROLES

CASE = make_case(4)


def test_numpy_files_are_found_by_their_role(tmp_path):
    for role, tensor in zip(ROLES, CASE, strict=True):
        np.save(tmp_path / f"a-{role}.npy", tensor.numpy())
    (code_set,) = find_code_sets([tmp_path])
    assert code_set.name == "a"
    assert all(torch.equal(one, other) for one, other in zip(load_code_set(code_set), CASE, strict=True))


def test_arrays_of_an_archive_are_named(tmp_path):
    np.savez(tmp_path / "codes.npz", query=CASE[0], database=CASE[1])
    scipy.io.savemat(tmp_path / "codes.mat", {"B": CASE[1].numpy(), "L": scipy.sparse.csc_matrix(CASE[3].numpy())})
    for text, expected in (("codes.npz:query", 0), ("codes.npz:database", 1), ("codes.mat:B", 1), ("codes.mat:L", 3)):
        assert torch.equal(read_array(CodeFile.parse(str(tmp_path / text))).float(), CASE[expected])


def test_the_codes_of_encode_are_unpacked(tmp_path):
    np.savez(tmp_path / "codes.npz", codes=np.packbits(CASE[0] > 0, axis=1), code_length=12, names=np.array(["x"] * 6))
    assert torch.equal(read_array(CodeFile(tmp_path / "codes.npz")).float(), CASE[0])


def test_an_archive_of_one_array_needs_no_name(tmp_path):
    np.savez(tmp_path / "one.npz", CASE[0])
    assert torch.equal(read_array(CodeFile(tmp_path / "one.npz")), CASE[0])


def test_a_colon_may_be_part_of_a_name(tmp_path):
    path = tmp_path / "a:b.npy"
    np.save(path, CASE[0].numpy())
    assert CodeFile.parse(str(path)) == CodeFile(path)


def test_files_that_cannot_be_read_are_named(tmp_path):
    np.savez(tmp_path / "two.npz", a=CASE[0], b=CASE[1], names=np.array(["x"]))
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04" + b"x" * 50)
    (tmp_path / "broken.mat").write_bytes(b"x" * 200)
    (tmp_path / "hdf5.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(116) + bytes(8) + b"\x00\x02IM" + bytes(128))
    np.savez(tmp_path / "encode.npz", codes=CASE[0], code_length=12)
    for text, message in (
        ("encode.npz", "not a file of `python -m search encode`; name one of its arrays"),
        ("two.npz", r"two.npz: name one of its arrays, such as .*two.npz:a \(a, b, names\)"),
        ("two.npz:c", "name one of its arrays"),
        ("two.npz:names", "the array names holds no numbers"),
        ("object.npy", "object.npy: damaged, or not saved by numpy without pickled objects"),
        ("broken.npz", "broken.npz: damaged, or not saved by numpy"),
        ("broken.mat", "broken.mat: damaged, or not a mat file"),
        ("hdf5.mat", "hdf5.mat: is a version 7.3 file, which is HDF5; save it in Matlab with -v7"),
        ("absent.npy", "absent.npy: there is no such file"),
    ):
        with pytest.raises(UserError, match=message):
            read_array(CodeFile.parse(str(tmp_path / text)))


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_damaged_files_of_numpy_end_with_a_message(name, tmp_path):
    path, chance = tmp_path / name, random.Random(0)
    np.save(path, CASE[0]) if path.suffix == ".npy" else np.savez(path, CASE[0])
    whole, refused = path.read_bytes(), 0
    for _ in range(100):
        path.write_bytes(damaged_bytes(whole, chance))
        try:
            read_array(CodeFile(path))
        except UserError as error:
            refused += 1
            assert "\n" not in str(error), str(error)
    assert refused > 10


def test_a_damaged_sparse_matrix_is_one_message(tmp_path):
    """In this process it would end the tests with a segmentation fault."""
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"L": scipy.sparse.csc_matrix(np.eye(9, dtype=np.float64))})
    whole = path.read_bytes()
    place = whole.index(np.arange(9, dtype="<i4").tobytes())  # the rows of the entries
    path.write_bytes(whole[:place] + b"\xff\xff\xff\x3f" * 9 + whole[place + 36 :])
    with pytest.raises(UserError, match=r"a\.mat: damaged, or not a mat file; save it again in Matlab with -v7"):
        read_array(CodeFile(path))
