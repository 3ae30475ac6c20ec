"""Every op on every backend of this machine against a float64 scalar loop: shapes, layouts, dtypes, flags, discounts."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tritonrl import kernels

from . import oracle
from .arguments import (
    ALL,
    BOOTSTRAPPING,
    DATA,
    DISCOUNTS,
    LAYOUTS,
    NUMBERS,
    WITH_FLAGS,
    Args,
    assert_close,
    convert,
    dense,
    draw,
    laid_out,
    run,
    scattered,
    transposed,
    with_gaps,
)

# (lanes, steps): odd on purpose, around the sizes of blocks, and empty. One, three or many lanes, because Numba compiles a
# kernel for every small number of them: tests/kernels/test_numba.py takes care of the others.
SIZES = [(1, 1), (3, 2), (3, 127), (1, 129), (3, 1000), (37, 5), (0, 4), (3, 0)]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

WHERE = [("cpu", "torch"), ("cpu", None)]
if torch.cuda.is_available():
    WHERE.append(("cuda", None))


@pytest.fixture(params=WHERE, ids=lambda where: f"{where[0]}-{where[1] or 'default'}")
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device, served by the backend under test."""
    where, backend = request.param
    with kernels.use_backend(backend):
        yield where


@functools.cache
def drawn(op: str, layout: str, lanes: int, steps: int) -> tuple[Args, tuple[Tensor, ...]]:
    """Arguments in a layout, and what the oracle makes of them (once for all backends)."""
    shape, time_dim, _ = LAYOUTS[layout]
    args = laid_out(op, convert(draw(op, shape(lanes, steps), time_dim), torch.float32), LAYOUTS[layout])
    return args, oracle.compute(op, args, time_dim)


def check(op: str, args: Args, time_dim: int, device: str = "cpu", what: object = "") -> None:
    """The op on ``device`` gives what the oracle gives."""
    expected = oracle.compute(op, args, time_dim)
    for actual, wanted in zip(run(op, on(device, args), time_dim), expected, strict=True):
        assert_close(actual, wanted, what)


def on(device: str, args: Args) -> Args:
    """The arguments on ``device``, strides and all."""
    if device == "cpu":
        return args
    return {name: moved(x, device) if isinstance(x, Tensor) else x for name, x in args.items()}


def moved(x: Tensor, device: str) -> Tensor:
    """A copy on ``device`` with the same strides and offset, gaps included."""
    if x.numel() == 0:
        return x.to(device)
    extent = x.storage_offset() + 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    whole = x.as_strided((extent,), (1,), 0).to(device)
    return whole.as_strided(x.shape, x.stride(), x.storage_offset())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", ALL)
def test_every_layout_gives_what_the_loop_gives(op: str, layout: str, device: str) -> None:
    time_dim = LAYOUTS[layout].time_dim
    for lanes, steps in SIZES if "scattered" not in layout else [(3, 1), (3, 17), (0, 4), (3, 0)]:
        args, expected = drawn(op, layout, lanes, steps)
        for actual, wanted in zip(run(op, on(device, args), time_dim), expected, strict=True):
            assert actual.dtype is torch.float32
            assert actual.device.type == device
            assert_close(actual, wanted, f"{lanes} lanes of {steps} steps")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", ALL)
def test_every_dtype_is_summed_in_at_least_float32_and_comes_back_as_it_came(
    op: str, dtype: torch.dtype, device: str
) -> None:
    for shape, time_dim in (((3, 129), -1), ((33, 40), 0)):
        args = convert(draw(op, shape, time_dim, ends=0.05), dtype)
        expected = oracle.compute(op, args, time_dim)
        for actual, wanted in zip(run(op, on(device, args), time_dim), expected, strict=True):
            assert actual.dtype is dtype
            assert_close(actual, wanted, shape)


@pytest.mark.parametrize("op", [op for op in ALL if len(DATA[op]) > 1])
def test_mixed_dtypes_are_promoted_like_ordinary_arithmetic(op: str, device: str) -> None:
    for narrower, wider, promoted in (
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float16, torch.bfloat16, torch.float32),
        (torch.float32, torch.float64, torch.float64),
        (torch.float16, torch.float64, torch.float64),
    ):
        args = convert(draw(op, (3, 17), -1), narrower)
        last = DATA[op][-1]
        args[last] = args[last].to(wider)
        for actual, wanted in zip(run(op, on(device, args), -1), oracle.compute(op, args, -1), strict=True):
            assert actual.dtype is promoted
            # Float32 arithmetic on promoted inputs: a narrow carry or reward does not make it less exact.
            assert_close(actual, wanted, (narrower, wider))


@pytest.mark.parametrize("integer", [torch.int64, torch.int32, torch.uint8, torch.bool], ids=str)
def test_an_integer_reward_counts_as_a_number(integer: torch.dtype, device: str) -> None:
    for op in ("gae", "td_lambda_return", "vtrace"):
        args = convert(draw(op, (3, 19), -1), torch.float32)
        args["reward"] = torch.randint(0, 2, (3, 19)).to(integer)
        expected = oracle.compute(op, {**args, "reward": args["reward"].double()}, -1)
        for actual, wanted in zip(run(op, on(device, args), -1), expected, strict=True):
            assert actual.dtype is torch.float32
            assert_close(actual, wanted, op)


def test_integers_alone_give_the_default_float(device: str) -> None:
    reward = torch.tensor([[1, 2, 3], [4, 5, 6]], device=device)
    done = torch.tensor([[False, True, False], [False, False, False]], device=device)
    returns = kernels.reward_to_go(reward, done, gamma=0.5, time_dim=-1)
    assert returns.dtype is torch.get_default_dtype()
    assert returns.tolist() == [[2.0, 2.0, 3.0], [8.0, 8.0, 6.0]]


@pytest.mark.parametrize("flag", [torch.uint8, torch.int64], ids=str)
def test_integer_flags_mean_not_zero(flag: torch.dtype, device: str) -> None:
    for op in WITH_FLAGS:
        args = convert(draw(op, (3, 20), -1), torch.float32)
        integers = {name: 2 * x.to(flag) if name in ("done", "terminated") else x for name, x in args.items()}
        for actual, wanted in zip(run(op, on(device, integers), -1), run(op, on(device, args), -1), strict=True):
            assert torch.equal(actual, wanted)


@pytest.mark.parametrize("ends", [0.0, 1.0], ids=["no step done", "all steps done"])
@pytest.mark.parametrize("op", ALL)
def test_nothing_and_everything_may_be_done(op: str, ends: float, device: str) -> None:
    for shape, time_dim in (((3, 130), -1), ((40, 35), 0)):
        check(op, convert(draw(op, shape, time_dim, ends=ends), torch.float32), time_dim, device, shape)


@pytest.mark.parametrize("op", BOOTSTRAPPING)
def test_terminated_left_out_means_every_end_is_terminal(op: str, device: str) -> None:
    args = convert(draw(op, (3, 40), -1), torch.float32)
    args.pop("terminated")
    check(op, args, -1, device)
    given = on(device, args)
    for absent, same in zip(run(op, given, -1), run(op, {**given, "terminated": given["done"]}, -1), strict=True):
        assert torch.equal(absent, same)


@pytest.mark.parametrize("op", BOOTSTRAPPING)
def test_a_truncated_step_still_bootstraps(op: str, device: str) -> None:
    args = convert(draw(op, (3, 40), -1, ends=0.5), torch.float32)
    args["terminated"] = torch.zeros(3, 40, dtype=torch.bool)
    check(op, args, -1, device)


@pytest.mark.parametrize("kind", ["scalar", "step", "lane", "time"])
@pytest.mark.parametrize("op", WITH_FLAGS)
def test_discounts_may_be_tensors_of_any_broadcastable_shape(op: str, kind: str, device: str) -> None:
    for shape, time_dim in (((5, 37), -1), ((37, 5), 0), ((3, 20, 4), 1)):
        args = draw(op, shape, time_dim, discounts="scalar" if kind == "scalar" else "step")
        for name in DISCOUNTS[op]:
            if kind == "lane":
                args[name] = args[name].narrow(time_dim, 0, 1)
            elif kind == "time":
                x = args[name].movedim(time_dim, -1).reshape(-1, shape[time_dim])[0]
                args[name] = x.reshape([-1] + [1] * (len(shape) - 1 - time_dim % len(shape)))
        check(op, convert(args, torch.float32), time_dim, device, (kind, shape))


@pytest.mark.parametrize("op", WITH_FLAGS)
def test_a_discount_on_the_host_or_of_another_dtype_is_as_good_as_a_number(op: str, device: str) -> None:
    given = on(device, convert(draw(op, (3, 20), -1), torch.float32))
    wanted = run(op, given, -1)
    for dtype in (torch.float64, torch.float32):
        tensors = {name: torch.tensor(NUMBERS[name], dtype=dtype) for name in DISCOUNTS[op]}
        for actual, expected in zip(run(op, {**given, **tensors}, -1), wanted, strict=True):
            assert_close(actual, expected.double().cpu(), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_discounts_of_every_sign_and_size_are_taken_as_they_are(dtype: torch.dtype, device: str) -> None:
    for op in WITH_FLAGS:
        for gamma in (0.0, 1.0, -0.9, 1.1, 0):
            args = convert(draw(op, (3, 25), -1), dtype)
            args["gamma"] = gamma
            for lmbda in (0.0, 1.0, -0.5, 1) if "lmbda" in DISCOUNTS[op] else (None,):
                if lmbda is not None:
                    args["lmbda"] = lmbda
                check(op, args, -1, device, (op, gamma, lmbda))


def test_float64_discounts_keep_their_precision_in_float64(device: str) -> None:
    gamma = 1 - 1e-9  # is 1 in float32
    reward = torch.ones(1, 1000, dtype=torch.float64, device=device)
    done = torch.zeros(1, 1000, dtype=torch.bool, device=device)
    returns = kernels.reward_to_go(reward, done, gamma=gamma, time_dim=-1)
    assert returns[0, 0].item() == pytest.approx(math.fsum(gamma**k for k in range(1000)), rel=1e-14)


def poisoned(op: str, args: Args, where: Tensor, value: float, names: tuple[str, ...]) -> Args:
    """The arguments with ``value`` at the steps ``where``."""
    return {name: x.masked_fill(where, value) if name in names else x for name, x in args.items()}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("op", BOOTSTRAPPING)
def test_a_next_value_behind_terminated_is_never_read(op: str, value: float, device: str) -> None:
    for dtype in (torch.float32, torch.float64):
        for shape, time_dim in (((3, 70), -1), ((70, 33), 0), ((3, 70, 2), 1)):
            clean = convert(draw(op, shape, time_dim, ends=0.3), dtype)
            args = poisoned(op, clean, clean["terminated"], value, ("next_value",))
            for actual, wanted in zip(
                run(op, on(device, args), time_dim), run(op, on(device, clean), time_dim), strict=True
            ):
                assert torch.equal(actual, wanted)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("op", ALL)
def test_what_lies_behind_a_done_never_reaches_the_steps_before_it(op: str, value: float, device: str) -> None:
    for shape, time_dim in (((4, 70), -1), ((70, 33), 0), ((3, 70, 2), 1), ((2, 40), -1)):
        for cut in (0, 1, 30, shape[time_dim] - 2):
            clean = convert(draw(op, shape, time_dim), torch.float32)
            at = torch.arange(shape[time_dim]).reshape([-1] + [1] * (len(shape) - 1 - time_dim % len(shape)))
            forwards = op == "linear_recurrence_forwards"
            behind = (at < cut if forwards else at > cut).expand(shape)
            if "a" in clean:
                clean["a"] = clean["a"].masked_fill(at == cut, 0.0)
            else:
                clean["done"] = clean["done"] | (at == cut)
            if "terminated" in clean:
                clean["terminated"] = clean["terminated"] & clean["done"]
            args = poisoned(op, clean, behind, value, DATA[op])
            for actual, wanted in zip(
                run(op, on(device, args), time_dim), run(op, on(device, clean), time_dim), strict=True
            ):
                assert torch.equal(actual.cpu()[~behind], wanted.cpu()[~behind])


@pytest.mark.parametrize("name", ["log_pi", "reward", "value", "next_value"])
@pytest.mark.parametrize("op", BOOTSTRAPPING)
def test_a_nan_that_nothing_hides_shows_in_the_result(op: str, name: str, device: str) -> None:
    if name not in DATA[op]:
        name = "reward"
    for shape, time_dim in (((2, 40), -1), ((40, 33), 0)):
        args = convert(draw(op, shape, time_dim, ends=0.1), torch.float32)
        at = torch.zeros(shape, dtype=torch.bool)
        at[1, 0] = True
        args["terminated"] = args["terminated"] & ~at
        check(op, poisoned(op, args, at, math.nan, (name,)), time_dim, device, name)
        assert any(x.isnan().any() for x in run(op, on(device, poisoned(op, args, at, math.nan, (name,))), time_dim))


def test_with_lambda_one_the_next_value_of_an_open_step_may_be_anything(device: str) -> None:
    for lmbda in (1.0, torch.ones((), dtype=torch.float64), torch.ones(3, 60)):
        clean = convert(draw("td_lambda_return", (3, 60), -1), torch.float32)
        clean["lmbda"] = lmbda
        is_open = ~clean["done"]
        is_open[:, -1] = False
        args = poisoned("td_lambda_return", clean, is_open, math.nan, ("next_value",))
        check("td_lambda_return", args, -1, device)
        (actual,) = run("td_lambda_return", on(device, args), -1)
        assert actual.isfinite().all()


def test_importance_ratios_may_overflow_where_they_are_clipped(device: str) -> None:
    args = convert(draw("vtrace", (3, 40), -1), torch.float32)
    args["log_mu"] = args["log_mu"].masked_fill(torch.rand(3, 40) < 0.3, -1000.0)
    check("vtrace", args, -1, device)
    args["log_pi"] = args["log_pi"].masked_fill(torch.rand(3, 40) < 0.3, -math.inf)
    check("vtrace", args, -1, device)


@pytest.mark.parametrize("layout", [dense, transposed, with_gaps, scattered], ids=lambda f: f.__name__)
@pytest.mark.parametrize("op", ALL)
def test_inputs_are_never_modified(op: str, layout: Any, device: str) -> None:
    args = convert(draw(op, (2, 17, 5, 3), 2, discounts="step"), torch.float32)
    args = on(device, {n: layout(i, x) if isinstance(x, Tensor) else x for i, (n, x) in enumerate(args.items())})
    before = {name: x.clone() for name, x in args.items()}
    run(op, args, 2)
    for name, x in args.items():
        assert torch.equal(x, before[name]), name


@pytest.mark.parametrize("layout", ["[N,T]", "[T,N]", "[N,T] transposed", "[T,N,17]", "[N,17,T,3] scattered"])
@pytest.mark.parametrize("op", ALL)
def test_results_are_dense_in_the_memory_order_of_the_data(op: str, layout: str, device: str) -> None:
    args, _ = drawn(op, layout, 3, 127 if "scattered" not in layout else 17)
    donor = {"gae": "value", "vtrace": "value", "linear_recurrence": "b"}.get(op, "b" if "b" in args else "reward")
    for x in run(op, on(device, args), LAYOUTS[layout].time_dim):
        assert x.stride() == args[donor].stride()


def test_a_carry_may_be_broadcast_strided_and_of_another_dtype(device: str) -> None:
    base = torch.randn(3, 4, dtype=torch.float64)
    carries = {
        "row": base[:1],
        "column": base[:, :1],
        "without the first dimension": base[0],
        "one number": torch.tensor(0.5),
        "transposed": base.t().contiguous().t(),
        "gaps": with_gaps(0, base),
        "half": base.half(),
    }
    for op in ("linear_recurrence_carried", "linear_recurrence_forwards"):
        for time_dim in (0, 1, 2):
            shape = [3, 4]
            shape.insert(time_dim, 11)
            for what, carry in carries.items():
                args = convert(draw(op, tuple(shape), time_dim), torch.float32) | {"carry": carry}
                check(op, args, time_dim, device, (op, time_dim, what))


@st.composite
def cases(draw_from: Any) -> tuple[str, Args, int]:
    """An op with arguments of random rank, sizes, time dimension, dtypes, strides, flags and kinds of discounts."""
    op = draw_from(st.sampled_from(ALL))
    # Sizes for which Numba has compiled its kernels already: see SIZES.
    sizes = st.sampled_from([[16], [1, 17], [3, 17], [1, 3, 16], [1, 3, 16, 17]])
    shape = tuple(draw_from(st.permutations(draw_from(sizes))))
    time_dim = draw_from(st.sampled_from([d for d in range(-len(shape), len(shape)) if shape[d] != 3]))
    ends = draw_from(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
    dtype = draw_from(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    discounts = draw_from(st.sampled_from(["number", "scalar", "step"]))
    args = convert(draw(op, shape, time_dim, ends=ends, discounts=discounts), dtype)
    places = [dense, scattered, with_gaps, *(layout.place for layout in LAYOUTS.values())]
    first = True
    for name, x in args.items():
        if isinstance(x, Tensor) and x.dim():
            i = 0 if first else draw_from(st.integers(0, 5))
            args[name] = draw_from(st.sampled_from(places[:3] if name == "carry" or x.dim() < 2 else places))(i, x)
            if first:  # Somebody has to have the full shape.
                args[name] = args[name].expand(shape)
            first = False
    return op, args, time_dim


@settings(max_examples=150)
@given(case=cases())
def test_whatever_else_there_is(case: tuple[str, Args, int]) -> None:
    op, args, time_dim = case
    expected = oracle.compute(op, args, time_dim)
    for device, backend in WHERE:
        with kernels.use_backend(backend):
            for actual, wanted in zip(run(op, on(device, args), time_dim), expected, strict=True):
                assert_close(actual, wanted, (device, backend))
