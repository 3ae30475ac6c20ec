"""What a launch needs that depends on layouts and dtypes only: kinds of inputs, sizes and strides, plan, constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from .device.lanes import lanes as lanes_kernel
from .device.memory import ABSENT, AS_READ, ENDED, ENDS, LANES, NUMBER, SEQUENCES, STEPS, UNIFORM
from .device.rows import rows as rows_kernel
from .device.split import split as split_kernel
from .dtypes import accumulate_dtype
from .families import Recurrence
from .geometry import Lanes, Strides, expanded_strides, merge_lanes
from .plan import Plan, ceil_div, choose_plan
from .workspace import merged_at_once

_ABSENT, _NUMBER, _UNIFORM, _STEPS, _LANES = (kind.value for kind in (ABSENT, NUMBER, UNIFORM, STEPS, LANES))
_ENDED, _AS_READ, _ENDS, _SEQUENCES = (kind.value for kind in (ENDED, AS_READ, ENDS, SEQUENCES))
_STEPPED = (_STEPS, _ENDED)
_STRIDED = (*_STEPPED, _LANES, _SEQUENCES)
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


def prepare(
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
    beside = multiprocessors, streams, device_name, _spare(recurrence)
    considered = (sizes, steps_strides, out_strides[0], widest, *beside)
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
        "FOLLOWS": recurrence.follows,
        "REVERSE": recurrence.reverse,
        "ACC": tl.float64 if acc is torch.float64 else tl.float32,
        "WIDE": _farthest(shape, full) > _FOUR_BYTE_OFFSETS,
        "MERGE": merged_at_once(plan),
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


def _spare(recurrence: Recurrence) -> int:
    """Registers beside those of data: of a search for ends of sequences or for what follows a hole, of taps, of masks."""
    if recurrence.cu_seqlens is not None or recurrence.follows[0] >= 0:
        return 64
    taps = not recurrence.reverse or any(tap for _, tap in recurrence.inputs)
    masked = any(place >= 0 and recurrence.inputs[place][0] is not None for place in recurrence.masks)
    return 16 * taps + 8 * masked


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


def device_of(device: torch.device) -> tuple[int, str | None]:
    """How many multiprocessors, and the name that plan tables go by; those of an H100 where there is no GPU."""
    if device.type != "cuda":
        return 132, None
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.name


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
