"""From a compiled kernel to its streams: which tensor each access reaches, how wide it is, and how many bytes a step costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .launches import ELEMENTWISE, Launch, contiguous_extent, named_arguments
from .occupancy import occupancy
from .ptx import Access, accesses


@dataclass(frozen=True)
class Stream:
    """One tensor that a kernel reads or writes: the widths of its accesses, and bytes per step.

    ``role``: ``data`` (read or written once), ``tap``, ``repeated`` (stands for several lanes), or ``other`` (a number, the
    carry, a number for each lane or sequence, offsets, the workspace). ``possible``: the width that the layout allows a thread.
    """

    name: str
    role: str
    widths: tuple[int, ...]
    possible: int
    bytes_per_step: float
    least: float


@dataclass(frozen=True)
class Inspected:
    """What is known of one kernel."""

    id: str
    plan: str
    registers: int
    spilled_bytes: int
    stack_bytes: int
    shared_bytes: int
    occupancy: float
    loads: tuple[Stream, ...]
    stores: tuple[Stream, ...]
    problem: str = ""

    @property
    def data(self) -> list[Stream]:
        """The streams that make up the minimum."""
        return [s for s in (*self.loads, *self.stores) if s.role == "data"]

    def findings(self) -> list[str]:
        """What is wrong with it, in words."""
        if self.problem:
            return [self.problem]
        found = [f"{self.spilled_bytes} B spilled"] if self.spilled_bytes else []
        found += [f"{self.stack_bytes} B stack frame"] if self.stack_bytes else []
        for s in self.data:
            if min(s.widths) < s.possible:
                found.append(f"{s.name}: {min(s.widths)} B accesses where {s.possible} B are possible")
            if s.bytes_per_step > s.least * 1.001:
                found.append(f"{s.name}: {s.bytes_per_step:g} B a step, at least {s.least:g}")
            if s.bytes_per_step < s.least * 0.999:
                found.append(f"{s.name}: only {s.bytes_per_step:g} B a step found, expected {s.least:g}")
        return found


def inspect_launch(launch: Launch) -> Inspected:
    """Compile one kernel and read what came out. A kernel that does not compile is a finding, too."""
    from tritonrl.kernels.ahead_of_time import compile_for, compile_standardise

    arguments = named_arguments(launch)
    try:
        if launch.op == ELEMENTWISE:
            compiled = compile_standardise(**arguments, capability=launch.capability)
        else:
            compiled = compile_for(launch.op, list(arguments.values()), launch.capability)
    except Exception as error:
        text = str(error).strip().splitlines() or [""]
        return Inspected(
            launch.id, "", 0, 0, 0, 0, 0.0, (), (), f"does not compile: {type(error).__name__}: {text[-1]}"
        )
    plan = compiled.plan
    found = accesses(compiled.ptx, compiled.parameters)
    streams = [_stream(launch, arguments, plan, name, group) for name, group in _grouped(found, plan)]
    return Inspected(
        launch.id,
        _plan_in_short(plan),
        compiled.registers,
        compiled.spilled_bytes,
        compiled.stack_bytes,
        compiled.shared_bytes,
        occupancy(launch.capability, compiled.registers, compiled.shared_bytes, plan.warps),
        tuple(s for s, is_load in streams if is_load),
        tuple(s for s, is_load in streams if not is_load),
    )


def _plan_in_short(plan: Any) -> str:
    """``rows 32x16x4 w4``: 32 lanes, 16 vectors of 4 steps, 4 warps; ``lanes 128 u8 w1``: 128 lanes, 8 steps in flight."""
    if plan.strategy == "lanes":
        return f"lanes {plan.lanes} u{plan.unroll} w{plan.warps}"
    return f"{plan.strategy} {plan.lanes}x{plan.vectors}x{plan.vector} w{plan.warps}" + (" +1" if plan.ahead else "")


def _grouped(found: Sequence[Access], plan: Any) -> Iterable[tuple[str, list[Access]]]:
    """Accesses by parameter, loads and stores apart; of those in a loop and outside, the ones in the loop.

    But those outside where split takes one tile and looks only for what follows it in a loop.
    """
    groups: dict[tuple[str, bool], list[Access]] = {}
    for access in found:
        groups.setdefault((access.parameter, access.load), []).append(access)
    for (name, _), group in groups.items():
        preferred = [access for access in group if access.in_loop != (plan.strategy == "split")]
        yield name, preferred or group


def _stream(
    launch: Launch, arguments: dict[str, Any], plan: Any, parameter: str, group: list[Access]
) -> tuple[Stream, bool]:
    """The stream behind one parameter of the kernel, and whether it is read."""
    is_load = group[0].load
    widths = tuple(sorted((access.width for access in group), reverse=True))
    kind, _, index = parameter.partition(".")
    tile = plan.lanes * (plan.unroll if plan.strategy == "lanes" else plan.vectors * plan.vector)
    per_step = sum(widths) * 32 * plan.warps / tile
    if launch.op == ELEMENTWISE and kind != "moments":
        x = arguments["x" if kind == "y" else kind]
        return Stream(
            kind, "data", widths, _possible(x, "flat", x.numel(), launch), per_step, x.element_size()
        ), is_load
    if kind not in ("inputs", "outputs"):
        return Stream(parameter, "other", widths, 0, 0.0, 0.0), is_load
    name, x, tap, role = _tensor(launch.op, arguments, kind, int(index))
    if role == "other":
        return Stream(name, role, widths, 0, 0.0, 0.0), is_load
    shape, time_dim = _shape(launch.op, arguments), arguments["time_dim"]
    if role == "data" and any(s == 0 and n > 1 for s, n in zip(x.expand(shape).stride(), shape, strict=True)):
        role = "repeated"
    along, extent = contiguous_extent(x, shape, time_dim)
    if tap and along == "time":
        extent = 1  # shifted by a step, so never aligned
    possible = _possible(x, along, extent, launch)
    return Stream(name, role, widths, possible, per_step, float(x.element_size())), is_load


def _shape(op: str, arguments: dict[str, Any]) -> torch.Size:
    from tritonrl.kernels.specs import ALL_SPECS

    given = list(arguments.values())
    return torch.broadcast_shapes(*(given[i].shape for i in ALL_SPECS[op].shaped_by if given[i] is not None))


def _tensor(op: str, arguments: dict[str, Any], kind: str, index: int) -> tuple[str, Tensor, int, str]:
    """The tensor behind ``inputs.3`` or ``outputs.0``: its name, itself, its tap, and its role (``repeated`` not yet known)."""
    from tritonrl.kernels import families
    from tritonrl.kernels.specs import allocate, step_results

    given = list(arguments.values())
    if kind == "outputs":
        return f"output {index}", step_results(op, allocate(op, given))[index], 0, "data"
    recurrence = getattr(families, op)(*given)
    x, tap = recurrence.inputs[index]
    name = next((name for name, argument in arguments.items() if argument is x), f"input {index}")
    if index in recurrence.per_lane or index in recurrence.per_sequence or x.dim() == 0:
        return name, x, tap, "other"
    same = [i for i, (other, other_tap) in enumerate(recurrence.inputs) if other is x and (other_tap == 0 or i < index)]
    return name + (f"[t{tap:+d}]" if tap else ""), x, tap, "tap" if tap and same else "data"


def _possible(x: Tensor, along: str, extent: int, launch: Launch) -> int:
    """The widest access in bytes that the layout allows a thread for this tensor.

    As many neighbouring elements as make 16 bytes of the floating dtype, as far as the alignment of the lines goes.
    """
    elements = 16 // getattr(torch, launch.dtype).itemsize if along else 1
    while elements > 1 and extent % elements:
        elements //= 2
    return elements * x.element_size()
