"""Tests run with one thread: on a busy machine, two threads of a small network mostly wait for each other."""

import torch

torch.set_num_threads(1)
