"""The Triton kernels, run: in Triton's interpreter on the CPU, or natively on a CUDA device. Started by test_triton.py.

The interpreter takes a good part of a second for a launch, so tiles are forced to be tiny: a handful of steps then needs
several programs, several tiles and a partial one of each. Both directions of time run, because a gradient runs forwards.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import triton.language as tl
from torch import Tensor

from tritonrl import kernels
from tritonrl.kernels import counters, launch, preparation
from tritonrl.kernels.backend import interpreting
from tritonrl.kernels.device import split as split_file
from tritonrl.kernels.device.moments import merge_partials
from tritonrl.kernels.geometry import Lanes, TooScattered
from tritonrl.kernels.plan import Plan, ceil_div

from . import oracle, ragged_oracle
from .arguments import (
    DATA,
    Args,
    assert_close,
    convert,
    draw,
    floating,
    gradients,
    laid_out,
    one_flag,
    run,
    scattered,
    upstream_for,
)
from .arguments import LAYOUTS as ALL_LAYOUTS

DEVICE = "cpu" if interpreting() else "cuda"
# The general recurrence always with a carry: without one it is a part of all the others.
PACKABLE = ("gae", "td_lambda_return", "reward_to_go", "vtrace")
OPS = ("linear_recurrence_carried", "linear_recurrence_forwards", "gae", "td_lambda_return", "reward_to_go", "vtrace")


@pytest.fixture(autouse=True)
def _on_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    launch.forget()
    if interpreting():
        import triton.runtime.interpreter as interpreter

        # Checks every addition of integers for overflow, at a third of the time. See far_apart for what is lost.
        with contextlib.suppress(AttributeError, TypeError):
            options = dataclasses.replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
            monkeypatch.setattr(interpreter.interpreter_builder, "options", options)
    with kernels.use_backend("triton"):
        yield
    launch.forget()


Force = Callable[..., None]


@pytest.fixture
def force(monkeypatch: pytest.MonkeyPatch) -> Force:
    """Make every launch use one strategy with tiny tiles."""

    def forced(
        strategy: str,
        lanes: int,
        vector: int = 1,
        vectors: int = 1,
        unroll: int = 1,
        by_outer: bool = False,
        width: int = 1,
        stacked: bool = False,
        ahead: bool = True,
    ) -> None:
        def choose(sizes: Lanes, *_: Any) -> Plan:
            blocks = ceil_div(sizes.inner if by_outer else sizes.lanes, lanes)
            grid: tuple[int, ...] = (blocks,)
            if strategy == "lanes":
                grid = (blocks, sizes.outer if by_outer else 1)
            if strategy == "split":
                grid = (blocks * ceil_div(sizes.steps, vector * vectors),)
            return Plan(strategy, grid, lanes, 1, vector, vectors, unroll, by_outer, width, stacked, ahead)

        monkeypatch.setattr(preparation, "choose_plan", choose)
        launch.forget()

    return forced


def strategies_used() -> set[str]:
    return {prepared.plan.strategy for prepared in launch._prepared.values()}


def to_device(args: Args) -> Args:
    """On the device with the strides kept; numbers, and discounts without a dimension, stay on the host."""
    if DEVICE == "cpu":
        return args
    return {name: moved(x) if isinstance(x, Tensor) and x.dim() else x for name, x in args.items()}


def moved(x: Tensor) -> Tensor:
    if not x.numel():
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=DEVICE)
    extent = x.storage_offset() + 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    whole = x.as_strided((extent,), (1,), 0).to(DEVICE)
    return whole.as_strided(x.shape, x.stride(), x.storage_offset())


def check(op: str, args: Args, time_dim: int, what: object = "") -> None:
    """The results are those of the oracle."""
    expected = oracle.compute(op, args, time_dim)
    for actual, wanted in zip(run(op, to_device(args), time_dim), expected, strict=True):
        assert_close(actual, wanted, what)


def check_gradients(
    op: str,
    args: Args,
    time_dim: int,
    names: tuple[str, ...] | None = None,
    used: tuple[bool, ...] = (True, True),
    accumulated: float | None = None,
) -> None:
    """The results of one forward pass and the gradients of one backward pass are those of the oracle."""
    names = names or tuple(n for n in floating(op) if isinstance(args[n], Tensor) and args[n].is_floating_point())
    given = to_device(args)
    like = given[DATA[op][0]]
    upstream = tuple(g.to(like) if use else None for g, use in zip(upstream_for(op, given), used, strict=False))
    check(op, args, time_dim)
    actual = gradients(op, given, time_dim, upstream, names)
    expected = oracle.gradients(op, args, time_dim, upstream, names)
    for name in names:
        assert_close(
            actual[name], expected[name], name, accumulated or (1e-12 if like.dtype is torch.float64 else 1e-5)
        )


def hide_nan(args: Args) -> Args:
    """NaN in every next value behind a terminal step."""
    if "next_value" not in args:
        return args
    ends = args["done"] if args.get("terminated") is None else args["terminated"]
    return args | {"next_value": args["next_value"].masked_fill(ends, math.nan)}


@pytest.mark.parametrize("op", OPS)
def test_rows_in_several_tiles_with_discounts_of_each_step(op: str, force: Force) -> None:
    force("rows", lanes=2, vector=2, vectors=2)
    args = hide_nan(convert(draw(op, (3, 6), -1, ends=0.3, discounts="step"), torch.float32))
    check_gradients(op, args, -1)


@pytest.mark.parametrize("op", OPS)
def test_strips_in_several_rounds_with_numbers_and_no_terminated(op: str, force: Force) -> None:
    force("lanes", lanes=2, unroll=2)
    args = convert(draw(op, (5, 3), 0, ends=0.3), torch.float32)
    args.pop("terminated", None)
    check_gradients(op, hide_nan(args), 0)


@pytest.mark.parametrize("op", OPS)
def test_tiles_that_look_back_with_discounts_that_are_one_number(op: str, force: Force) -> None:
    force("split", lanes=2, vectors=2)
    args = hide_nan(convert(draw(op, (3, 3), -1, ends=0.2, discounts="scalar"), torch.float32))
    check_gradients(op, args, -1)


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("op", OPS)
def test_tiles_of_contiguous_lanes_one_after_the_other(op: str, ahead: bool, force: Force) -> None:
    """Accesses of two lanes, vectors of two steps that lie apart, three tiles of which the last is not full."""
    force("rows", lanes=4, vector=2, vectors=2, width=2, stacked=True, ahead=ahead)
    args = hide_nan(convert(draw(op, (10, 6), 0, ends=0.3, discounts="step"), torch.float32))
    if ahead:
        check_gradients(op, args, 0)
    else:
        check(op, args, 0)


@pytest.mark.parametrize("ahead", [True, False])
def test_tiles_of_single_steps_when_the_next_is_not_fetched_ahead(ahead: bool, force: Force) -> None:
    force("rows", lanes=2, vector=1, vectors=4, ahead=ahead)
    check_gradients("vtrace", convert(draw("vtrace", (3, 9), -1, ends=0.2, discounts="scalar"), torch.float32), -1)


@pytest.mark.parametrize("op", ["vtrace", "linear_recurrence_carried"])
def test_tiles_of_contiguous_lanes_look_back(op: str, force: Force) -> None:
    force("split", lanes=2, vector=2, vectors=2, width=2, stacked=True)
    args = hide_nan(convert(draw(op, (10, 4), 0, ends=0.2, discounts="scalar"), torch.float32))
    check_gradients(op, args, 0)


@pytest.mark.parametrize("strategy", ["rows", "lanes", "split"])
def test_accesses_across_the_lanes_of_two_dimensions(strategy: str, force: Force) -> None:
    """[N, T, F] with one flag for all features, and four lanes an access: an outer index ends within a tile."""
    stacked = strategy != "lanes"
    force(strategy, lanes=8, vector=2 if stacked else 1, vectors=2, unroll=2, width=4, stacked=stacked)
    args = convert(draw("gae", (3, 6, 4), 1, ends=0.3), torch.float32)
    check("gae", {n: one_flag(0, x) if isinstance(x, Tensor) else x for n, x in args.items()}, 1)


@pytest.mark.parametrize(("vector", "dtype"), [(1, torch.float64), (4, torch.float32), (8, torch.bfloat16)], ids=str)
def test_vectors_of_every_width_in_every_dtype(vector: int, dtype: torch.dtype, force: Force) -> None:
    force("rows", lanes=1, vector=vector, vectors=2)
    for op in ("gae", "linear_recurrence_forwards"):
        check(op, hide_nan(convert(draw(op, (2, 3 * vector), -1, ends=0.1), dtype)), -1, op)


@pytest.mark.parametrize("strategy", ["rows", "lanes"])
def test_float64_keeps_its_precision_to_the_gradient(strategy: str, force: Force) -> None:
    force(strategy, lanes=2, vectors=2)
    for op in ("vtrace",) if strategy == "rows" else ("td_lambda_return",):
        check_gradients(op, hide_nan(draw(op, (2, 3), -1, discounts="scalar")), -1)


def test_half_precision_is_summed_in_float32_and_mixes_with_others(force: Force) -> None:
    force("lanes", lanes=4, unroll=4)
    check("gae", convert(draw("gae", (6, 3), 0, ends=0.1), torch.float16), 0)
    args = convert(draw("gae", (6, 3), 0, ends=0.1), torch.bfloat16)
    check("gae", args | {"value": args["value"].float(), "reward": (10 * args["reward"]).long()}, 0)
    accumulated = 4e-2  # what was saved for the backward pass is a result in bfloat16
    check_gradients(
        "gae", convert(draw("gae", (3, 2), 0, discounts="step"), torch.bfloat16), 0, accumulated=accumulated
    )


@pytest.mark.parametrize("by_outer", [True, False])
def test_lanes_in_two_dimensions(by_outer: bool, force: Force) -> None:
    force("lanes", lanes=2, unroll=2, by_outer=by_outer)
    args = convert(draw("gae", (2, 3, 3), 1, ends=0.3), torch.float32)
    args = {n: one_flag(0, x) if isinstance(x, Tensor) else x for n, x in args.items()}  # flags of [N, T, 1]
    check_gradients("gae", args, 1)
    carried = convert(draw("linear_recurrence_carried", (2, 3, 3), 1), torch.float32)
    check("linear_recurrence_carried", carried | {"carry": carried["carry"][:1]}, 1)


@pytest.mark.parametrize("strategy", ["rows", "split"])
def test_rows_in_two_dimensions(strategy: str, force: Force) -> None:
    force(strategy, lanes=4, vector=2, vectors=2)
    args = convert(draw("linear_recurrence_carried", (2, 3, 6), -1, ends=0.1), torch.float32)
    args["a"] = args["a"][:, :1]
    check("linear_recurrence_carried", args | {"carry": args["carry"].t().contiguous().t()}, -1)


def test_rows_that_begin_anywhere(force: Force) -> None:
    force("rows", lanes=2, vector=2, vectors=2)
    for layout in ("[N,T] gaps", "[N,T] mixed", "[N,T] expanded"):
        args = laid_out(
            "td_lambda_return", convert(draw("td_lambda_return", (3, 6), -1), torch.float32), ALL_LAYOUTS[layout]
        )
        check("td_lambda_return", args, -1, layout)
    odd = convert(draw("reward_to_go", (3, 7), -1), torch.float32)
    check("reward_to_go", {n: x[:, 1:] if isinstance(x, Tensor) else x for n, x in odd.items()}, -1, "offset by one")


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("op", ["gae", "vtrace"])
def test_only_one_of_two_outputs_is_used(op: str, first: bool, force: Force) -> None:
    force("lanes", lanes=4, unroll=2)
    args = convert(draw(op, (3, 3), 0, ends=0.3, discounts="scalar"), torch.float32)
    check_gradients(op, args, 0, used=(first, not first))


@pytest.mark.parametrize("op", ["linear_recurrence_forwards", "vtrace"])
def test_the_gradient_of_a_sum_has_strides_of_zero(op: str, force: Force) -> None:
    force("rows", lanes=2, vectors=4)
    args = to_device(convert(draw(op, (2, 3), -1, ends=0.3), torch.float32))
    ones = tuple(torch.ones((), device=DEVICE).expand(2, 3) for _ in upstream_for(op, args))
    actual = gradients(op, args, -1, ones, DATA[op])
    for name, wanted in oracle.gradients(op, args, -1, ones, DATA[op]).items():
        assert_close(actual[name], wanted, name, 1e-5)


@pytest.mark.parametrize("strategy", ["rows", "lanes", "split"])
def test_nothing_passes_a_cut(strategy: str, force: Force) -> None:
    """Padding of NaN behind a done: no result before it and no gradient anywhere sees it."""
    force(strategy, lanes=2, vectors=2, unroll=2 if strategy == "lanes" else 1)
    for op in {"rows": ("vtrace",), "lanes": ("linear_recurrence_carried", "gae"), "split": ("td_lambda_return",)}[
        strategy
    ]:
        clean = convert(draw(op, (2, 5), -1, discounts="scalar"), torch.float32)
        behind = (torch.arange(5) > 2).expand(2, 5)
        if op.startswith("linear"):
            clean["a"] = clean["a"].masked_fill(torch.arange(5) == 2, 0.0)
        else:
            clean["done"] = clean["done"] | (torch.arange(5) == 2)
        poisoned = [name for name in DATA[op] if name != "a"]
        args = clean | {name: clean[name].masked_fill(behind, math.nan) for name in poisoned}
        upstream = tuple(g.float().masked_fill(behind, 0.0) for g in upstream_for(op, args))
        names = tuple(name for name in floating(op) if name != "carry")
        for actual, wanted in zip(run(op, to_device(args), -1), oracle.compute(op, clean, -1), strict=True):
            assert_close(actual[:, :3], wanted[:, :3], op)
        actual_gradients = gradients(op, to_device(args), -1, tuple(g.to(DEVICE) for g in upstream), names)
        for name, wanted in oracle.gradients(op, clean, -1, upstream, names).items():
            found = actual_gradients[name]
            if name == "a":  # at the cut it is what lies behind, unless that is no number
                found[:, 2] = wanted[:, 2] = 0.0
            assert_close(found, wanted, (op, name), 1e-5)


# Twelve steps in sequences of several, of one, and of none at the start, in the middle and at the end.
OFFSETS = torch.tensor([0, 0, 5, 6, 6, 12, 12])


def each_alone(x: Any) -> list[Any]:
    """What belongs to the steps of each sequence; a number belongs to all."""
    spans = [slice(i, j) for i, j in itertools.pairwise(OFFSETS.tolist()) if i < j]
    return [x[span] if isinstance(x, Tensor) and x.dim() else x for span in spans]


def check_packed(op: str, args: Args, dtype: torch.dtype) -> None:
    """Results and gradients of the packed sequences are those of the oracle, asked for each sequence alone."""
    given = to_device(args) | {"cu_seqlens": OFFSETS.to(DEVICE, dtype)}
    alone = [dict(zip(args, one, strict=True)) for one in zip(*map(each_alone, args.values()), strict=True)]
    expected = zip(*(oracle.compute(op, one, 0) for one in alone), strict=True)
    for actual, wanted in zip(run(op, given, 0), expected, strict=True):
        assert_close(actual, torch.cat(wanted), op)
    names = tuple(n for n in floating(op) if isinstance(args[n], Tensor))
    upstream = tuple(g.to(given[DATA[op][0]]) for g in upstream_for(op, args))
    actual_gradients = gradients(op, given, 0, upstream, names)
    each = zip(*map(each_alone, upstream), strict=True)
    found = [oracle.gradients(op, one, 0, grads, names) for one, grads in zip(alone, each, strict=True)]
    for name in names:
        assert_close(actual_gradients[name], torch.cat([one[name] for one in found]), (op, name), 1e-5)


@pytest.mark.parametrize("op", PACKABLE)
def test_rows_end_where_packed_sequences_do(op: str, force: Force) -> None:
    force("rows", lanes=1, vector=2, vectors=2)
    check_packed(op, hide_nan(convert(draw(op, (12,), 0, ends=0.2, discounts="step"), torch.float32)), torch.int32)


@pytest.mark.parametrize("op", PACKABLE)
def test_strips_end_where_packed_sequences_do(op: str, force: Force) -> None:
    """Without terminated, an end that is not done bootstraps, and one that is done does not."""
    force("lanes", lanes=2, unroll=3)
    args = convert(draw(op, (12, 3), 0, ends=0.3), torch.float32)
    args.pop("terminated", None)
    check_packed(op, hide_nan(args), torch.int64)


@pytest.mark.parametrize("op", ["gae", "vtrace"])
def test_tiles_that_look_back_end_where_packed_sequences_do(op: str, force: Force) -> None:
    force("split", lanes=2, vector=2, vectors=2, width=2, stacked=True)
    args = convert(draw(op, (12, 4), 0, ends=0.1, discounts="step"), torch.float32)
    args.pop("terminated")
    check_packed(op, {n: one_flag(0, x) if isinstance(x, Tensor) else x for n, x in args.items()}, torch.int32)


def derived_alone(args: Args, value: Tensor, bootstrap_value: Tensor) -> list[Tensor]:
    """Results of the oracle for each sequence with a bootstrap value of its own, one behind the other."""
    found = []
    for i, (first, behind) in enumerate(itertools.pairwise(OFFSETS.tolist())):
        if first < behind:
            one = {n: x[first:behind] if isinstance(x, Tensor) else x for n, x in (args | {"value": value}).items()}
            found.append(ragged_oracle.compute("gae", one | {"bootstrap_value": bootstrap_value[i]}, 0))
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


@pytest.mark.parametrize(
    ("features", "plan"),
    [
        ((), {"strategy": "rows", "lanes": 1, "vector": 2, "vectors": 2}),
        ((3,), {"strategy": "lanes", "lanes": 2, "unroll": 3}),
        ((4,), {"strategy": "split", "lanes": 2, "vector": 2, "vectors": 2, "width": 2, "stacked": True}),
    ],
)
def test_next_values_of_packed_sequences_are_derived_in_the_kernel(
    features: tuple[int, ...], plan: dict[str, Any], force: Force
) -> None:
    """A sequence without steps has a bootstrap value that nobody reads."""
    force(**plan)
    args = convert(draw("gae", (12, *features), 0, ends=0.2), torch.float32) | {"next_value": None}
    if features:
        del args["terminated"]
    empty = (OFFSETS[1:] == OFFSETS[:-1]).view(-1, *(1 for _ in features))
    drawn = torch.randn(6, *features, generator=torch.Generator().manual_seed(3))
    leaves = [x.requires_grad_() for x in (args.pop("value"), drawn.masked_fill(empty, math.nan))]
    given = to_device(args) | {"cu_seqlens": OFFSETS.to(DEVICE, torch.int32)}
    value, bootstrap_value = (x.to(DEVICE) for x in leaves)
    results = run("gae", given | {"value": value, "bootstrap_value": bootstrap_value}, 0)
    expected = derived_alone(args, *leaves)
    upstream = upstream_for("gae", args | {"value": leaves[0], "next_value": args["reward"]})
    for actual, wanted in zip(results, expected, strict=True):
        assert_close(actual, wanted.detach())
    found = torch.autograd.grad(results, leaves, [g.to(y) for g, y in zip(upstream, results, strict=True)])
    for x, y in zip(found, torch.autograd.grad(expected, leaves, upstream), strict=True):
        assert_close(x, y.double(), "", 1e-5)


def masked_and_derived(which: str, shape: tuple[int, ...], time_dim: int) -> Args:
    """With holes over the edges of tiles; NaN stands wherever nothing may look."""
    drawn = convert(draw("gae", shape, time_dim, ends=0.15), torch.float32)
    generator = torch.Generator().manual_seed(len(which))
    masks = {name: torch.rand(shape, generator=generator) < 0.6 for name in which.split()}
    long_hole = torch.zeros(shape, dtype=torch.bool)
    long_hole.narrow(time_dim, shape[time_dim] // 3, shape[time_dim] // 2).fill_(True)
    if "valid" in masks:
        masks["valid"] &= ~long_hole
    else:
        masks["skip"] |= long_hole
    unread = masks.get("skip", torch.zeros_like(long_hole)) | ~masks.get("valid", torch.ones_like(long_hole))
    args = {n: x.masked_fill(unread, math.nan) if n in ("reward", "value") else x for n, x in drawn.items()}
    return args | masks | {"next_value": None}


DERIVING = {
    "rows": ((3, 14), -1, {"strategy": "rows", "lanes": 2, "vector": 2, "vectors": 2}),
    "rows at once": ((3, 6), -1, {"strategy": "rows", "lanes": 4, "vector": 2, "vectors": 4}),
    "stacked": ((14, 4), 0, {"strategy": "rows", "lanes": 2, "vector": 2, "vectors": 2, "width": 2, "stacked": True}),
    "lanes": ((9, 3), 0, {"strategy": "lanes", "lanes": 2, "unroll": 2}),
    "split": ((3, 18), -1, {"strategy": "split", "lanes": 2, "vector": 2, "vectors": 2}),
    "split of one row": ((2, 18), -1, {"strategy": "split", "lanes": 1, "vector": 2, "vectors": 2}),
    "split of lanes": (
        *((14, 4), 0),
        {"strategy": "split", "lanes": 2, "vector": 2, "vectors": 2, "width": 2, "stacked": True},
    ),
}


def look_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps at once, so that a hole takes several looks. (Of what was compiled, Triton takes no other constants.)"""
    if not interpreting():
        return
    monkeypatch.setattr(split_file, "SEARCHED_IN_ONE", tl.constexpr(2))
    monkeypatch.setattr(split_file, "SEARCHED", tl.constexpr(4))


@pytest.mark.parametrize("which", ["valid", "skip", "valid skip"])
@pytest.mark.parametrize("name", DERIVING)
def test_next_values_are_derived_past_masks_in_the_kernel(
    name: str, which: str, force: Force, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_briefly(monkeypatch)
    shape, time_dim, plan = DERIVING[name]
    force(**plan)
    args = masked_and_derived(which, shape, time_dim)
    lanes = [n for d, n in enumerate(shape) if d != time_dim % len(shape)]
    args["bootstrap_value"] = torch.randn(lanes, generator=torch.Generator().manual_seed(5))
    *found, moments = kernels.gae(**to_device(args), time_dim=time_dim, moments=True)
    expected = ragged_oracle.compute("gae", args, time_dim)
    for actual, wanted in zip(found, expected, strict=True):
        assert_close(actual, wanted, (name, which))
    assert strategies_used() == {plan["strategy"]} and "linear_recurrence" not in {key[0] for key in launch._prepared}
    counted = torch.ones(shape, dtype=torch.bool) & args.get("valid", True) & ~args.get("skip", torch.tensor(False))
    assert moments[0] == counted.sum()
    torch.testing.assert_close(moments[1].cpu(), expected[0][counted].mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("which", ["valid", "skip", "valid skip"])
@pytest.mark.parametrize("name", ["rows", "lanes", "split", "split of lanes"])
def test_next_values_of_packed_sequences_are_derived_past_masks_in_the_kernel(
    name: str, which: str, force: Force, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_briefly(monkeypatch)
    _, _, plan = DERIVING[name]
    features = {"rows": (), "lanes": (3,), "split": (2,), "split of lanes": (4,)}[name]
    force(**plan | {"lanes": min(plan["lanes"], *(features or (1,)))})
    args = masked_and_derived(which, (12, *features), 0)
    bootstrap_value = torch.randn(6, *features, generator=torch.Generator().manual_seed(3))
    value = args.pop("value")
    given = {"value": value, "bootstrap_value": bootstrap_value, "cu_seqlens": OFFSETS.to(torch.int32)}
    results = run("gae", to_device(args | given), 0)
    for actual, wanted in zip(results, derived_alone(args, value, bootstrap_value), strict=True):
        assert_close(actual, wanted, (name, which))
    assert strategies_used() == {plan["strategy"]} and "linear_recurrence" not in {key[0] for key in launch._prepared}


def test_bootstrap_values_in_a_layout_of_their_own_are_copied_with_the_data() -> None:
    shape = (12, 2, 2, 2)
    args = convert(draw("gae", shape, 0), torch.float32)
    args |= {"next_value": None, "bootstrap_value": torch.randn(6, *shape[1:])}
    args = {n: scattered(i, x) if isinstance(x, Tensor) else x for i, (n, x) in enumerate(args.items())}
    args |= {"cu_seqlens": OFFSETS}
    with kernels.use_backend("torch"):
        expected = run("gae", args, 0)
    for actual, wanted in zip(run("gae", to_device(args), 0), expected, strict=True):
        assert_close(actual, wanted.double())


def test_a_nan_that_nothing_hides_is_shown(force: Force) -> None:
    force("lanes", lanes=2)
    args = convert(draw("vtrace", (2, 2), 0, ends=0.0), torch.float32)
    args["log_pi"][1, 1] = math.nan  # a minimum of the processor's own would take the threshold instead
    check("vtrace", args, 0)


def test_with_lambda_one_the_next_value_of_an_open_step_may_be_nan(force: Force) -> None:
    force("rows", lanes=2, vectors=2)
    args = convert(draw("td_lambda_return", (2, 3), -1, ends=0.0), torch.float32) | {"lmbda": 1.0}
    args["next_value"][:, :-1] = math.nan
    check_gradients("td_lambda_return", args, -1)


@pytest.mark.parametrize("op", ["td_lambda_return", "linear_recurrence_forwards"])
def test_a_tile_may_have_to_look_back_to_the_very_first(op: str, force: Force, monkeypatch: pytest.MonkeyPatch) -> None:
    force("split", lanes=2, vectors=2)
    real = launch.prepare

    def lazy(*args: Any) -> launch.Prepared:
        prepared = real(*args)
        prepared.constants["LAZY"] = True
        return prepared

    monkeypatch.setattr(launch, "prepare", lazy)
    check(op, convert(draw(op, (2, 7), -1, ends=0.05), torch.float32), -1)


# As long as only a GPU can run; and something for the interpreter.
LONG = [((1, 2**24), -1), ((2**17, 64), 0)] if DEVICE == "cuda" else [((1, 8196), -1)]


@pytest.mark.parametrize(("gamma", "lmbda", "ends"), [(0.99, 0.95, 0.001), (1.0, 0.9999, 0.0)])
@pytest.mark.parametrize(("shape", "time_dim"), LONG)
def test_long_lanes_are_right_and_have_the_same_bits_in_every_run(
    shape: tuple[int, int], time_dim: int, gamma: float, lmbda: float, ends: float
) -> None:
    reward, value, next_value = (torch.randn(shape) for _ in range(3))
    args = {"reward": reward, "value": value, "next_value": next_value, "done": torch.rand(shape) < ends}
    numbers = {"gamma": gamma, "lmbda": lmbda, "time_dim": time_dim}
    with kernels.use_backend(None if DEVICE == "cuda" else "numba"):
        exact = kernels.gae(**{n: x.double() if x.is_floating_point() else x for n, x in args.items()}, **numbers)
    here = to_device(args)
    runs = [kernels.gae(**here, **numbers) for _ in range(20 if DEVICE == "cuda" else 1)]
    assert strategies_used() == {"split"}
    assert all(torch.equal(x, y) for again in runs[1:] for x, y in zip(again, runs[0], strict=True))
    for x, y in zip(runs[0], exact, strict=True):
        assert (x.cpu().double() - y).abs().max() < 1e-4 * y.abs().max()


def test_lane_dimensions_that_do_not_merge_are_copied_into_one_layout() -> None:
    op = "linear_recurrence_carried"
    args = convert(draw(op, (2, 3, 2, 2, 3), 2), torch.float32)
    args = {name: scattered(i + 1, x) for i, (name, x) in enumerate(args.items())}
    with pytest.raises(TooScattered):
        preparation.merge_lanes(args["b"].shape, -3, [args["a"].stride(), args["b"].stride()])
    check(op, args, 2)


@pytest.mark.parametrize(
    ("op", "shape", "time_dim", "strategy"),
    [
        ("gae", (2, 1), -1, "lanes"),
        ("gae", (1, 127), -1, "rows"),
        ("vtrace", (3, 129), -1, "rows"),
        ("td_lambda_return", (2, 5), 0, "lanes"),
        ("td_lambda_return", (5, 2), 0, "rows"),
        ("reward_to_go", (2, 33, 3), 1, "rows"),
        ("linear_recurrence_forwards", (2, 1000), -1, "rows"),
        ("reward_to_go", (2052, 3), 0, "split"),
    ],
)
def test_the_plans_that_are_really_made(op: str, shape: tuple[int, ...], time_dim: int, strategy: str) -> None:
    check(op, convert(draw(op, shape, time_dim, ends=0.05), torch.float32), time_dim)
    assert strategies_used() == {strategy}


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)], ids=str)
def test_nothing_is_launched_for_nothing(shape: tuple[int, ...]) -> None:
    for op in OPS:
        check_gradients(op, convert(draw(op, shape, -1, discounts="step"), torch.float32), -1)
    assert not launch._prepared


def far_apart(x: Tensor, gap: int) -> Tensor:
    """A copy of ``x`` ``[lanes, steps]`` with ``gap`` bytes from step to step. Memory that is not touched is not used."""
    far = torch.empty(1 + x.shape[0] + gap * (x.shape[1] - 1), dtype=torch.bool, device=DEVICE)
    far = far.as_strided(x.shape, (1, gap))
    for t in range(x.shape[1]):
        far[:, t] = x[:, t].to(DEVICE)
    return far


@pytest.mark.parametrize("strategy", ["rows", "lanes", "split"])
def test_offsets_beyond_two_to_the_31(strategy: str, force: Force, monkeypatch: pytest.MonkeyPatch) -> None:
    if interpreting():
        import triton.runtime.interpreter as interpreter

        # It copies every storage onto itself at the end, which would touch it all.
        monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *args: None)
    force(strategy, lanes=2, vectors=2)
    args = convert(draw("reward_to_go", (3, 4), -1, ends=0.4), torch.float32)
    assert args["done"].any() and not args["done"].all()
    wanted = oracle.compute("reward_to_go", args, -1)[0]
    given = to_device(args) | {"done": far_apart(args["done"], 2**30)}
    assert given["done"].stride(-1) * 3 > 2**31
    assert_close(run("reward_to_go", given, -1)[0], wanted)
    assert all(prepared.constants["WIDE"] for prepared in launch._prepared.values())


@pytest.mark.parametrize("strategy", ["rows", "lanes"])
def test_wide_offsets_work_in_every_kind_of_access(
    strategy: str, force: Force, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Carries, taps, outputs and lanes of two dimensions, as if the data were large."""
    force(strategy, lanes=2, vector=2 if strategy == "rows" else 1, vectors=2, by_outer=strategy == "lanes")
    monkeypatch.setattr(preparation, "_FOUR_BYTE_OFFSETS", -1)
    shape, time_dim = ((3, 4), -1) if strategy == "rows" else ((2, 3, 3), 1)
    check_gradients(
        "linear_recurrence_carried",
        convert(draw("linear_recurrence_carried", shape, time_dim), torch.float32),
        time_dim,
    )
    check_gradients(
        "td_lambda_return",
        convert(draw("td_lambda_return", shape, time_dim, discounts="step"), torch.float32),
        time_dim,
    )


def parts_with(count: list[float], mean: list[float], m2: list[float]) -> Tensor:
    return torch.tensor([count, mean, m2], dtype=torch.float64).t().contiguous()


PARTS = {
    "one": parts_with([3.0], [2.0], [0.5]),
    "none that counts": torch.tensor([[0.0, math.nan, math.inf]] * 3, dtype=torch.float64),
    "some that do not count": parts_with([2.0, 0.0, 1.0], [1.0, math.nan, 5.0], [2.0, math.nan, 0.0]),
    "a NaN": parts_with([2.0, 2.0], [math.nan, 5.0], [2.0, 2.0]),
    "an infinity": parts_with([2.0, 2.0, 3.0], [math.inf, 5.0, 0.0], [2.0, 2.0, 1.0]),
    "infinite deviations": parts_with([2.0, 2.0, 3.0], [1.0, 5.0, 0.0], [math.inf, 2.0, 1.0]),
    "far from zero": parts_with([7.0] * 5, [1e9 + i for i in range(5)], [1e-3] * 5),
}


def workspace_with(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """Partial moments as programs leave them, with garbage where there are none."""
    room = 16 * ceil_div(len(parts), 16)
    laid_out = torch.full((3, room), math.nan, dtype=dtype, device=DEVICE)
    laid_out[0].view(torch.int32)[:room] = torch.cat(
        [parts[:, 0].int(), torch.full((room - len(parts),), 7, dtype=torch.int32, device=DEVICE)]
    )
    laid_out[1:, : len(parts)] = parts[:, 1:].t()
    return laid_out


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("block", [4, 16])
@pytest.mark.parametrize("name", PARTS)
def test_moments_of_programs_merge_as_those_of_users_do(name: str, block: int, dtype: torch.dtype) -> None:
    """Blocks that do not divide the parts, blocks that hold them all; the same numbers, NaN where those are."""
    parts = PARTS[name].to(DEVICE)
    merged = torch.full((3,), -1.0, dtype=torch.float64, device=DEVICE)
    merge_partials[(1,)](workspace_with(parts, dtype), merged, len(parts), block, num_warps=1)
    wanted = kernels.merge_moments(parts.to(dtype).double())
    torch.testing.assert_close(merged, wanted, rtol=1e-14, atol=0, equal_nan=True)


def test_many_moments_merge_in_several_blocks_to_those_of_the_whole() -> None:
    x = 1e6 + torch.randn(37, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mean = x.mean(1)
    parts = torch.stack([torch.full((37,), 11.0), mean, (x - mean[:, None]).square().sum(1)], 1).to(DEVICE)
    merged, again = (torch.empty(3, dtype=torch.float64, device=DEVICE) for _ in range(2))
    for out in (merged, again):
        merge_partials[(1,)](workspace_with(parts, torch.float64), out, 37, 8, num_warps=1)
    assert torch.equal(merged, again)
    wanted = torch.stack([torch.tensor(37.0 * 11), x.mean(), (x - x.mean()).square().sum()])
    torch.testing.assert_close(merged.cpu(), wanted, rtol=1e-10, atol=0)


def test_counters_come_round_and_are_zero_when_they_do(force: Force, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "TURN", 2)
    monkeypatch.setattr(counters, "_by_device", {})
    args = convert(draw("gae", (3, 2), -1, ends=0.3), torch.float32)
    for strategy, tiles in (("rows", {"lanes": 2}), ("lanes", {"lanes": 2}), ("split", {"lanes": 2, "vectors": 1})):
        force(strategy, **tiles)
        found = [kernels.gae(**to_device(args), time_dim=-1, moments=True)[2] for _ in range(3)]
        assert all(torch.equal(x, found[0]) for x in found)
    (used,) = counters._by_device.values()
    assert not used.all.any()
    assert next(used.turns) == 9


def off_by_one(x: Tensor) -> Tensor:
    """The same numbers in the same layout, one element off an aligned address."""
    return torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)[1:].view(x.shape).copy_(x)


def test_a_call_like_one_before_computes_what_it_is_given() -> None:
    """Again and again, with other numbers and with pointers that are aligned otherwise. On a device only the first launch of
    each alignment goes Triton's own way."""
    for round_, shifted in enumerate(("", "", "", "value", "value", "done", "value", "")):
        args = convert(draw("gae", (3, 8), -1, ends=0.3), torch.float32)
        args = {n: x.roll(round_, 0) if isinstance(x, Tensor) else x * 0.9**round_ for n, x in args.items()}
        expected = oracle.compute("gae", args, -1)
        given = {n: off_by_one(x) if n == shifted else x for n, x in to_device(args).items()}
        for actual, wanted in zip(run("gae", given, -1), expected, strict=True):
            assert_close(actual, wanted, (round_, shifted))


def test_moments_of_a_call_like_one_before_are_its_own(force: Force) -> None:
    force("rows", lanes=2, vector=2, vectors=2)
    for scale in (1.0, 3.0, -2.0):
        args = convert(draw("gae", (5, 8), -1, ends=0.3), torch.float32)
        args = {n: scale * x if n in DATA["gae"] else x for n, x in args.items()}
        advantage, _, moments = kernels.gae(**to_device(args), time_dim=-1, moments=True)
        x = advantage.double()
        wanted = torch.stack([torch.full_like(x.mean(), x.numel()), x.mean(), (x - x.mean()).square().sum()])
        torch.testing.assert_close(moments, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("which", ["", "valid", "skip", "valid skip"])
def test_standardised_as_torch_does_it(which: str, dtype: torch.dtype) -> None:
    """Again and again, in whole blocks and with a rest that no access takes, in memory orders that are not contiguous."""
    for shape in ((5,), (64, 96), (7, 299)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).add(5).to(DEVICE, dtype)
        given = {name: torch.rand(shape).to(DEVICE) < 0.7 for name in which.split()}
        if len(shape) == 2:
            x, given = x.t(), {name: m.t() for name, m in given.items()}
        for scale in (1.0, 2.0):
            moments = torch.tensor([x.numel(), 4.5 * scale, 3.0 * x.numel()], dtype=torch.float64, device=DEVICE)
            found = kernels.standardise(x, moments, **given, eps=1e-3)
            with kernels.use_backend("torch"):
                wanted = kernels.standardise(x, moments, **given, eps=1e-3)
            assert found.stride() == wanted.stride() == x.stride()
            torch.testing.assert_close(found, wanted, rtol=8 * torch.finfo(dtype).eps, atol=0)


def test_standardised_with_moments_that_are_no_good_as_torch_does_it() -> None:
    x = torch.tensor([1.0, 2.0, -3.0], device=DEVICE)
    for moments in ([3.0, 1.0, math.nan], [3.0, math.inf, 1.0], [3.0, 1.0, math.inf], [0.0, 0.0, 0.0], [3.0, 1.0, 0.0]):
        for eps in (1e-4, 0.0):
            given = torch.tensor(moments, dtype=torch.float64, device=DEVICE)
            with kernels.use_backend("torch"):
                wanted = kernels.standardise(x, given, eps=eps)
            torch.testing.assert_close(
                kernels.standardise(x, given, eps=eps), wanted, rtol=1e-6, atol=0, equal_nan=True
            )
