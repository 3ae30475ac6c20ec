"""One call of one op: tensors in, plan looked up, kernel run, results filled."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..dtypes import accumulate_dtype
from ..specs import plain_names
from . import team
from .compile import Compiled, kernel, kernel_of_measured_strips, kernels_of_pieces
from .geometry import ABSENT, ONE, ONE_DOUBLE, Operand, Plan, Unmergeable, make_plan
from .moments import kernel_of_measured_rows, measure_parts, room_for
from .strategies import Body

# What the operands of an op are. A float may be absent, which counts as zero. A discount may stay a float64 scalar.
# WANTED is a result that has no memory when nobody asked for it. The masks of a masked op stand behind all others.
FLOAT, FLAG, DISCOUNT, RESULT, WANTED = "float", "flag", "discount", "result", "wanted"
_ABSENT_MASKS = torch.tensor(True), torch.tensor(False)  # valid: all of them; skip: none

# Some 10 microseconds of work, and what torch itself takes for a grain: for less a second thread costs more than it saves.
STEPS_PER_CHUNK = 1 << 15
_CHUNKS_PER_THREAD = 4
_PLANS_KEPT = 4096


class Op(NamedTuple):
    """A kernel family: a name of its own, its body, and the role of each operand."""

    name: str
    body: Body
    roles: tuple[str, ...]

    def argument(self, k: int) -> str:
        """What the schema calls operand ``k``, for messages."""
        op = self.name.removesuffix("_masked").removesuffix("_forwards").removesuffix("_derived")
        names = plain_names(op)
        return f"{op}: {names[k] if k < len(names) else ('valid', 'skip')[k - len(self.roles) + 2]}"


@functools.cache
def _masked(op: Op) -> Op:
    """The kernel family of ``op`` with masks."""
    return Op(f"{op.name}_masked", op.body.masked(), (*op.roles, FLAG, FLAG))


class Prepared(NamedTuple):
    """What a call needs that does not change while shapes, strides and dtypes stay the same.

    ``conversions``: operands whose dtype or layout no kernel takes, with what to do about it before each call. ``again``: the
    second kernel where time is cut into pieces. ``marks``: bytes for theirs. ``result``: the operand whose moments may be
    wanted. ``around``: the kernel that has rows computed and measures them.
    """

    plan: Plan
    kernel: Compiled
    conversions: tuple[tuple[int, Callable[[Tensor], Tensor]], ...]
    scratch: int
    chunks: int
    again: Compiled | None
    marks: int
    threads: int
    result: int
    around: Compiled | None


_prepared: dict[Any, Prepared] = {}
_zero = np.zeros(1, dtype=np.float64)
_ZERO = _zero.ctypes.data


def forget() -> None:
    """Forget what was prepared."""
    _prepared.clear()


def run(
    op: Op,
    arguments: Sequence[Tensor | None],
    results: tuple[Tensor, ...],
    time_dim: int,
    masks: Sequence[Tensor | None] = (),
    offsets: Tensor | None = None,
    measured: bool = False,
) -> array[float] | None:
    """Compute ``op`` into ``results``. Returns the moments of the parts of the first, if they are wanted and there are any.

    Args:
        op: its kernel family.
        arguments: its tensors in schema order, absent ones ``None``. Of an operand that says where the recurrence begins there
            is one step for each sequence, where there are any.
        results: where to.
        time_dim: of the results.
        masks: its ``valid`` and, of an op that knows it, ``skip``.
        offsets: of sequences packed along time. They must fit (:func:`.packed.check_offsets`): nothing else keeps the kernel
            within its memory.
        measured: whether moments are wanted.

    Raises:
        Unmergeable: for sequences in a layout that only a copy makes fit.
    """
    if not results[0].numel():
        return None
    prepared = prepared_for(op, arguments, results, time_dim, masks, offsets, measured)
    return execute(prepared, operands_of(arguments, results, masks), offsets)


def operands_of(
    arguments: Sequence[Tensor | None], results: tuple[Tensor, ...], masks: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The operands of a kernel: both masks behind the results where there is one of them."""
    operands = [*arguments, *results]
    for x in masks:
        if x is not None:
            operands += [absent if x is None else x for absent, x in zip_longest(_ABSENT_MASKS, masks)]
            break
    return operands


def prepared_for(
    op: Op,
    arguments: Sequence[Tensor | None],
    results: tuple[Tensor, ...],
    time_dim: int,
    masks: Sequence[Tensor | None],
    offsets: Tensor | None = None,
    measured: bool = False,
) -> Prepared:
    """What a call with such operands needs, made for the first of its kind; there is something to compute."""
    threads, sequences = torch.get_num_threads(), 0 if offsets is None else offsets.shape[0] - 1
    # The results need no place in the key: their strides follow from the arguments.
    key: tuple[Any, ...] = (
        *(op.name, time_dim, threads, sequences, measured, results[0].dtype, results[-1].numel()),
        *[None if x is None else (x.shape, x.stride(), x.dtype, x.is_cpu) for x in arguments],
        *[None if x is None else (x.shape, x.stride(), x.dtype, x.is_cpu) for x in masks],
    )
    prepared = _prepared.get(key)
    if prepared is None:
        if len(_prepared) >= _PLANS_KEPT:
            _prepared.clear()
        operands = operands_of(arguments, results, masks)
        masked = len(operands) > len(arguments) + len(results)
        op = _masked(op) if masked else op
        prepared = _prepared[key] = _prepare(op, operands, results[0], time_dim, threads, sequences, measured)
    return prepared


def execute(prepared: Prepared, operands: list[Tensor | None], offsets: Tensor | None = None) -> array[float] | None:
    """Run the kernel on these operands, on as many threads as it was prepared for. Returns the moments of parts, if wanted."""
    for k, convert in prepared.conversions:
        x = operands[k]
        operands[k] = None if x is None else convert(x)
    pointers = array("q", [_ZERO if x is None else x.data_ptr() for x in operands])
    plan, chunks, scratch, threads = prepared.plan, prepared.chunks, prepared.scratch, prepared.threads
    partials = room_for(plan.parts) if plan.parts else None
    marks = np.empty(prepared.marks, dtype=np.uint8) if prepared.again else None
    # What the kernel finds behind the operands: one of these three.
    if offsets is not None:
        offsets = offsets.long().contiguous()
        pointers.append(offsets.data_ptr())
    elif marks is not None:
        pointers.append(marks.ctypes.data)
    elif partials is not None:
        pointers.append(partials.buffer_info()[0])
    function, given, kept = prepared.kernel, pointers, (pointers, operands, offsets, marks, partials)
    if partials is not None and prepared.around is not None:  # that calls the other, part by part
        function, own = prepared.around, pointers.buffer_info()[0]
        given = array("q", [prepared.kernel.address, own, pointers[prepared.result], pointers[-1]])
    where = plan.address, given.buffer_info()[0], scratch
    team.run(function, *where, plan.tasks * plan.pieces, chunks, threads, (given, kept))
    if prepared.again is not None:
        team.run(prepared.again, *where, plan.tasks, min(plan.tasks, chunks), threads, kept)
    if partials is not None and not plan.together:
        measure_parts(_present(operands[prepared.result]), plan, partials, chunks, threads)
    return partials


def _prepare(
    op: Op,
    operands: Sequence[Tensor | None],
    like: Tensor,
    time_dim: int,
    threads: int,
    sequences: int,
    measured: bool,
) -> Prepared:
    conversions: dict[int, Callable[[Tensor], Tensor]] = {}
    tensors = list(operands)
    for k, (x, role) in enumerate(zip(tensors, op.roles, strict=True)):
        _check(op, k, x, role)
        is_scalar = role == DISCOUNT and x is not None and x.dim() == 0 and x.dtype is torch.float64
        if x is None or role in (FLAG, RESULT, WANTED) or x.dtype is like.dtype or is_scalar:
            continue
        conversions[k] = _to(like.dtype)
        tensors[k] = x.to(like.dtype)
    try:
        plan = _plan(op, tensors, like, time_dim, threads, sequences, measured)
    except Unmergeable as problem:
        if sequences:
            raise
        for k in problem.operands:
            conversions[k] = _copied_like(like, op.roles[k])
            tensors[k] = conversions[k](_present(tensors[k]))
        plan = _plan(op, tensors, like, time_dim, threads, 0, measured)
    function, again, around = _kernels(op, plan, like.dtype)
    most = threads * _CHUNKS_PER_THREAD if threads > 1 else 1
    worth = most if plan.pieces > 1 else like.numel() // STEPS_PER_CHUNK
    chunks = max(1, min(plan.tasks * plan.pieces, worth, most))
    carries = plan.scratch * op.body.carries
    marks = carries * plan.tasks * plan.pieces * plan.marks
    return Prepared(
        plan=plan,
        kernel=function,
        conversions=tuple(conversions.items()),
        scratch=plan.states + carries,
        chunks=chunks,
        again=again,
        marks=marks,
        threads=threads,
        result=op.roles.index(RESULT),
        around=around,
    )


def _kernels(op: Op, plan: Plan, dtype: torch.dtype) -> tuple[Compiled, Compiled | None, Compiled | None]:
    """The one that computes, that which begins pieces of time again, and that which has rows measured."""
    made = op.name, op.body, dtype, plan.width, plan.group
    if plan.pieces > 1:
        return *kernels_of_pieces(*made), None
    if plan.together and not plan.group:
        return kernel_of_measured_strips(op.name, op.body, dtype, plan.width, op.roles.index(RESULT)), None, None
    return kernel(*made), None, kernel_of_measured_rows(dtype) if plan.together else None


def _check(op: Op, k: int, x: Tensor | None, role: str) -> None:
    if x is None:
        return
    if not x.is_cpu:
        raise ValueError(f"{op.argument(k)} is on {x.device}, expected cpu, where the results are")
    if role == FLAG and x.dtype is not torch.bool:
        raise TypeError(f"{op.argument(k)} has dtype {x.dtype}, expected bool")


def _present(x: Tensor | None) -> Tensor:
    assert x is not None
    return x


def _to(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda x: x.to(dtype)


def _copied_like(like: Tensor, role: str) -> Callable[[Tensor], Tensor]:
    layout = torch.empty_like(like, device="meta", dtype=torch.bool if role == FLAG else like.dtype)
    return lambda x: torch.empty_like(layout, device="cpu").copy_(x)


def _plan(
    op: Op,
    tensors: Sequence[Tensor | None],
    like: Tensor,
    time_dim: int,
    threads: int,
    sequences: int,
    measured: bool,
) -> Plan:
    nothing = (0,) * like.dim()
    operands = []
    for k, (x, role) in enumerate(zip(tensors, op.roles, strict=True)):
        if x is None:
            operands.append(Operand(nothing, like.itemsize, ONE))
        elif sequences and k == op.body.initial:
            each_alone = list(like.shape)
            each_alone[time_dim] = sequences
            strides = [stride * x.itemsize for stride in x.expand(each_alone).stride()]
            each, strides[time_dim] = strides[time_dim], 0
            operands.append(Operand(tuple(strides), x.itemsize, each=each))
        elif role == WANTED and x.numel() == 0:
            operands.append(Operand(nothing, like.itemsize, ABSENT))
        else:
            is_double = role == DISCOUNT and x.dtype is not like.dtype
            full = x if x.shape == like.shape else x.expand(like.shape)
            own = tuple([stride * x.itemsize for stride in full.stride()])
            operands.append(Operand(own, x.itemsize, ONE_DOUBLE if is_double else None))
    # Only as many parts as there are threads: strips are better long than many.
    shares = min(threads, like.numel() // STEPS_PER_CHUNK)
    itemsize = accumulate_dtype(like.dtype).itemsize
    return make_plan(like.shape, time_dim, operands, op.roles.index(RESULT), itemsize, shares, sequences, measured)
