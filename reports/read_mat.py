"""`python -m reports.read_mat FILE`: writes the arrays of a Matlab file to stdout, as an npz file.

A process of its own, since scipy's reader can end its process with a segmentation fault where a file is damaged.
"""

import io
import sys

import numpy as np
from scipy.io import loadmat
from scipy.sparse import issparse

IS_HDF5 = 3  # exit status


def main() -> int:
    """Read the file that the command line names; another status than 0 and `IS_HDF5` where it is damaged."""
    try:
        content = loadmat(sys.argv[1])
    except NotImplementedError:  # version 7.3
        return IS_HDF5
    arrays = {}
    for name, value in content.items():
        if issparse(value):  # as Matlab users save labels
            value.check_format(full_check=True)
            arrays[name] = value.toarray()
        elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            arrays[name] = value
    file = io.BytesIO()
    np.savez(file, **arrays)
    sys.stdout.buffer.write(file.getvalue())
    return 0


if __name__ == "__main__":
    sys.exit(main())
