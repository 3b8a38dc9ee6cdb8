"""Memory of the discrete step at NUS-WIDE's size: 10,500 drawn rows of 193,734, 48 bits, 21 labels (Linux).

    python -m benchmarks.discrete_memory

Prints the peak memory of B, the codes of the sample and the discrete step, without that of Python, torch and the
labels; and for comparison the memory that the n × n_database and n × n similarities would need.
"""

from __future__ import annotations

import sys

import torch

from benchmarks.timing import memory, seconds
from modules.discrete import discrete_step, draw_sample
from utils.command import Parser, run_command

PROGRAM = "python -m benchmarks.discrete_memory"
SAMPLES, DATABASE, BITS, CLASSES = 10_500, 193_734, 48, 21
MIB = 2**20


def main() -> None:
    """Take one discrete step on random labels and codes and print its memory."""
    Parser(prog=PROGRAM, description="Memory of the discrete step (Linux).").parse_args()
    generator = torch.Generator().manual_seed(0)
    labels = torch.empty(DATABASE, CLASSES)
    for block in labels.split(4096):  # in blocks, so that the random numbers do not set the peak
        block.copy_(torch.rand(block.shape, generator=generator) < 0.1)
    torch.ones(64, 64) @ torch.ones(64, 64)  # the buffers of the libraries
    before = memory("VmHWM")
    codes = torch.zeros(DATABASE, BITS)

    def step() -> None:
        sample = draw_sample(DATABASE, SAMPLES, 0, 0)
        sample_codes = torch.rand(3, SAMPLES, BITS, generator=generator) * 2 - 1
        discrete_step(codes, sample, labels, sample_codes, alpha=2.0, beta=0.1, gamma=10.0)

    taken = seconds(step)
    assert int((codes != 0).all(dim=1).sum()) == SAMPLES
    print(
        f"{SAMPLES:,} of {DATABASE:,} rows, {BITS} bits: {(memory('VmHWM') - before) / MIB:.0f} MiB in addition to the "
        f"process and its labels ({labels.nbytes / MIB:.0f} MiB); B takes {codes.nbytes / MIB:.0f} MiB of it; "
        f"{taken:.1f} s.\nThe whole similarity of sample and database would take "
        f"{4 * SAMPLES * DATABASE / MIB:,.0f} MiB, that of the sample and itself {4 * SAMPLES**2 / MIB:,.0f} MiB."
    )


if __name__ == "__main__":
    sys.exit(run_command(PROGRAM, main))
