"""Tests run with one thread: on a busy machine, two threads of a small network mostly wait for each other.

What they write needs not survive a power failure: nothing waits for the disk. Programs that tests start and kill do.
"""

import os

import torch

torch.set_num_threads(1)
os.fsync = lambda file: None
