"""What every test gets: one thread, the same seed, and repeatable hypothesis examples."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from hypothesis import settings

# No deadline: the first call of a kernel compiles it. Derandomised: a red test must be red again on the next run.
settings.register_profile("tritonrl", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("tritonrl")

# Compilers make millions of objects that live on. Looking through them for cycles as often as Python does by default took a
# tenth of the time of the tests that compile; whoever tests that something is freed collects by hand.
gc.set_threshold(100_000, 50, 100)

# On a busy machine two threads that wait for one another are many times slower than one.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start each test from one seed, so that its numbers do not depend on which tests ran before it."""
    torch.manual_seed(0)
    np.random.seed(0)
