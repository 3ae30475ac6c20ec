"""The Triton backend: from the arguments of an op to one kernel launch.

What depends only on layouts (geometry, plan, constants) is prepared once per combination of shapes, strides and dtypes and
kept; a repeated call only looks it up and launches (:mod:`.eager`). Nothing here synchronises or reads from the device, and
nothing is allocated but the results and a small workspace, so calls can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from . import families
from .device.memory import NUMBER, UNIFORM
from .direct import Launch, direct, on_device
from .eager import Call, Slowly, Workspace
from .elementwise import standardised as standardised
from .families import Recurrence
from .geometry import TooScattered
from .plan import Plan
from .preparation import Prepared, device_of, one_layout, prepare
from .repeat import NOTES, Key, Noted, Repeat, Serve
from .repeat import forget as forget_repeats
from .results import Results
from .sources import filled, sources
from .specs import ALL_SPECS, allocate, step_results
from .workspace import MOMENTS, workspace_of

_NUMBER, _UNIFORM = NUMBER.value, UNIFORM.value
# The ops whose masks the kernels take themselves (:mod:`.compose`).
MASKED = frozenset(op for op, spec in ALL_SPECS.items() if spec.optional)
# The ops whose kernels find the ends of packed sequences themselves.
PACKED = MASKED
# The kernel of derived next values looks past the steps that do not count.
DERIVES_PAST_MASKS = True
_prepared: dict[Any, Prepared] = {}


def _layout(x: Tensor | None) -> Any:
    if x is None:
        return None
    return x.shape, x.stride(), x.dtype, x.device


def prepared_for(
    op: str, recurrence: Recurrence, outputs: Sequence[Tensor], time_dim: int, reverse: bool | None = None
) -> Prepared:
    """The kept preparation for these layouts, made on the first call with them."""
    key = (
        op,
        time_dim,
        reverse,
        tuple(_layout(x) for x, _ in recurrence.inputs),
        _layout(recurrence.carry),
        recurrence.ended,
        tuple((x.shape, x.stride(), x.dtype) for x in outputs),
    )
    found = _prepared.get(key)
    if found is None:
        found = _keep(key, prepare(recurrence, outputs, time_dim, *device_of(outputs[0].device)))
    return found


def _keep(key: Any, prepared: Prepared) -> Prepared:
    if len(_prepared) >= 4096:  # layouts without end (ever new batch sizes) must not eat the memory
        _prepared.clear()
    _prepared[key] = prepared
    return prepared


def launch_arguments(
    recurrence: Recurrence,
    outputs: Sequence[Tensor],
    prepared: Prepared,
    merged: Tensor | None = None,
    workspace: Workspace | None = None,
) -> dict[str, Any]:
    """Every argument of the kernel by name: pointers and numbers, sizes and strides, constants.

    ``merged`` is where the moments go, if they are wanted.
    """
    device = outputs[0].device
    values: list[Any] = []
    for (x, _), kind in zip(recurrence.inputs, prepared.kinds, strict=True):
        if kind == _NUMBER and x is not None:
            values.append(float(x))
        elif kind == _UNIFORM and x is not None and x.device != device:
            values.append(filled(x, device))
        else:
            values.append(x)
    if workspace is None:
        workspace = workspace_of(prepared.plan, outputs[0], merged is not None)
    partials, counter = (workspace.get(name) for name in MOMENTS)
    moments = None if merged is None else (partials, merged, counter)
    own: dict[str, Any] = {name: x for name, x in workspace.items() if name not in MOMENTS}
    pointers: dict[str, Any] = {"inputs": tuple(values), "outputs": tuple(outputs), "moments": moments, **own}
    return {**pointers, **_beside(recurrence), **prepared.arguments, **prepared.constants}


def _beside(recurrence: Recurrence) -> dict[str, Any]:
    """What the kernel takes of a recurrence besides its inputs, by name: tensors, or tuples with tensors in them."""
    offsets = recurrence.cu_seqlens
    return {"carry_in": recurrence.carry, "packed": None if offsets is None else (offsets, offsets.shape[0])}


def compiler_options(plan: Plan) -> dict[str, Any]:
    """How the kernel of this plan is to be compiled."""
    if plan.strategy == "lanes":
        return {"num_warps": plan.warps}
    # Without a limit of ours the assembler takes one of its own, often 64 registers, and rather spills than uses a few more.
    return {"num_warps": plan.warps, "maxnreg": plan.limit}


def _key(op: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """What decides how a call is served: the layouts, dtypes and devices of its tensors, and everything else it was given.

    The default dtype is that of the results of integers.
    """
    key = [op, torch.get_default_dtype()]
    for x in args:
        if isinstance(x, Tensor):
            key += (x.shape, x.stride(), x.dtype, x.get_device())
        else:
            key.append(x)
    return tuple(key)


def _run(op: str, *args: Any) -> Any:
    key = _key(op, args)
    prepared = _prepared.get(key)
    results = _run_first(op, args, key) if prepared is None or prepared.call is None else prepared.call(args)
    if NOTES.calls is not None:
        NOTES.calls.append(Noted(op, args, results))
    return results if len(results) > 1 else results[0]


def forget() -> None:
    """Forget all calls, as if none had been made; what was compiled stays. For who changes how calls are prepared."""
    _prepared.clear()
    forget_repeats()


def repeated(key: Key) -> Serve | None:
    """What serves a public call like one before it (:mod:`.repeat`)."""
    prepared = _prepared.get(key)
    return None if prepared is None else prepared.call


def keep_repeat(key: Key, repeat: Repeat) -> bool:
    """Keep how a public call is repeated; returns whether that can be."""
    prepared = _prepared.get(_key(repeat.noted.op, repeat.noted.args))
    if prepared is None or prepared.call is None:
        return False
    # Not of `repeat` itself, which holds the tensors of the call.
    serve, arguments, constants = prepared.call, itemgetter(*repeat.places), repeat.constants
    returned = slice(repeat.returned) if repeat.returned else 0

    def again(values: Sequence[Any]) -> Any:
        return serve(arguments((*values, *constants)))[returned]

    _keep(key, prepared._replace(call=again))
    return True


def _run_first(op: str, args: tuple[Any, ...], key: Any) -> tuple[Tensor, ...]:
    """A call with layouts that were not met before: work out how it is served, keep that, and do so."""
    results = allocate(op, args)
    outputs = step_results(op, results)
    moments = ALL_SPECS[op].moments and results[-1].numel() > 0
    if not outputs:
        return (*results[:-1], results[-1].zero_()) if moments else results
    recurrence: Recurrence = getattr(families, op)(*args)
    time_dim, reverse = _time(args)
    taken = None
    try:
        prepared = prepare(recurrence, outputs, time_dim, *device_of(outputs[0].device))
        by_value = [kind == _NUMBER for kind in prepared.kinds]
        taken = sources(op, args, by_value, outputs[0].device, _beside)
    except TooScattered:
        prepared = prepared_for(op, one_layout(recurrence, outputs[0], time_dim), outputs, time_dim, reverse)
    written = [i for i, x in enumerate(results) if x.numel()]
    slowly = _slowly(op, prepared, written, moments, time_dim, scattered=taken is None)
    call: Callable[[tuple[Any, ...]], tuple[Tensor, ...]]
    if taken is None:
        call = _always(op, slowly)
    else:
        known = prepared.arguments | prepared.constants
        made = Results(ALL_SPECS[op].like, args, results)
        call = Call(prepared.kernel, prepared.plan, known, made, written, taken, moments, slowly)
    _keep(key, prepared._replace(call=call))
    return call(args)


def _slowly(
    op: str, prepared: Prepared, written: Sequence[int], moments: bool, time_dim: int, scattered: bool
) -> Slowly:
    """What launches calls with these layouts by Triton's public way, which also compiles."""
    plan = prepared.plan

    def launch(args: tuple[Any, ...], results: tuple[Tensor, ...], workspace: Workspace | None = None) -> Launch | None:
        recurrence: Recurrence = getattr(families, op)(*args)
        outputs = [results[i] for i in written]
        merged = outputs.pop() if moments else None
        if scattered:
            recurrence = one_layout(recurrence, outputs[0], time_dim)
        with on_device(outputs[0].device):
            given = launch_arguments(recurrence, outputs, prepared, merged, workspace)
            compiled = prepared.kernel[plan.grid](**given, **compiler_options(plan))
            return direct(prepared.kernel, compiled, plan.grid)

    return launch


def _always(op: str, slowly: Slowly) -> Callable[[tuple[Any, ...]], tuple[Tensor, ...]]:
    """For layouts whose inputs are made anew for every call."""

    def call(args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        results = allocate(op, args)
        slowly(args, results, None)
        return results

    return call


def _time(args: tuple[Any, ...]) -> tuple[int, bool | None]:
    """``time_dim`` and, for the general recurrence only, ``reverse``: the trailing arguments of every schema."""
    trailing = [x for x in args if isinstance(x, (int, bool))]
    return trailing[0], (bool(trailing[1]) if len(trailing) > 1 else None)


def linear_recurrence(*args: Any) -> Any:
    """``tritonrl::linear_recurrence`` in Triton."""
    return _run("linear_recurrence", *args)


def linear_recurrence_backward(
    grad: Tensor, a: Tensor, y: Tensor, carry: Tensor | None, time_dim: int, reverse: bool
) -> Any:
    """``tritonrl::linear_recurrence_backward`` in Triton."""
    grad_a, grad_b = _run("linear_recurrence_backward", grad, a, y, carry, time_dim, reverse)
    if carry is not None and y.numel():
        # The step at the edge was computed from the carry, which no tap of the kernel reaches.
        edge = y.shape[time_dim] - 1 if reverse else 0
        a_edge = a.expand(y.shape).select(time_dim, edge)
        g_edge = grad_b.select(time_dim, edge)
        kept = torch.isfinite(carry) | ((a_edge != 0) & (g_edge != 0))
        grad_a.select(time_dim, edge).copy_(torch.where(kept, g_edge * carry, 0.0))
    return grad_a, grad_b


def gae(*args: Any) -> Any:
    """``tritonrl::gae`` in Triton."""
    return _run("gae", *args)


def gae_extended(*args: Any) -> Any:
    """``tritonrl::gae_extended`` in Triton."""
    return _run("gae_extended", *args)


def gae_backward(*args: Any) -> Any:
    """``tritonrl::gae_backward`` in Triton."""
    return _run("gae_backward", *args)


def td_lambda_return(*args: Any) -> Any:
    """``tritonrl::td_lambda_return`` in Triton."""
    return _run("td_lambda_return", *args)


def td_lambda_return_backward(*args: Any) -> Any:
    """``tritonrl::td_lambda_return_backward`` in Triton."""
    return _run("td_lambda_return_backward", *args)


def reward_to_go(*args: Any) -> Any:
    """``tritonrl::reward_to_go`` in Triton."""
    return _run("reward_to_go", *args)


def reward_to_go_backward(*args: Any) -> Any:
    """``tritonrl::reward_to_go_backward`` in Triton."""
    return _run("reward_to_go_backward", *args)


def vtrace(*args: Any) -> Any:
    """``tritonrl::vtrace`` in Triton."""
    return _run("vtrace", *args)


def vtrace_backward(grad_advantage: Tensor | None, grad_target: Tensor | None, *rest: Any) -> Any:
    """``tritonrl::vtrace_backward`` in Triton. The kernel knows an absent target gradient, but no absent advantage gradient."""
    if grad_advantage is None and grad_target is not None:
        grad_advantage = torch.zeros_like(grad_target)
    return _run("vtrace_backward", grad_advantage, grad_target, *rest)
