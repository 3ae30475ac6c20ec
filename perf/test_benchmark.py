"""The cases of :mod:`perf.cases` under pytest-benchmark: ``pytest perf --benchmark-only -k 4096x128``.

Same data, same gate, same peers as ``python -m perf``. What pytest-benchmark does not do: interleave, evict caches, relate
to ``clone()``. Its clock is the full call, synchronised on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from .cases import Case, registry
from .machine import settle_allocator
from .peers import OURS, PEERS, Peer
from .records import ABSENT, FAILED, LEFT_OUT, WRONG
from .runner import gated

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module", autouse=True)
def _settled() -> None:
    settle_allocator()


def _waited(call: Callable[[], object]) -> Callable[[], object]:
    """On a GPU a call is over when the device is done with it."""

    def wait() -> object:
        results = call()
        torch.cuda.synchronize()
        return results

    return wait if DEVICE == "cuda" else call


@pytest.mark.parametrize("peer", [OURS, *PEERS], ids=lambda peer: peer.name.replace(" ", "-"))
@pytest.mark.parametrize("case", registry(DEVICE), ids=lambda case: case.id)
def test_time(benchmark: BenchmarkFixture, case: Case, peer: Peer) -> None:
    if case.mode == "graph":
        pytest.skip("a replay has no call to time: see python -m perf")
    result, call = gated(case, DEVICE, peer)
    if result.status in (ABSENT, LEFT_OUT):
        pytest.skip(f"{result.status}: {result.reason}")
    if result.status in (WRONG, FAILED) or call is None:
        pytest.fail(f"{result.status}: {result.reason}")
    benchmark.group = case.id
    benchmark.extra_info.update(bytes=result.bytes, smaller=result.smaller, error=result.error)
    benchmark(_waited(call))
