"""Arguments for the ops, in every memory layout that people have, and how the tests call and compare."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tritonrl import kernels

from . import oracle

Args = dict[str, Any]

# What each op takes. A carry belongs to the linear recurrence only; ``reverse`` is part of the name.
DATA = {
    "linear_recurrence": ("a", "b"),
    "linear_recurrence_carried": ("a", "b"),
    "linear_recurrence_forwards": ("a", "b"),
    "gae": ("reward", "value", "next_value"),
    "td_lambda_return": ("reward", "next_value"),
    "reward_to_go": ("reward",),
    "vtrace": ("log_pi", "log_mu", "reward", "value", "next_value"),
}
DISCOUNTS = {
    "gae": ("gamma", "lmbda"),
    "td_lambda_return": ("gamma", "lmbda"),
    "reward_to_go": ("gamma",),
    "vtrace": ("gamma", "rho_thresh", "c_thresh"),
}
NUMBERS = {"gamma": 0.97, "lmbda": 0.9, "rho_thresh": 1.1, "c_thresh": 0.9}
ALL = tuple(DATA)
WITH_FLAGS = tuple(DISCOUNTS)
BOOTSTRAPPING = ("gae", "td_lambda_return", "vtrace")


def flags_of(op: str) -> tuple[str, ...]:
    """The flags that an op takes."""
    return ("done", "terminated") if op in BOOTSTRAPPING else ("done",) if op in WITH_FLAGS else ()


def floating(op: str) -> tuple[str, ...]:
    """Every argument that has a gradient when it is a tensor."""
    carry = ("carry",) if op in ("linear_recurrence_carried", "linear_recurrence_forwards") else ()
    return DATA[op] + carry + DISCOUNTS.get(op, ())


def draw(op: str, shape: tuple[int, ...], time_dim: int = -1, *, ends: float = 0.2, discounts: str = "number") -> Args:
    """Arguments of full shape in float64: a share ``ends`` of the steps is done (a coefficient of zero), half of it terminal.

    Discounts are Python numbers, or tensors: ``"scalar"`` of no dimension, ``"step"`` of the full shape.
    """
    generator = torch.Generator().manual_seed(sum(31**i * n for i, n in enumerate(shape)))
    rand = functools.partial(torch.rand, shape, generator=generator, dtype=torch.float64)
    randn = functools.partial(torch.randn, shape, generator=generator, dtype=torch.float64)
    done = rand() < ends
    args: Args = {name: randn() * (0.4 if name.startswith("log") else 1.0) for name in DATA[op]}
    if "a" in args:
        args["a"] = (2 * rand() - 1).masked_fill(done, 0.0)
        if op != "linear_recurrence":
            args["carry"] = torch.randn(
                oracle.without(torch.Size(shape), time_dim), dtype=torch.float64, generator=generator
            )
        return args
    if op in BOOTSTRAPPING:
        args["terminated"] = done & (rand() < 0.5)
    args["done"] = done
    for name in DISCOUNTS[op]:
        args[name] = NUMBERS[name]
        if discounts == "scalar":
            args[name] = torch.tensor(NUMBERS[name], dtype=torch.float64)
        elif discounts == "step":
            args[name] = NUMBERS[name] - 0.3 * rand()
    return args


def convert(args: Args, dtype: torch.dtype | None = None, device: str | None = None) -> Args:
    """Floating tensors in ``dtype``, all tensors on ``device``."""
    moved = {}
    for name, x in args.items():
        if isinstance(x, Tensor):
            x = x.to(dtype) if dtype is not None and x.is_floating_point() else x
            # A 0-dim discount may stay on the host; moving it is a case of its own.
            x = x.to(device) if device is not None else x
        moved[name] = x
    return moved


def run(op: str, args: Mapping[str, Any], time_dim: int) -> tuple[Tensor, ...]:
    """Call the op as users do; always a tuple."""
    given = dict(args)
    if op.startswith("linear_recurrence"):
        reverse = op != "linear_recurrence_forwards"
        return (kernels.linear_recurrence(**given, time_dim=time_dim, reverse=reverse),)
    result = getattr(kernels, op)(**given, time_dim=time_dim)
    return result if isinstance(result, tuple) else (result,)


def gradients(
    op: str, args: Args, time_dim: int, upstream: tuple[Tensor | None, ...], wrt: tuple[str, ...]
) -> dict[str, Tensor]:
    """Gradients through the op, as users get them; an upstream gradient of ``None`` leaves that output unused."""
    leaves = {name: args[name].detach().requires_grad_() for name in wrt}
    outputs = run(op, {**args, **leaves}, time_dim)
    used = [(y, g) for y, g in zip(outputs, upstream, strict=True) if g is not None]
    found = torch.autograd.grad([y for y, _ in used], list(leaves.values()), [g for _, g in used], allow_unused=True)
    return {n: torch.zeros_like(x) if g is None else g for (n, x), g in zip(leaves.items(), found, strict=True)}


def upstream_for(op: str, args: Args) -> tuple[Tensor, ...]:
    """Random gradients of the outputs."""
    shape = oracle.full_shape(args)
    like = next(args[name] for name in DATA[op])
    generator = torch.Generator().manual_seed(7)
    count = 2 if op in ("gae", "vtrace") else 1
    drawn = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count))
    return tuple(x.to(like.device) for x in drawn)


# Rounding of a result, in units of its own size; the running sum adds what float32 (float64) rounds on the way.
ROUNDING = {torch.float16: 2**-10, torch.bfloat16: 2**-7, torch.float32: 2**-22, torch.float64: 2**-50}


def assert_close(actual: Tensor, expected: Tensor, what: object = "", accumulated: float | None = None) -> None:
    """``actual`` is ``expected`` (float64) rounded to its own dtype; NaN and inf stand at the same places.

    ``accumulated``: how far the running sum may be off, relative to the largest number of the result.
    """
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    if expected.numel() == 0:
        return
    got, dtype = actual.detach().double().cpu(), actual.dtype
    if accumulated is None:
        accumulated = 1e-12 if dtype is torch.float64 else 5e-6
    largest = expected.nan_to_num(0, 0, 0).abs().max()
    allowed = ROUNDING[dtype] * expected.abs() + accumulated * (1 + largest)
    fine = (got - expected).abs() <= allowed
    fine |= (got == expected) | (got.isnan() & expected.isnan())
    if not fine.all():
        where = tuple(i.item() for i in (~fine).nonzero()[0])
        raise AssertionError(
            f"{what}: {int((~fine).sum())} of {fine.numel()} wrong, first at {where}: "
            f"got {got[where].item()!r}, expected {expected[where].item()!r} (+-{allowed[where].item():.2g})"
        )


class Layout(NamedTuple):
    """``shape(lanes, steps)``, the dimension of time, and where the ``i``-th argument lies in memory."""

    shape: Callable[[int, int], tuple[int, ...]]
    time_dim: int
    place: Callable[[int, Tensor], Tensor]


def dense(i: int, x: Tensor) -> Tensor:
    """Contiguous."""
    return x.contiguous()


def transposed(i: int, x: Tensor) -> Tensor:
    """The last two dimensions the other way round in memory."""
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


def mixed(i: int, x: Tensor) -> Tensor:
    """Some arguments one way, some the other."""
    return transposed(i, x) if i % 2 else dense(i, x)


def with_gaps(i: int, x: Tensor) -> Tensor:
    """A slice of something larger, with NaN (or true flags) in the gaps, at an odd offset."""
    garbage = True if x.dtype is torch.bool else float("nan") if x.is_floating_point() else 99
    around = x.new_full([2 * n + 1 for n in x.shape], garbage)
    view = around[tuple(slice(1, 2 * n + 1, 2) for n in x.shape)]
    return view.copy_(x)


def expanded(i: int, x: Tensor) -> Tensor:
    """Each argument but the first is the same along one dimension, with a stride of zero there."""
    if i == 0 or x.dim() == 0 or 0 in x.shape:
        return x.contiguous()
    dim = i % x.dim()
    return x.narrow(dim, 0, 1).contiguous().expand(x.shape)


def narrow(i: int, x: Tensor) -> Tensor:
    """Like :func:`expanded`, but left for the op to broadcast: sizes of one, and missing leading dimensions."""
    if i == 0 or x.dim() == 0 or 0 in x.shape:
        return x.contiguous()
    x = x.narrow(i % x.dim(), 0, 1).contiguous()
    return x.squeeze(0) if i % x.dim() == 0 else x


def scattered(i: int, x: Tensor) -> Tensor:
    """Every argument in a memory order of its own, so that lane dimensions do not merge."""
    orders = list(itertools.permutations(range(x.dim())))
    order = orders[(7 * i + 5) % len(orders)]
    back = [order.index(d) for d in range(x.dim())]
    return x.permute(order).contiguous().permute(back)


def one_flag(i: int, x: Tensor) -> Tensor:
    """Flags of [N, T, 1] over the features of the data."""
    return x[..., :1].contiguous() if x.dtype is torch.bool else x.contiguous()


LAYOUTS = {
    "[N,T]": Layout(lambda n, t: (n, t), -1, dense),
    "[T,N]": Layout(lambda n, t: (t, n), 0, dense),
    "[N,T,1]": Layout(lambda n, t: (n, t, 1), -2, dense),
    "[N,T,3]": Layout(lambda n, t: (n, t, 3), -2, dense),
    "[T,N,17]": Layout(lambda n, t: (t, n, 17), 0, dense),
    "[N,T,17], flags [N,T,1]": Layout(lambda n, t: (n, t, 17), 1, one_flag),
    "[T]": Layout(lambda n, t: (t,), 0, dense),
    "[N,T] transposed": Layout(lambda n, t: (n, t), -1, transposed),
    "[T,N] transposed": Layout(lambda n, t: (t, n), -2, transposed),
    "[N,T] mixed": Layout(lambda n, t: (n, t), 1, mixed),
    "[N,T] gaps": Layout(lambda n, t: (n, t), -1, with_gaps),
    "[T,N] gaps": Layout(lambda n, t: (t, n), 0, with_gaps),
    "[N,T] expanded": Layout(lambda n, t: (n, t), -1, expanded),
    "[T,N] expanded": Layout(lambda n, t: (t, n), 0, expanded),
    "[N,T] broadcast": Layout(lambda n, t: (n, t), -1, narrow),
    "[N,T,3] broadcast": Layout(lambda n, t: (n, t, 3), 1, narrow),
    "[N,17,T,3] scattered": Layout(lambda n, t: (n, 17, t, 3), -2, scattered),
    "[2,N,3,16,T] scattered": Layout(lambda n, t: (2, n, 3, 16, t), -1, scattered),
}


def laid_out(op: str, args: Args, layout: Layout) -> Args:
    """Each tensor placed as the layout says; the first one is always of the full shape, the carry is left dense."""
    placed, i = {}, 0
    for name, x in args.items():
        placed[name] = x
        if isinstance(x, Tensor) and x.dim() and name != "carry":
            placed[name], i = layout.place(i, x), i + 1
    return placed
