"""Packed sequences: the same as each sequence alone, and as the sequences padded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tritonrl import kernels

from .ragged_cases import ALL, DATA, DISCOUNTS, Args, assert_close, draw, flag, run

LENGTHS = [5, 1, 0, 9, 3, 0]
TOTAL = sum(LENGTHS)
OFFSETS = torch.tensor([0, *LENGTHS]).cumsum(0)


def pieces(args: Args) -> list[Args]:
    """The arguments of each sequence that is not empty."""
    found = []
    for i, length in enumerate(LENGTHS):
        if length:
            span = slice(int(OFFSETS[i]), int(OFFSETS[i + 1]))
            one = {n: x[span] if isinstance(x, Tensor) and x.dim() and len(x) == TOTAL else x for n, x in args.items()}
            if args.get("bootstrap_value") is not None:
                one["bootstrap_value"] = args["bootstrap_value"][i]
            found.append(one)
    return found


def separately(op: str, args: Args) -> tuple[Tensor, ...]:
    """Each sequence alone, put together again."""
    return tuple(torch.cat(parts) for parts in zip(*(run(op, one, 0) for one in pieces(args)), strict=True))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("features", [(), (2,)])
@pytest.mark.parametrize("op", ALL)
def test_packed_sequences_are_each_sequence_alone(op: str, features: tuple[int, ...], dtype: torch.dtype) -> None:
    args = draw(op, (TOTAL, *features), discounts="step")
    for x, y in zip(run(op, args, 0, cu_seqlens=OFFSETS.to(dtype)), separately(op, args), strict=True):
        assert_close(x, y)


@pytest.mark.parametrize("op", ALL)
def test_packed_sequences_are_the_padded_batch_with_valid(op: str) -> None:
    args = draw(op, (TOTAL,))
    longest, count = max(LENGTHS), len(LENGTHS)
    valid = torch.arange(longest) < torch.tensor(LENGTHS)[:, None]

    def padded(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        room = torch.full((count, longest), True if x.dtype is torch.bool else float("nan"), dtype=x.dtype)
        return room.masked_scatter(valid, x)

    in_rows = run(op, {**{n: padded(x) for n, x in args.items()}, "valid": valid}, -1)
    for x, y in zip(run(op, args, 0, cu_seqlens=OFFSETS), in_rows, strict=True):
        assert_close(x, y[valid])


def test_the_end_of_a_sequence_is_done_but_bootstraps_unless_it_is_terminated() -> None:
    one, none = torch.ones(4), torch.zeros(4, dtype=torch.bool)
    offsets = torch.tensor([0, 2, 4])
    given = {"reward": one, "value": 0 * one, "next_value": 10 * one, "gamma": 1.0, "lmbda": 1.0, "time_dim": 0}
    # terminated=None means "as done", and the end of a sequence alone terminates nothing.
    assert kernels.gae(**given, done=none, cu_seqlens=offsets)[0].tolist() == [22.0, 11.0, 22.0, 11.0]
    at_end = torch.tensor([False, True, False, False])
    assert kernels.gae(**given, done=at_end, cu_seqlens=offsets)[0].tolist() == [12.0, 1.0, 22.0, 11.0]


@pytest.mark.parametrize("which", ["", "valid", "skip", "valid skip"])
@pytest.mark.parametrize("features", [(), (2,)])
def test_derived_next_values_stay_within_their_sequence(features: tuple[int, ...], which: str) -> None:
    args = draw("gae", (TOTAL, *features))
    args |= {"next_value": None, "bootstrap_value": torch.randn(len(LENGTHS), *features, dtype=torch.float64)}
    args |= {name: flag((TOTAL, *features), {"valid": 0.7, "skip": 0.4}[name], 5) for name in which.split()}
    for x, y in zip(run("gae", args, 0, cu_seqlens=OFFSETS), separately("gae", args), strict=True):
        assert_close(x, y)


@pytest.mark.parametrize("op", ALL)
def test_gradients_of_packed_sequences_are_those_of_each_alone(op: str) -> None:
    args = draw(op, (TOTAL,), discounts="step")
    names = DATA[op] + DISCOUNTS[op]
    found = []
    for function in (lambda given: run(op, given, 0, cu_seqlens=OFFSETS), lambda given: separately(op, given)):
        leaves = [args[name].detach().requires_grad_() for name in names]
        y = function({**args, **dict(zip(names, leaves, strict=True))})
        found.append(torch.autograd.grad(sum(x.sin().sum() for x in y), leaves))
    for x, y in zip(*found, strict=True):
        assert_close(x, y)


@pytest.mark.parametrize("masked", [False, True])
def test_derivatives_through_packed_derived_next_values_pass_gradcheck(masked: bool) -> None:
    args = draw("gae", (TOTAL,))
    args |= {"valid": flag((TOTAL,), 0.7, 5), "skip": flag((TOTAL,), 0.3, 6)} if masked else {}
    leaves = [args["value"].requires_grad_(), torch.randn(len(LENGTHS), dtype=torch.float64, requires_grad=True)]

    def function(value: Tensor, bootstrap: Tensor) -> tuple[Tensor, ...]:
        given = {**args, "value": value, "next_value": None, "bootstrap_value": bootstrap}
        return run("gae", given, 0, cu_seqlens=OFFSETS)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_compiled_packed_calls_have_no_graph_break_and_take_other_offsets() -> None:
    args = draw("gae", (TOTAL,))
    args |= {"next_value": None, "bootstrap_value": torch.randn(len(LENGTHS), dtype=torch.float64)}

    def function(offsets: Tensor) -> Tensor:
        return run("gae", args, 0, cu_seqlens=offsets)[0]

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    others = torch.tensor([0, 4, 4, 8, 11, 15, TOTAL])
    with torch._dynamo.config.patch(error_on_recompile=True):
        for offsets in (OFFSETS, others):
            assert_close(compiled(offsets), function(offsets))


def test_vmap_over_packed_data_and_offsets_is_a_loop() -> None:
    cases = [draw("td_lambda_return", (TOTAL,), seed=i) for i in range(2)]
    offsets = torch.stack([OFFSETS, torch.tensor([0, 4, 4, 8, 11, 15, TOTAL])])
    rewards = torch.stack([case["reward"] for case in cases])

    def one(reward: Tensor, cu_seqlens: Tensor) -> Tensor:
        return run("td_lambda_return", {**cases[0], "reward": reward}, 0, cu_seqlens=cu_seqlens)[0]

    results = torch.func.vmap(one)(rewards, offsets)
    for i in range(2):
        assert_close(results[i], one(rewards[i], offsets[i]))


def test_no_sequences_at_all_are_fine() -> None:
    args = draw("gae", (0,))
    for x in run("gae", args, 0, cu_seqlens=torch.tensor([0])):
        assert x.shape == (0,)


def test_bad_offsets_get_errors_that_name_them() -> None:
    args = draw("reward_to_go", (TOTAL,))
    with pytest.raises(ValueError, match=f"cu_seqlens must go from 0 to {TOTAL}"):
        run("reward_to_go", args, 0, cu_seqlens=OFFSETS[:-3])
    with pytest.raises(ValueError, match="never decrease"):
        run("reward_to_go", args, 0, cu_seqlens=torch.tensor([0, 7, 4, TOTAL]))
    with pytest.raises(ValueError, match="cu_seqlens must go from 0"):
        run("reward_to_go", args, 0, cu_seqlens=torch.tensor([1, TOTAL]))
    with pytest.raises(TypeError, match="cu_seqlens must be an int32 or int64 tensor, got dtype"):
        run("reward_to_go", args, 0, cu_seqlens=OFFSETS.float())
    with pytest.raises(TypeError, match="cu_seqlens must be an int32 or int64 tensor, got list"):
        run("reward_to_go", args, 0, cu_seqlens=OFFSETS.tolist())
    with pytest.raises(RuntimeError, match="time_dim must be 0"):
        run("reward_to_go", draw("reward_to_go", (2, TOTAL)), -1, cu_seqlens=OFFSETS)
    with pytest.raises(RuntimeError, match="expected \\[n \\+ 1\\]"):
        run("reward_to_go", args, 0, cu_seqlens=OFFSETS[None])
    gae = draw("gae", (TOTAL,)) | {"next_value": None}
    with pytest.raises(RuntimeError, match="bootstrap_value has shape \\(4,\\), expected \\(6,\\)"):
        run("gae", gae, 0, cu_seqlens=OFFSETS, bootstrap_value=torch.zeros(4))
