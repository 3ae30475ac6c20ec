"""The Triton backend: from the arguments of an op to one kernel launch.

What depends only on layouts (geometry, plan, constants) is prepared once per combination of shapes, strides and dtypes and
kept; a repeated call only looks it up and launches (:mod:`.eager`). Nothing here synchronises or reads from the device, and
nothing is allocated but the results and a small workspace, so calls can be captured in a CUDA graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from . import families
from .device.lanes import lanes as lanes_kernel
from .device.memory import ABSENT, AS_READ, ENDED, ENDS, LANES, NUMBER, SEQUENCES, STEPS, UNIFORM
from .device.moments import merge_partials
from .device.rows import rows as rows_kernel
from .device.split import split as split_kernel
from .direct import Launch, direct
from .dtypes import accumulate_dtype
from .eager import Call, Launches, Results, Slowly, Workspace
from .families import Recurrence
from .geometry import Lanes, Strides, TooScattered, expanded_strides, merge_lanes
from .plan import Plan, ceil_div, choose_plan
from .repeat import NOTES, Key, Noted, Repeat
from .sources import filled, sources
from .specs import ALL_SPECS, allocate, step_results
from .workspace import merge_sizes, merge_warps, workspace_of

_ABSENT, _NUMBER, _UNIFORM, _STEPS, _LANES = (kind.value for kind in (ABSENT, NUMBER, UNIFORM, STEPS, LANES))
_ENDED, _AS_READ, _ENDS, _SEQUENCES = (kind.value for kind in (ENDED, AS_READ, ENDS, SEQUENCES))
_STEPPED = (_STEPS, _ENDED)
_STRIDED = (*_STEPPED, _LANES, _SEQUENCES)
# The ops whose masks the kernels take themselves (:mod:`.compose`).
MASKED = frozenset(op for op, spec in ALL_SPECS.items() if spec.optional)
# The ops whose kernels find the ends of packed sequences themselves.
PACKED = MASKED
_FOUR_BYTE_OFFSETS = 2**31 - 1
_KERNELS = {"rows": rows_kernel, "lanes": lanes_kernel, "split": split_kernel}


class Prepared(NamedTuple):
    """Everything about a launch but the pointers and numbers.

    ``call``: how a call of an op with these layouts is served, where that has been worked out.
    """

    kernel: Any
    plan: Plan
    kinds: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    plan_arguments: tuple[Any, ...]
    call: Callable[[Any], Any] | None = None


def _kind(x: Tensor | None, tap: int, strides: Sequence[int] | None, acc: torch.dtype) -> int:
    if x is None:
        return _ABSENT
    if strides is not None and (any(strides) or (tap and x.dim())):  # a tap must see the ends of time
        return _STEPS
    # A number can be passed by value only as float32; a float64 one is read from memory.
    by_value = x.device.type == "cpu" and x.dim() == 0 and x.dtype is not torch.bool
    return _NUMBER if by_value and acc is not torch.float64 else _UNIFORM


def _farthest(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> int:
    return max(sum((n - 1) * abs(s) for n, s in zip(shape, own, strict=True)) for own in strides)


def _kinds(recurrence: Recurrence, strides: Sequence[Sequence[int] | None], acc: torch.dtype) -> tuple[int, ...]:
    kinds = [_kind(x, tap, own, acc) for (x, tap), own in zip(recurrence.inputs, strides, strict=True)]
    for i in recurrence.per_lane:
        kinds[i] = _LANES if kinds[i] == _STEPS else kinds[i]
    for i in recurrence.ended:
        kinds[i] = _ENDED
        if kinds[i + 1] == _ABSENT:  # terminated, which means "as done was given"
            kinds[i + 1] = _AS_READ
    for i in recurrence.per_sequence:
        kinds[i] = _SEQUENCES if kinds[i] == _STEPS else kinds[i]
        kinds[i + 1] = _ENDS
    return tuple(kinds)


def _prepare(
    recurrence: Recurrence,
    outputs: Sequence[Tensor],
    time_dim: int,
    multiprocessors: int,
    device_name: str | None = None,
) -> Prepared:
    """The part of a launch that depends on layouts and dtypes only.

    Raises:
        TooScattered: if the lane dimensions do not merge to two.
    """
    shape = outputs[0].shape
    acc = accumulate_dtype(outputs[0].dtype)
    strides = _strides(recurrence, shape, time_dim)
    kinds = _kinds(recurrence, strides, acc)
    stepped = [own for own, kind in zip(strides, kinds, strict=True) if kind in _STRIDED and own is not None]
    written = [expanded_strides(shape, x.shape, x.stride()) for x in outputs]
    full = [*stepped, *written]
    if recurrence.carry is not None:
        full.append(_carry_strides(recurrence.carry, shape, time_dim))
    sizes, merged = merge_lanes(shape, time_dim, full, reference=len(stepped))
    moved = [x for (x, _), kind in zip(recurrence.inputs, kinds, strict=True) if kind in _STRIDED and x is not None]
    widest = max(x.element_size() for x in [*moved, *outputs])
    untapped = [s for s, tap in zip(merged, _taps(recurrence, kinds), strict=False) if tap == 0]
    out_strides = merged[len(stepped) : len(stepped) + len(outputs)]
    streams = (
        sum(kind in _STEPPED for kind in kinds) + len(outputs) + (2 if recurrence.moments else 0)
    )  # mean and M2 stand in registers too
    steps_strides = [*untapped, *out_strides]
    considered = (sizes, steps_strides, out_strides[0], widest, multiprocessors, streams, device_name)
    plan = choose_plan(*considered)
    in_strides = iter(merged)
    by_input = [next(in_strides) if kind in _STRIDED else None for kind in kinds]
    arguments, constants = _arguments(plan, sizes, by_input, out_strides, merged[-1])
    constants |= {
        "COEFFICIENTS": recurrence.coefficients,
        "FINISH": recurrence.finish,
        "KINDS": kinds,
        "TAPS": tuple(tap for _, tap in recurrence.inputs),
        "MASKS": recurrence.masks,
        "REVERSE": recurrence.reverse,
        "ACC": tl.float64 if acc is torch.float64 else tl.float32,
        "WIDE": _farthest(shape, full) > _FOUR_BYTE_OFFSETS,
    }
    return Prepared(_KERNELS[plan.strategy], plan, kinds, arguments, constants, considered)


def _strides(recurrence: Recurrence, shape: torch.Size, time_dim: int) -> list[tuple[int, ...] | None]:
    """The strides of every input, broadcast; in the place of time, of what there is for each sequence, from one to the next."""
    strides: list[tuple[int, ...] | None] = []
    for i, (x, _) in enumerate(recurrence.inputs):
        full = list(shape)
        if i in recurrence.per_sequence and recurrence.cu_seqlens is not None:
            full[time_dim] = recurrence.cu_seqlens.shape[0] - 1
        strides.append(None if x is None else expanded_strides(full, x.shape, x.stride()))
    return strides


def _taps(recurrence: Recurrence, kinds: Sequence[int]) -> list[int | None]:
    """The taps of what has strides; none for what is not read in the order of steps."""
    return [
        None if kind == _SEQUENCES else tap
        for (_, tap), kind in zip(recurrence.inputs, kinds, strict=True)
        if kind in _STRIDED
    ]


def _carry_strides(carry: Tensor, shape: torch.Size, time_dim: int) -> tuple[int, ...]:
    """The carry as if it had a time dimension, of stride zero."""
    time = len(shape) + time_dim
    lane_shape = shape[:time] + shape[time + 1 :]
    own = expanded_strides(lane_shape, carry.shape, carry.stride())
    return (*own[:time], 0, *own[time:])


def _arguments(
    plan: Plan,
    sizes: Lanes,
    by_input: Sequence[Strides | None],
    by_output: Sequence[Strides],
    carry_strides: Strides,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run-time sizes and strides, and the constants, in the form that the kernel of this strategy takes them."""
    units = tuple(_ONES if s is None else _units(s, plan) for s in by_input)
    out_units = tuple(_units(s, plan) for s in by_output)
    arguments: dict[str, Any] = {
        "strides": tuple((0, 0, 0) if s is None else _counted(s, u) for s, u in zip(by_input, units, strict=True)),
        "out_strides": tuple(_counted(s, u) for s, u in zip(by_output, out_units, strict=True)),
        "carry_strides": (carry_strides[0], carry_strides[2]),
        "inner_size": sizes.inner // plan.width,
    }
    constants: dict[str, Any] = {"UNITS": units, "OUT_UNITS": out_units, "WIDTH": plan.width}
    lanes = sizes.lanes // plan.width
    if plan.strategy == "lanes":
        arguments |= {"lane_count": lanes, "steps": sizes.steps}
        return arguments, constants | {"STRIP": plan.lanes, "UNROLL": plan.unroll, "BY_OUTER": plan.by_outer}
    vectors = sizes.steps // plan.vector
    arguments |= {"lanes": lanes, "vectors": vectors}
    constants |= {"V": plan.vector, "ROWS": plan.lanes, "Q": plan.vectors, "SINGLE": sizes.outer == 1}
    constants["STACKED"] = plan.stacked
    if plan.strategy == "split":
        arguments["blocks"] = ceil_div(sizes.lanes, plan.lanes)
        return arguments, constants | {"LAZY": False}
    return arguments, constants | {"CHUNKED": vectors > plan.vectors, "AHEAD": plan.ahead}


_ONES = (1, 1, 1)


def _units(strides: Strides, plan: Plan) -> Strides:
    """What the strides of a tensor are counted in: where they are multiples of an access, the compiler may be told so."""
    along = 1 if strides[1] == 1 else 2 if strides[2] == 1 else 0
    unit = (1, plan.vector, plan.width)[along]
    if any(s % unit for i, s in enumerate(strides) if i != along):
        return _ONES
    return tuple(1 if i == along else unit for i in range(3))  # type: ignore[return-value]


def _counted(strides: Strides, units: Strides) -> Strides:
    return tuple(s // u for s, u in zip(strides, units, strict=True))  # type: ignore[return-value]


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
        found = _keep(key, _prepare(recurrence, outputs, time_dim, *device_of(outputs[0].device)))
    return found


def _keep(key: Any, prepared: Prepared) -> Prepared:
    if len(_prepared) >= 4096:  # layouts without end (ever new batch sizes) must not eat the memory
        _prepared.clear()
    _prepared[key] = prepared
    return prepared


def device_of(device: torch.device) -> tuple[int, str | None]:
    """How many multiprocessors, and the name that plan tables go by; those of an H100 where there is no GPU."""
    if device.type != "cuda":
        return 132, None
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.name


def launch_arguments(
    recurrence: Recurrence, outputs: Sequence[Tensor], prepared: Prepared, workspace: Workspace | None = None
) -> dict[str, Any]:
    """Every argument of the kernel by name: pointers and numbers, sizes and strides, constants."""
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
        workspace = workspace_of(prepared.plan, outputs[0], recurrence.moments)
    pointers: dict[str, Any] = {"inputs": tuple(values), "outputs": tuple(outputs), "partials": None}
    return {**pointers, **_beside(recurrence), **workspace, **prepared.arguments, **prepared.constants}


def _beside(recurrence: Recurrence) -> dict[str, Any]:
    """What the kernel takes of a recurrence besides its inputs, by name: tensors, or tuples with tensors in them."""
    offsets = recurrence.cu_seqlens
    return {"carry_in": recurrence.carry, "packed": None if offsets is None else (offsets, offsets.shape[0])}


def compiler_options(plan: Plan) -> dict[str, Any]:
    """How the kernel of this plan is to be compiled."""
    if plan.strategy == "lanes":
        return {"num_warps": plan.warps}
    # Without a limit of ours the assembler takes one of its own, often 64 registers, and rather spills than uses a few more.
    return {"num_warps": plan.warps, "maxnreg": 255}


def one_layout(recurrence: Recurrence, like: Tensor, time_dim: int) -> Recurrence:
    """The same recurrence with every input copied to the memory order of ``like``: the way out of scattered layouts."""

    def copied(x: Tensor | None, like: Tensor = like) -> Tensor | None:
        if x is None or x.numel() == 1:
            return x
        return torch.empty_like(like, dtype=x.dtype).copy_(x)

    # One step of `like` would leave gaps in the carry, which then does not merge: a dense one in the same order.
    step = like.select(time_dim, 0)
    carry = copied(recurrence.carry, step)
    inputs = [(copied(x), tap) for i, (x, tap) in enumerate(recurrence.inputs) if i not in recurrence.per_sequence]
    for i in recurrence.per_sequence:
        inputs.insert(i, (_steps_of_sequences(recurrence, i, step, time_dim), 0))
    return recurrence._replace(inputs=tuple(inputs), carry=carry)


def _steps_of_sequences(recurrence: Recurrence, i: int, step: Tensor, time_dim: int) -> Tensor | None:
    """What the ``i``-th input has for each sequence, one behind the other in the memory order of ``step``."""
    x, offsets = recurrence.inputs[i][0], recurrence.cu_seqlens
    if x is None or offsets is None or x.numel() == 1:
        return x
    shape, strides = [offsets.shape[0] - 1, *step.shape], step.stride()
    order = sorted(range(step.dim()), key=lambda d: -strides[d])
    dense = torch.empty_permuted(shape, [0, *(d + 1 for d in order)], dtype=x.dtype, device=x.device)
    return dense.movedim(0, time_dim).copy_(x)


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


def repeated(key: Key) -> Callable[[Sequence[Any]], Any] | None:
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
        prepared = _prepare(recurrence, outputs, time_dim, *device_of(outputs[0].device))
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

    def launch(
        args: tuple[Any, ...], results: tuple[Tensor, ...], workspace: Workspace | None = None
    ) -> Launches | None:
        recurrence: Recurrence = getattr(families, op)(*args)
        outputs = [results[i] for i in written]
        merged = outputs.pop() if moments else None
        if scattered:
            recurrence = one_layout(recurrence, outputs[0], time_dim)
        with _on(outputs[0].device):
            given = launch_arguments(recurrence, outputs, prepared, workspace)
            compiled = prepared.kernel[plan.grid](**given, **compiler_options(plan))
            again = direct(prepared.kernel, compiled, plan.grid)
            if merged is None:
                return None if again is None else Launches(again, None)
            merge = _merge(plan, given["partials"], merged)
        return None if again is None or merge is None else Launches(again, merge)

    return launch


def _always(op: str, slowly: Slowly) -> Callable[[tuple[Any, ...]], tuple[Tensor, ...]]:
    """For layouts whose inputs are made anew for every call."""

    def call(args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        results = allocate(op, args)
        slowly(args, results, None)
        return results

    return call


def _merge(plan: Plan, partials: Tensor, merged: Tensor) -> Launch | None:
    """Merge the moments of all programs into ``merged``; returns what does so again."""
    parts, block = merge_sizes(plan)
    grid = (1,)
    compiled = merge_partials[grid](partials, merged, parts, block, num_warps=merge_warps(block))
    return direct(merge_partials, compiled, grid)


def _time(args: tuple[Any, ...]) -> tuple[int, bool | None]:
    """``time_dim`` and, for the general recurrence only, ``reverse``: the trailing arguments of every schema."""
    trailing = [x for x in args if isinstance(x, (int, bool))]
    return trailing[0], (bool(trailing[1]) if len(trailing) > 1 else None)


def _on(device: torch.device) -> Any:
    """Triton launches on the current device; make that the data's."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)


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
