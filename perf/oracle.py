"""The truth in fp64: one plain loop per operator and one for its gradient, one lane after the other.

Written from the formulas of the papers, apart from the package and its textbook twins, and never used for speed. Gradients
are the loops differentiated by hand, step by step; ``tests/perf`` holds them against autograd. Arrays are ``[lanes, T]``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from .data import Problem
from .ops import OPS

Array = NDArray[np.float64]


@njit(cache=True)
def _gae(r: Array, v: Array, w: Array, d: Array, z: Array, g: Array, lam: Array) -> tuple[Array, Array]:
    adv, target = np.empty_like(r), np.empty_like(r)
    lanes, steps = r.shape
    for n in range(lanes):
        following = 0.0
        for t in range(steps - 1, -1, -1):
            x = r[n, t] - v[n, t]
            if not z[n, t]:
                x += g[n, t] * w[n, t]
            if not d[n, t]:
                x += g[n, t] * lam[n, t] * following
            adv[n, t], target[n, t], following = x, x + v[n, t], x
    return adv, target


@njit(cache=True)
def _gae_grad(r: Array, v: Array, w: Array, d: Array, z: Array, g: Array, lam: Array, da: Array, dt: Array) -> Any:
    gr, gv, gw = np.empty_like(r), np.empty_like(r), np.zeros_like(r)
    lanes, steps = r.shape
    for n in range(lanes):
        carried = 0.0
        for t in range(steps):
            x = da[n, t] + dt[n, t] + carried
            gr[n, t], gv[n, t] = x, dt[n, t] - x
            if not z[n, t]:
                gw[n, t] = g[n, t] * x
            carried = 0.0 if d[n, t] else g[n, t] * lam[n, t] * x
    return gr, gv, gw


@njit(cache=True)
def _td_lambda(r: Array, w: Array, d: Array, z: Array, g: Array, lam: Array) -> tuple[Array]:
    out = np.empty_like(r)
    lanes, steps = r.shape
    for n in range(lanes):
        following = 0.0
        for t in range(steps - 1, -1, -1):
            bootstrap = 0.0 if z[n, t] else w[n, t]
            if d[n, t] or t == steps - 1:
                following = bootstrap
            following = r[n, t] + g[n, t] * ((1.0 - lam[n, t]) * bootstrap + lam[n, t] * following)
            out[n, t] = following
    return (out,)


@njit(cache=True)
def _td_lambda_grad(r: Array, w: Array, d: Array, z: Array, g: Array, lam: Array, dy: Array) -> Any:
    gr, gw = np.empty_like(r), np.zeros_like(r)
    lanes, steps = r.shape
    for n in range(lanes):
        carried = 0.0
        for t in range(steps):
            x = dy[n, t] + carried
            closed = d[n, t] or t == steps - 1
            gr[n, t] = x
            if not z[n, t]:
                gw[n, t] = g[n, t] * x * (1.0 if closed else 1.0 - lam[n, t])
            carried = 0.0 if closed else g[n, t] * lam[n, t] * x
    return gr, gw


@njit(cache=True)
def _reward_to_go(r: Array, d: Array, g: Array) -> tuple[Array]:
    out = np.empty_like(r)
    lanes, steps = r.shape
    for n in range(lanes):
        following = 0.0
        for t in range(steps - 1, -1, -1):
            following = r[n, t] + (0.0 if d[n, t] else g[n, t] * following)
            out[n, t] = following
    return (out,)


@njit(cache=True)
def _reward_to_go_grad(r: Array, d: Array, g: Array, dy: Array) -> Any:
    gr = np.empty_like(r)
    lanes, steps = r.shape
    for n in range(lanes):
        carried = 0.0
        for t in range(steps):
            gr[n, t] = dy[n, t] + carried
            carried = 0.0 if d[n, t] else g[n, t] * gr[n, t]
    return (gr,)


@njit(cache=True)
def _vtrace(
    lp: Array, lm: Array, r: Array, v: Array, w: Array, d: Array, z: Array, g: Array, rb: Array, cb: Array
) -> tuple[Array, Array]:
    adv, target = np.empty_like(r), np.empty_like(r)
    lanes, steps = r.shape
    for n in range(lanes):
        following, target_after = 0.0, 0.0
        for t in range(steps - 1, -1, -1):
            ratio = math.exp(lp[n, t] - lm[n, t])
            rho, c = min(ratio, rb[n, t]), min(ratio, cb[n, t])
            bootstrap = 0.0 if z[n, t] else g[n, t] * w[n, t]
            x = rho * (r[n, t] + bootstrap - v[n, t])
            if not d[n, t]:
                x += g[n, t] * c * following
            ends = d[n, t] or t == steps - 1
            ahead = bootstrap if ends else g[n, t] * target_after
            adv[n, t] = rho * (r[n, t] + (0.0 if z[n, t] else ahead) - v[n, t])
            target[n, t], following, target_after = v[n, t] + x, x, v[n, t] + x
    return adv, target


@njit(cache=True)
def _vtrace_grad(
    lp: Array, lm: Array, r: Array, v: Array, w: Array, d: Array, z: Array, g: Array, rb: Array, cb: Array,
    da: Array, dt: Array,
) -> Any:  # fmt: skip
    _, target = _vtrace(lp, lm, r, v, w, d, z, g, rb, cb)
    glp, gr, gv, gw = np.empty_like(r), np.empty_like(r), np.empty_like(r), np.zeros_like(r)
    lanes, steps = r.shape
    for n in range(lanes):
        to_x, to_target = 0.0, 0.0  # what the step before sends to this step's correction and target
        for t in range(steps):
            ratio = math.exp(lp[n, t] - lm[n, t])
            rho, c = min(ratio, rb[n, t]), min(ratio, cb[n, t])
            ends = d[n, t] or t == steps - 1
            on_target = dt[n, t] + to_target
            on_x = on_target + to_x
            bootstrap = 0.0 if z[n, t] else g[n, t] * w[n, t]
            ahead = bootstrap if ends else g[n, t] * target[n, t + 1]
            ahead = 0.0 if z[n, t] else ahead
            behind = 0.0 if ends else target[n, t + 1] - v[n, t + 1]
            on_rho = on_x * (r[n, t] + bootstrap - v[n, t]) + da[n, t] * (r[n, t] + ahead - v[n, t])
            on_c = 0.0 if d[n, t] else on_x * g[n, t] * behind
            glp[n, t] = ratio * ((on_rho if ratio <= rb[n, t] else 0.0) + (on_c if ratio <= cb[n, t] else 0.0))
            gr[n, t] = rho * (on_x + da[n, t])
            gv[n, t] = on_target - gr[n, t]
            if not z[n, t]:
                gw[n, t] = g[n, t] * rho * (on_x + (da[n, t] if ends else 0.0))
            to_x = 0.0 if d[n, t] else g[n, t] * c * on_x
            to_target = 0.0 if ends or z[n, t] else g[n, t] * rho * da[n, t]
    return glp, gr, gv, gw


@njit(cache=True)
def _linear(a: Array, b: Array) -> tuple[Array]:
    out = np.empty_like(b)
    lanes, steps = b.shape
    for n in range(lanes):
        before = 0.0
        for t in range(steps):
            before = b[n, t] + a[n, t] * before
            out[n, t] = before
    return (out,)


@njit(cache=True)
def _linear_grad(a: Array, b: Array, dy: Array) -> Any:
    (y,) = _linear(a, b)
    ga, gb = np.empty_like(b), np.empty_like(b)
    lanes, steps = b.shape
    for n in range(lanes):
        carried = 0.0
        for t in range(steps - 1, -1, -1):
            gb[n, t] = dy[n, t] + carried
            ga[n, t] = gb[n, t] * y[n, t - 1] if t else 0.0
            carried = a[n, t] * gb[n, t]
    return ga, gb


_LOOPS: dict[str, tuple[Any, Any]] = {
    "gae": (_gae, _gae_grad),
    "td_lambda_return": (_td_lambda, _td_lambda_grad),
    "td1_return": (_td_lambda, _td_lambda_grad),
    "reward_to_go": (_reward_to_go, _reward_to_go_grad),
    "vtrace": (_vtrace, _vtrace_grad),
    "linear_recurrence": (_linear, _linear_grad),
}


def _lanes_first(x: Any, problem: Problem) -> NDArray[Any]:
    """``x`` broadcast to the full shape, as a contiguous fp64 (or bool) array ``[lanes, T]``."""
    if not isinstance(x, Tensor):
        x = torch.tensor(x, dtype=torch.float64)  # named: the default dtype would round a discount to fp32
    x = x.detach().cpu()
    x = x if x.dtype is torch.bool else x.double()
    x = x.expand(problem.shape).movedim(problem.time_dim, -1)
    return np.ascontiguousarray(x.reshape(-1, x.shape[-1]).numpy())


def _back(x: Array, problem: Problem) -> Tensor:
    moved = torch.empty(problem.shape, device="meta").movedim(problem.time_dim, -1).shape
    return torch.from_numpy(x).reshape(moved).movedim(-1, problem.time_dim)


@njit(cache=True)
def _following(v: Array, counts: Any, ends: Any, bootstrap: Array) -> Array:
    """The value of the next step that counts; behind the last of a sequence, the bootstrap value of that sequence."""
    out = np.empty_like(v)
    lanes, steps = v.shape
    for n in range(lanes):
        sequence = bootstrap.shape[1] - 1
        following = bootstrap[n, sequence]
        for t in range(steps - 1, -1, -1):
            if ends[n, t]:
                following = bootstrap[n, sequence]
                sequence -= 1
            out[n, t] = following
            if counts[n, t]:
                following = v[n, t]
    return out


def _ends(problem: Problem, like: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a packed sequence ends; nowhere else is time cut by anything but ``done``."""
    ends = np.zeros(like.shape, dtype=bool)
    if "cu_seqlens" in problem.arguments:
        ends[:, problem.arguments["cu_seqlens"][1:].cpu().numpy() - 1] = True
    else:
        ends[:, -1:] = True
    return ends


def _counts(problem: Problem) -> NDArray[np.bool_]:
    given = problem.arguments
    valid = _lanes_first(given.get("valid", torch.tensor(True)), problem)
    return valid & ~_lanes_first(given.get("skip", torch.tensor(False)), problem)


def _inputs(problem: Problem) -> list[NDArray[Any]]:
    """The arguments of the loops; ``done`` also at the end of every packed sequence, ``next_value`` given or derived."""
    op, given = OPS[problem.op], dict(problem.arguments)
    if "terminated" in op.flags:
        given.setdefault("terminated", given["done"])
    if "bootstrap_value" in given:
        given["next_value"] = given["value"]  # stands in until it is derived
    names = (*op.tensors, *op.flags, *op.discounts)
    arrays = {name: _lanes_first(given[name], problem) for name in names}
    ends = _ends(problem, next(iter(arrays.values())))
    if "cu_seqlens" in given:
        arrays["done"] = arrays["done"] | ends
    if "bootstrap_value" in given:
        row = given["bootstrap_value"].detach().cpu().double().numpy()
        sequences = row.shape[0] if "cu_seqlens" in given else 1
        row = row.reshape(sequences, -1).T if "cu_seqlens" in given else row.reshape(-1, 1)
        derived = _following(arrays["value"], _counts(problem), ends, np.ascontiguousarray(row))
        arrays["next_value"] = derived
    return [arrays[name] for name in names]


def _on_counted(loop: Any, arrays: list[NDArray[Any]], problem: Problem) -> tuple[Array, ...]:
    """A loop over what is left of every lane when the steps that do not count are taken out of it; zero in their places.

    Two steps that are neighbours then are cut apart if an invalid step was between them, or a skipped one that was done.
    """
    if not {"valid", "skip"} & set(problem.arguments):
        found: tuple[Array, ...] = loop(*arrays)
        return found
    counts, done = _counts(problem), (*OPS[problem.op].tensors, *OPS[problem.op].flags).index("done")
    valid = _lanes_first(problem.arguments.get("valid", torch.tensor(True)), problem)
    cuts = np.where(counts, False, ~valid | arrays[done])
    results: list[Array] = []
    for n in range(counts.shape[0]):
        (kept,) = np.nonzero(counts[n])
        lane = [np.ascontiguousarray(x[n : n + 1, kept]) for x in arrays]
        cuts_before = np.concatenate([[0], np.cumsum(cuts[n])])[kept]
        lane[done][0, :-1] |= np.diff(cuts_before) > 0
        found = loop(*lane)
        results = results or [np.zeros(counts.shape) for _ in found]
        for into, x in zip(results, found, strict=True):
            into[n, kept] = x[0]
    return tuple(results)


def answer(problem: Problem) -> tuple[Tensor, ...]:
    """The exact results of a problem, fp64 on the CPU, of the problem's shape and in the order of the op's outputs.

    Behind them, where they are asked for, count, mean and sum of squared deviations of the first.
    """
    found = _on_counted(_LOOPS[problem.op][0], _inputs(problem), problem)
    results = tuple(_back(x, problem) for x in found)
    if not problem.arguments.get("moments"):
        return results
    x = found[0][_counts(problem)]
    return (*results, torch.tensor([x.size, x.mean(), x.size * x.var()], dtype=torch.float64))


def gradient(problem: Problem, incoming: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The exact gradients of ``sum(outputs * incoming)`` with respect to the op's differentiated inputs."""
    arriving = [_lanes_first(x, problem) for x in incoming]
    found = _on_counted(_LOOPS[problem.op][1], [*_inputs(problem), *arriving], problem)
    return tuple(_back(x, problem) for x in found)
