"""Memory of the discrete step at NUS-WIDE's size: 10,500 drawn rows of 193,734, 48 bits, 21 labels.

    python -m benchmarks.discrete_memory [--samples 10500] [--database 193734] [--code-length 48]

Prints the peak memory of B, the codes of the sample, the balance of the softened similarity and the discrete step,
without the memory of Python, torch and the labels. For comparison it prints the memory that the n × n_database and
n × n similarities would need.
"""

from __future__ import annotations

import resource
import sys
import time

import torch

from modules.discrete import discrete_step, draw_sample
from utils.command import Parser, bounded, run_command

PROGRAM = "python -m benchmarks.discrete_memory"


def peak() -> int:
    """Peak resident memory of the process in bytes (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(arguments: list[str]) -> None:
    """Take one discrete step on random labels and codes and print its memory.

    Raises:
        UserError: a bad flag.
    """
    parser = Parser(prog=PROGRAM, description="Memory of the discrete step (Linux).")
    parser.add_argument("--samples", type=bounded(int, 1), default=10_500, help="drawn rows [%(default)s]")
    parser.add_argument("--database", type=bounded(int, 1), default=193_734, help="database rows [%(default)s]")
    parser.add_argument("--code-length", type=bounded(int, 1), default=48, help="bits [%(default)s]")
    given = parser.parse_args(arguments)
    if given.samples > given.database:
        parser.error(f"--samples {given.samples}: more than --database {given.database}")
    n, database, bits = given.samples, given.database, given.code_length
    generator = torch.Generator().manual_seed(0)
    labels = torch.empty(database, 21)
    for block in labels.split(4096):  # in blocks, so that the random numbers do not set the peak
        block.copy_(torch.rand(block.shape, generator=generator) < 0.1)
    torch.ones(64, 64) @ torch.ones(64, 64)  # the buffers of the libraries
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
        f"{n:,} of {database:,} rows, {bits} bits: {(peak() - before) / mebibyte:.0f} MiB in addition to the process "
        f"and its labels ({labels.nbytes / mebibyte:.0f} MiB); B takes {codes.nbytes / mebibyte:.0f} MiB of it; "
        f"{seconds:.1f} s.\nThe whole similarity of sample and database would take "
        f"{4 * n * database / mebibyte:,.0f} MiB, that of the sample and itself {4 * n * n / mebibyte:,.0f} MiB."
    )


if __name__ == "__main__":
    sys.exit(run_command(PROGRAM, lambda: main(sys.argv[1:])))
