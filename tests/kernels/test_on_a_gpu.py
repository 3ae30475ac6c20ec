"""What only a CUDA device can show: capture in a graph, streams side by side, and compiled graphs of CUDA graphs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tritonrl import kernels

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
NUMBERS = {"gamma": 0.97, "lmbda": 0.9}
# Rows, strips, tiles and split: few and many lanes, in both layouts.
SHAPES = [((3, 130), -1), ((300, 4099), -1), ((2, 70_000), -1), ((130, 40_000), 0), ((9, 5), 0), ((70_001, 3), 0)]


def drawn(shape: tuple[int, int], seed: int, **more: Any) -> dict[str, Any]:
    """Arguments of GAE on the device."""
    generator = torch.Generator("cuda").manual_seed(seed)
    data = {name: torch.randn(shape, device="cuda", generator=generator) for name in ("reward", "value", "next_value")}
    ends = torch.rand(shape, device="cuda", generator=generator)
    return {**data, "done": ends < 0.05, "terminated": ends < 0.02, **NUMBERS, **more}


def masked(shape: tuple[int, int], seed: int) -> dict[str, Tensor]:
    """Masks on the device."""
    generator = torch.Generator("cuda").manual_seed(seed + 1000)
    return {
        "valid": torch.rand(shape, device="cuda", generator=generator) < 0.9,
        "skip": torch.rand(shape, device="cuda", generator=generator) < 0.3,
    }


def refilled(into: dict[str, Any], source: dict[str, Any]) -> None:
    for name, x in into.items():
        if isinstance(x, Tensor):
            x.copy_(source[name])


@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("with_masks", [False, True])
@pytest.mark.parametrize(("shape", "time_dim"), SHAPES)
def test_a_captured_call_computes_again_what_its_inputs_then_are(
    shape: tuple[int, int], time_dim: int, with_masks: bool, moments: bool
) -> None:
    def arguments(seed: int) -> dict[str, Any]:
        return drawn(shape, seed, time_dim=time_dim, moments=moments, **(masked(shape, seed) if with_masks else {}))

    given = arguments(0)
    kernels.gae(**given)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = kernels.gae(**given)
    for seed in (1, 2, 3):
        refilled(given, arguments(seed))
        graph.replay()
        for x, wanted in zip(captured, kernels.gae(**arguments(seed)), strict=True):
            assert torch.equal(x, wanted)


def test_calls_on_streams_side_by_side_do_not_disturb_one_another() -> None:
    cases = [drawn(shape, i, time_dim=dim, moments=True) for i, (shape, dim) in enumerate(SHAPES)]
    wanted = [kernels.gae(**given) for given in cases]
    streams = [torch.cuda.Stream() for _ in cases]
    torch.cuda.synchronize()
    for _ in range(20):
        found = []
        for given, stream in zip(cases, streams, strict=True):
            with torch.cuda.stream(stream):
                found.append(kernels.gae(**given))
        torch.cuda.synchronize()
        for results, right in zip(found, wanted, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(results, right, strict=True))


@pytest.mark.parametrize(("shape", "time_dim"), SHAPES)
def test_a_repeated_call_neither_waits_nor_allocates_more_than_its_results(
    shape: tuple[int, int], time_dim: int
) -> None:
    given = drawn(shape, 0, time_dim=time_dim)
    results = [kernels.gae(**given) for _ in range(3)][-1]
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = kernels.gae(**given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    # Split has a workspace, too.
    assert torch.cuda.memory_stats()["allocation.all.allocated"] - before <= len(again) + 2
    assert all(torch.equal(x, y) for x, y in zip(again, results, strict=True))


def test_a_step_with_gradients_compiles_to_cuda_graphs() -> None:
    def loss(reward: Tensor, value: Tensor, done: Tensor) -> Tensor:
        advantage, target = kernels.gae(reward, value, value.roll(-1, 1), done, done, **NUMBERS)
        return advantage.square().mean() + target.mean()

    given = drawn((300, 130), 0)
    compiled = torch.compile(loss, fullgraph=True, mode="reduce-overhead")
    for seed in range(4):
        given = drawn((300, 130), seed)
        value = given["value"].requires_grad_()
        wanted = torch.autograd.grad(loss(given["reward"], value, given["done"]), value)
        found = torch.autograd.grad(compiled(given["reward"], value, given["done"]), value)
        torch.testing.assert_close(found, wanted)
