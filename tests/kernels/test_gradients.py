"""Gradients to every floating input: finite differences, autograd through the scalar oracle, and what must not leak."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from tritonrl import kernels
from tritonrl.kernels import gradients as twins

from . import oracle
from .arguments import (
    ALL,
    BOOTSTRAPPING,
    DATA,
    DISCOUNTS,
    LAYOUTS,
    WITH_FLAGS,
    Args,
    assert_close,
    convert,
    draw,
    flags_of,
    floating,
    gradients,
    laid_out,
    run,
    upstream_for,
)

WHERE = [("cpu", "torch"), ("cpu", None)]
if torch.cuda.is_available():
    WHERE.append(("cuda", None))


@pytest.fixture(params=WHERE, ids=lambda where: f"{where[0]}-{where[1] or 'default'}")
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device, served by the backend under test."""
    where, backend = request.param
    with kernels.use_backend(backend):
        yield where


def as_function(op: str, args: Args, time_dim: int, names: tuple[str, ...]) -> Callable[..., tuple[Tensor, ...]]:
    """The op as a function of the named arguments alone."""
    return lambda *xs: run(op, args | dict(zip(names, xs, strict=True)), time_dim)


def leaves(args: Args, names: tuple[str, ...]) -> tuple[Tensor, ...]:
    return tuple(args[name].detach().clone().requires_grad_() for name in names)


@pytest.mark.parametrize("discounts", ["scalar", "step"])
@pytest.mark.parametrize("op", ALL)
def test_gradients_are_those_of_finite_differences(op: str, discounts: str, device: str) -> None:
    for shape, time_dim in (((2, 8), -1), ((8, 3), 0)):
        args = convert(draw(op, shape, time_dim, ends=0.3, discounts=discounts), device=device)
        for flag in flags_of(op):  # let the last step of the tensor be an open one
            args[flag].select(time_dim, -1).fill_(False)
        names = floating(op)
        assert torch.autograd.gradcheck(as_function(op, args, time_dim, names), leaves(args, names), fast_mode=False)


@pytest.mark.parametrize("discounts", ["scalar", "step"])
@pytest.mark.parametrize("op", ALL)
def test_second_derivatives_are_those_of_finite_differences(op: str, discounts: str, device: str) -> None:
    args = convert(draw(op, (1, 8), -1, ends=0.3, discounts=discounts), device=device)
    names = floating(op)
    assert torch.autograd.gradgradcheck(as_function(op, args, -1, names), leaves(args, names))


def check(op: str, args: Args, time_dim: int, device: str, what: object, accumulated: float | None = None) -> None:
    """Every gradient of the op is that of autograd through the oracle."""
    names = tuple(name for name in floating(op) if isinstance(args[name], Tensor) and args[name].is_floating_point())
    given = convert(args, device=device) if device != "cpu" else args
    upstream = tuple(x.to(args[DATA[op][0]].dtype) for x in upstream_for(op, given))
    actual = gradients(op, given, time_dim, upstream, names)
    expected = oracle.gradients(op, args, time_dim, upstream, names)
    for name in names:
        assert actual[name].dtype is args[name].dtype
        assert_close(actual[name], expected[name], (what, name), accumulated)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", ALL)
def test_every_layout_has_the_gradients_of_the_loop(op: str, layout: str, device: str) -> None:
    """Also of broadcast inputs, whose gradient is a sum."""
    shape, time_dim, _ = LAYOUTS[layout]
    # Sizes for which Numba has compiled its kernels already: see SIZES in test_recurrences.py.
    sizes = [(3, 19), (37, 8)] if shape(3, 19) in ((3, 19), (19, 3)) else [(3, 9)]
    for lanes, steps in sizes:
        discounts = "step" if lanes == 3 else "number"
        args = laid_out(op, draw(op, shape(lanes, steps), time_dim, discounts=discounts), LAYOUTS[layout])
        check(op, args, time_dim, device, (lanes, steps))


@pytest.mark.parametrize("op", ALL)
def test_a_single_step_has_the_gradients_of_the_loop(op: str, device: str) -> None:
    check(op, draw(op, (3, 1), -1, ends=0.5, discounts="step"), -1, device, "one step")


@pytest.mark.parametrize("op", ALL)
def test_long_trajectories_have_the_gradients_of_the_loop(op: str, device: str) -> None:
    for shape, time_dim in (((1, 300), -1), ((130, 18), 0)):
        args = draw(op, shape, time_dim, ends=0.02, discounts="step")
        check(op, args, time_dim, device, shape)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("op", ALL)
def test_gradients_come_in_the_dtype_of_the_input(op: str, dtype: torch.dtype, device: str) -> None:
    args = convert(draw(op, (3, 40), -1, discounts="step"), dtype)
    # What was saved for the backward pass is a result, rounded to its dtype.
    check(op, args, -1, device, dtype, {torch.float16: 5e-3, torch.bfloat16: 4e-2, torch.float32: 1e-5}[dtype])


@pytest.mark.parametrize("op", [op for op in ALL if len(DATA[op]) > 1])
def test_each_input_of_a_mixture_gets_its_own_dtype(op: str, device: str) -> None:
    args = convert(draw(op, (3, 20), -1), torch.float32)
    last = DATA[op][-1]
    args[last] = args[last].double()
    check(op, args, -1, device, last, 1e-5)


@pytest.mark.parametrize("op", ["gae", "vtrace"])
def test_an_output_that_nobody_uses_has_a_gradient_of_zero(op: str, device: str) -> None:
    args = convert(draw(op, (3, 30), -1, discounts="step"), device=device)
    names, (first, second) = floating(op), upstream_for(op, args)
    zero = torch.zeros_like(first)
    for used, filled in (((first, None), (first, zero)), ((None, second), (zero, second))):
        actual, expected = gradients(op, args, -1, used, names), oracle.gradients(op, args, -1, filled, names)
        for name in names:
            assert_close(actual[name], expected[name], (name, used[0] is None))


@pytest.mark.parametrize("op", ALL)
def test_any_subset_of_the_inputs_may_want_a_gradient(op: str, device: str) -> None:
    args = convert(draw(op, (3, 30), -1, discounts="step"), device=device)
    names, upstream = floating(op), upstream_for(op, args)
    together = gradients(op, args, -1, upstream, names)
    for name in names:
        alone = gradients(op, args, -1, upstream, (name,))[name]
        assert_close(alone, together[name].double().cpu(), name)


@pytest.mark.parametrize("op", ALL)
def test_the_gradient_of_a_sum_arrives_with_strides_of_zero(op: str, device: str) -> None:
    args = convert(draw(op, (3, 30), -1, discounts="step"), device=device)
    names = floating(op)
    xs = leaves(args, names)
    outputs = as_function(op, args, -1, names)(*xs)
    sum(y.sum() for y in outputs).backward()
    ones = tuple(torch.ones(3, 30, dtype=torch.float64) for _ in outputs)
    expected = oracle.gradients(op, args, -1, ones, names)
    for name, x in zip(names, xs, strict=True):
        assert x.grad is not None
        assert_close(x.grad, expected[name], name)


@pytest.mark.parametrize("op", ALL)
def test_the_gradient_may_arrive_in_any_memory_order(op: str, device: str) -> None:
    args = convert(draw(op, (3, 19), -1, discounts="step"), device=device)
    names, upstream = floating(op), upstream_for(op, args)
    wanted = gradients(op, args, -1, upstream, names)
    for place in ("[N,T] transposed", "[N,T] gaps"):
        placed = tuple(LAYOUTS[place].place(0, g) for g in upstream)
        for name, x in gradients(op, args, -1, placed, names).items():
            assert_close(x, wanted[name].double().cpu(), (place, name))


@pytest.mark.parametrize(("shape", "time_dim"), [((3, 19), -1), ((40, 18), 0)], ids=str)
@pytest.mark.parametrize("op", ALL)
def test_the_fused_backward_pass_is_its_differentiable_twin(
    op: str, shape: tuple[int, ...], time_dim: int, device: str
) -> None:
    args = convert(draw(op, shape, time_dim, discounts="step"), device=device)
    names, upstream = floating(op), upstream_for(op, args)
    xs = leaves(args, names)
    outputs = as_function(op, args, time_dim, names)(*xs)
    fused = torch.autograd.grad(outputs, xs, upstream, retain_graph=True)
    twin = torch.autograd.grad(outputs, xs, upstream, create_graph=True)
    for name, x, y in zip(names, fused, twin, strict=True):
        assert_close(x, y.detach().double().cpu(), name)


@pytest.mark.parametrize("with_discounts", [True, False])
@pytest.mark.parametrize("op", WITH_FLAGS)
def test_every_result_of_the_fused_op_is_that_of_its_twin(op: str, with_discounts: bool, device: str) -> None:
    args = convert(draw(op, (3, 19), -1, discounts="step"), device=device)
    outputs = run(op, args, -1)
    saved = {
        "gae": ["next_value", outputs[0]],
        "td_lambda_return": ["next_value", outputs[0]],
        "reward_to_go": [outputs[0]],
    }
    data = saved.get(op, [*DATA[op], outputs[-1]])
    flags = ["done", "terminated"] if op in BOOTSTRAPPING else ["done"]
    given = [args[x] if isinstance(x, str) else x for x in (*data, *flags, *DISCOUNTS[op])]
    upstream = upstream_for(op, args)
    fused = getattr(torch.ops.tritonrl, f"{op}_backward")(*upstream, *given, -1, with_discounts)
    twin = getattr(twins, f"{op}_backward")(*upstream, *given, -1, with_discounts)
    for n, (x, y) in enumerate(zip(fused, twin, strict=True)):
        assert y is not None or x.numel() == 0, "what is not wanted comes empty"
        if y is not None:
            assert_close(x, y.double().cpu(), n)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0,), (2, 0, 3)], ids=str)
@pytest.mark.parametrize("op", ALL)
def test_nothing_has_a_gradient_of_nothing(op: str, shape: tuple[int, ...], device: str) -> None:
    args = convert(draw(op, shape, -1, discounts="scalar"), device=device)
    names = floating(op)
    for name, x in gradients(op, args, -1, upstream_for(op, args), names).items():
        assert x.shape == args[name].shape
        assert not x.any()


def hidden(op: str, args: Args, time_dim: int, cut: int) -> Tensor:
    """Cut every lane after step ``cut`` (in place); true at the steps that are then behind the cut."""
    shape = oracle.full_shape(args)
    at = torch.arange(shape[time_dim]).reshape([-1] + [1] * (len(shape) - 1 - time_dim % len(shape)))
    if "a" in args:
        args["a"] = args["a"].masked_fill(at == cut, 0.0)
    else:
        args["done"] = args["done"] | (at == cut)
    behind = at < cut if op == "linear_recurrence_forwards" else at > cut
    return behind.expand(shape)


def assert_same_gradients(
    op: str,
    clean: Args,
    args: Args,
    time_dim: int,
    upstream: tuple[Tensor, ...],
    names: tuple[str, ...],
    device: str,
    cut: int | None = None,
) -> None:
    """``args`` and ``clean`` have the same gradients, but for the coefficient at the step ``cut``.

    That is a number like any other: its gradient is what it hides, unless that is NaN or inf.
    """
    wanted = gradients(op, convert(clean, device=device), time_dim, tuple(x.to(device) for x in upstream), names)
    actual = gradients(op, convert(args, device=device), time_dim, tuple(x.to(device) for x in upstream), names)
    for name in names:
        if name == "a" and cut is not None:
            for x in (actual, wanted):
                x[name].select(time_dim, cut).zero_()
        assert_close(actual[name], wanted[name].double().cpu(), name)


POISON = [math.nan, math.inf, -math.inf]
SHAPES = [((3, 40), -1), ((40, 18), 0)]


@pytest.mark.parametrize("value", POISON)
@pytest.mark.parametrize("op", BOOTSTRAPPING)
def test_a_next_value_behind_terminated_reaches_no_gradient(op: str, value: float, device: str) -> None:
    for shape, time_dim in SHAPES:
        clean = draw(op, shape, time_dim, ends=0.3, discounts="step")
        args = clean | {"next_value": clean["next_value"].masked_fill(clean["terminated"], value)}
        assert_same_gradients(op, clean, args, time_dim, upstream_for(op, args), floating(op), device)


@pytest.mark.parametrize("value", POISON)
@pytest.mark.parametrize("op", ALL)
def test_steps_behind_a_done_that_nobody_looks_at_may_hold_anything(op: str, value: float, device: str) -> None:
    """Padding: the poisoned steps get no gradient from the outputs, and must get and give none."""
    for shape, time_dim in SHAPES:
        for cut in (0, 25, 38):
            clean = draw(op, shape, time_dim, discounts="step")
            behind = hidden(op, clean, time_dim, cut)
            poisoned = [name for name in DATA[op] if name != "a"]
            args = clean | {name: clean[name].masked_fill(behind, value) for name in poisoned}
            upstream = tuple(g.masked_fill(behind, 0.0) for g in upstream_for(op, args))
            assert_same_gradients(op, clean, args, time_dim, upstream, floating(op), device, cut)


@pytest.mark.parametrize("value", POISON)
@pytest.mark.parametrize("op", ALL)
def test_a_poisoned_gradient_behind_a_done_stays_there(op: str, value: float, device: str) -> None:
    """The gradient runs the other way: what arrives before the cut must not reach the steps behind it."""
    for shape, time_dim in SHAPES:
        for cut in (0, 25, 38):
            args = draw(op, shape, time_dim)
            behind = hidden(op, args, time_dim, cut)
            names = tuple(name for name in DATA[op])
            upstream = upstream_for(op, args)
            poisoned = tuple(g.masked_fill(~behind, value) for g in upstream)
            for fine, odd in zip(
                gradients(
                    op, convert(args, device=device), time_dim, tuple(g.to(device) for g in upstream), names
                ).values(),
                gradients(
                    op, convert(args, device=device), time_dim, tuple(g.to(device) for g in poisoned), names
                ).values(),
                strict=True,
            ):
                assert torch.equal(odd.cpu()[behind], fine.cpu()[behind])


def test_a_carry_behind_a_cut_gets_no_gradient_from_a_poisoned_one(device: str) -> None:
    a = torch.tensor([[0.5, 0.0], [0.5, 0.5]], dtype=torch.float64, device=device)
    carry = torch.ones(2, dtype=torch.float64, device=device, requires_grad=True)
    y = kernels.linear_recurrence(a, torch.ones_like(a), carry)
    upstream = torch.tensor([[1.0, math.nan], [1.0, 1.0]], dtype=torch.float64, device=device)
    for create_graph in (False, True):
        (grad,) = torch.autograd.grad(y, carry, upstream, create_graph=create_graph, retain_graph=True)
        assert grad.tolist() == [0.0, 0.75]


def test_a_poisoned_carry_behind_a_cut_reaches_no_gradient(device: str) -> None:
    a = torch.tensor([[0.5, 0.0], [0.5, 0.5]], dtype=torch.float64, device=device, requires_grad=True)
    b = torch.ones(2, 2, dtype=torch.float64, device=device, requires_grad=True)
    carry = torch.tensor([math.nan, 1.0], dtype=torch.float64, device=device)
    y = kernels.linear_recurrence(a, b, carry)
    assert y.tolist() == [[1.5, 1.0], [1.75, 1.5]]
    for create_graph in (False, True):
        grad_a, grad_b = torch.autograd.grad(y.sum(), (a, b), create_graph=create_graph, retain_graph=True)
        assert grad_a.tolist() == [[1.0, 0.0], [1.5, 1.5]]
        assert grad_b.tolist() == [[1.0, 1.5], [1.0, 1.5]]


@pytest.mark.parametrize("op", WITH_FLAGS)
def test_what_is_hidden_stays_hidden_when_the_gradient_is_differentiated(op: str, device: str) -> None:
    clean = draw(op, (3, 12), -1, discounts="step")
    behind = hidden(op, clean, -1, 7)
    poisoned = [name for name in DATA[op] if not name.startswith("log")]
    args = clean | {name: clean[name].masked_fill(behind, math.nan) for name in poisoned}
    if "terminated" in args:
        args["next_value"] = args["next_value"].masked_fill(args["terminated"], math.nan)
    names = floating(op)
    upstream = tuple(g.masked_fill(behind, 0.0).to(device) for g in upstream_for(op, clean))

    def second(given: Args) -> list[Tensor]:
        given = convert(given, device=device)
        xs = leaves(given, names)
        outputs = as_function(op, given, -1, names)(*xs)
        first = torch.autograd.grad(outputs, xs, upstream, create_graph=True)
        found = torch.autograd.grad(sum(g.square().sum() for g in first), xs, allow_unused=True)
        return [*first, *(torch.zeros_like(x) if g is None else g for x, g in zip(xs, found, strict=True))]

    for actual, wanted in zip(second(args), second(clean), strict=True):
        assert_close(actual, wanted.detach().double().cpu())


def test_with_lambda_one_the_next_value_of_an_open_step_reaches_no_gradient(device: str) -> None:
    clean = draw("td_lambda_return", (3, 40), -1, discounts="step") | {"lmbda": 1.0}
    is_open = ~clean["done"]
    is_open[:, -1] = False
    args = clean | {"next_value": clean["next_value"].masked_fill(is_open, math.nan)}
    names = ("reward", "next_value", "gamma")
    assert_same_gradients("td_lambda_return", clean, args, -1, upstream_for("td_lambda_return", args), names, device)


def test_a_ratio_on_the_threshold_belongs_to_the_policy(device: str) -> None:
    """As in the clipped objectives of torch: the smaller of two equals is the first."""
    x = torch.zeros(1, 1, dtype=torch.float64, device=device, requires_grad=True)
    one = torch.ones(1, 1, dtype=torch.float64, device=device)
    done = torch.ones(1, 1, dtype=torch.bool, device=device)
    advantage, _ = kernels.vtrace(x, 0 * one, one, 0 * one, 0 * one, done, gamma=1.0, time_dim=-1)
    advantage.sum().backward()
    assert x.grad is not None
    assert x.grad.item() == 1.0
