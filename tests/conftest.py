"""What every test gets: two threads at most, the same seed, and repeatable hypothesis examples."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from hypothesis import settings

# No deadline: the first call of a kernel compiles it. Derandomised: a red test must be red again on the next run.
settings.register_profile("tritonrl", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("tritonrl")

torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start each test from one seed, so that its numbers do not depend on which tests ran before it."""
    torch.manual_seed(0)
    np.random.seed(0)
