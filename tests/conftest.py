"""One thread: the networks of the tests are small, and on a busy machine two threads mostly wait for each other."""

import torch

torch.set_num_threads(1)
