"""Every loss and every estimator on a CUDA device: the numbers of the CPU, eager and as one compiled graph."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._inductor import config

from perf.losses.networks import SMALL
from perf.losses.rows import OURS, registry
from perf.losses.subjects import SEED, Subject, difference

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ROWS = {row.id: row for row in registry()}
CLOSE = 1e-3  # sums of float32 in another order


def draws_numbers(subject: Subject) -> bool:
    """Whether the results depend on a random generator; that of a GPU draws other numbers than that of the CPU."""
    torch.manual_seed(SEED)
    before = torch.get_rng_state()
    subject.results()  # starts from the same seed
    return not torch.equal(torch.get_rng_state(), before)


def moved(subject: Subject) -> Subject:
    """The same on the device."""
    there = copy.copy(subject)
    there.module = copy.deepcopy(subject.module).to("cuda")
    there.data = subject.data.to("cuda")
    there.parameters = [p for p in there.module.parameters() if p.requires_grad] if subject.row.is_loss else []
    return there


@pytest.mark.parametrize("id", list(ROWS))
def test_a_row_computes_on_a_gpu_what_it_does_on_the_cpu_and_the_same_when_compiled(id: str) -> None:
    subject = Subject(ROWS[id], OURS, SMALL)
    there = moved(subject)
    eager = there.results()
    assert all(x.device.type == "cuda" for x in eager.values())
    if not draws_numbers(subject):
        assert difference({key: x.cpu() for key, x in eager.items()}, subject.results()) < CLOSE
    compiled = copy.copy(there)
    compiled.module = torch.compile(there.module, fullgraph=True)
    with config.patch(fallback_random=True):
        assert difference(compiled.results(), eager) < CLOSE
