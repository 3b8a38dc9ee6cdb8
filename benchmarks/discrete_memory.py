"""Memory of the discrete step at NUS-WIDE's size: 10,500 drawn rows of 193,734, 48 bits, 21 labels.

    python -m benchmarks.discrete_memory [--samples 10500] [--database 193734] [--code-length 48]

Prints the peak of the process above what Python, torch and the labels take, for B, the codes of the sample, the balance
of the softened similarity and the discrete step; and what the n × n_database and n × n similarities alone would take.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

import torch

from modules.discrete import discrete_step, draw_sample


def peak() -> int:
    """Peak resident memory of the process in bytes (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.discrete_memory", description="Memory of the discrete step.")
    parser.add_argument("--samples", type=int, default=10_500)
    parser.add_argument("--database", type=int, default=193_734)
    parser.add_argument("--code-length", type=int, default=48)
    given = parser.parse_args(arguments)
    n, database, bits = given.samples, given.database, given.code_length
    generator = torch.Generator().manual_seed(0)
    labels = torch.empty(database, 21)
    for block in labels.split(4096):  # in blocks, so that making them leaves no peak of its own
        block.copy_(torch.rand(block.shape, generator=generator) < 0.1)
    torch.ones(64, 64) @ torch.ones(64, 64)  # the libraries' own buffers
    before = peak()
    start = time.perf_counter()
    codes = torch.zeros(database, bits)
    sample = draw_sample(database, n, 0, 0)
    sample_codes = torch.rand(3, n, bits, generator=generator) * 2 - 1
    discrete_step(codes, sample, labels, sample_codes, alpha=2.0, beta=0.1, gamma=10.0)
    seconds = time.perf_counter() - start
    assert int((codes != 0).all(dim=1).sum()) == n
    mebibyte = 2**20
    print(
        f"{n:,} of {database:,} rows, {bits} bits: {(peak() - before) / mebibyte:.0f} MiB above the process and its "
        f"labels ({labels.nbytes / mebibyte:.0f} MiB), of which B takes {codes.nbytes / mebibyte:.0f}; "
        f"{seconds:.1f} s.\nHeld whole, the similarity to the database would take "
        f"{4 * n * database / mebibyte:,.0f} MiB, that of the sample to itself {4 * n * n / mebibyte:,.0f}."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
