"""From a compiled kernel to its streams: which tensor each access reaches, how wide it is, and how many bytes a step costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .launches import Launch, contiguous_extent, named_arguments
from .occupancy import occupancy
from .ptx import Access, accesses


@dataclass(frozen=True)
class Stream:
    """One tensor that a kernel reads or writes: the widths of its accesses, and bytes per step.

    ``role``: ``data`` (read or written once), ``tap``, ``repeated`` (stands for several lanes), or ``other`` (a number, the
    carry, the workspace). ``possible``: the width that layout and plan allow a thread; ``by_layout``: the layout alone.
    """

    name: str
    role: str
    widths: tuple[int, ...]
    possible: int
    by_layout: int
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

    def findings(self, strict: bool = False) -> list[str]:
        """What is wrong with it, in words. ``strict``: also accesses that are narrow because the plan makes them so."""
        if self.problem:
            return [self.problem]
        found = [f"{self.spilled_bytes} B spilled"] if self.spilled_bytes else []
        found += [f"{self.stack_bytes} B stack frame"] if self.stack_bytes else []
        for s in self.data:
            possible = s.by_layout if strict else s.possible
            if min(s.widths) < possible:
                found.append(f"{s.name}: {min(s.widths)} B accesses where {possible} B are possible")
            if s.bytes_per_step > s.least * 1.001:
                found.append(f"{s.name}: {s.bytes_per_step:g} B a step, at least {s.least:g}")
            if s.bytes_per_step < s.least * 0.999:
                found.append(f"{s.name}: only {s.bytes_per_step:g} B a step found, expected {s.least:g}")
        return found


def inspect_launch(launch: Launch) -> Inspected:
    """Compile one kernel and read what came out. A kernel that does not compile is a finding, too."""
    from tritonrl.kernels.ahead_of_time import compile_for

    arguments = named_arguments(launch)
    try:
        compiled = compile_for(launch.op, list(arguments.values()), launch.capability)
    except Exception as error:
        text = str(error).strip().splitlines() or [""]
        return Inspected(
            launch.id, "", 0, 0, 0, 0, 0.0, (), (), f"does not compile: {type(error).__name__}: {text[-1]}"
        )
    plan = compiled.plan
    found = accesses(compiled.ptx, compiled.parameters)
    streams = [_stream(launch, arguments, plan, name, group) for name, group in _grouped(found)]
    return Inspected(
        launch.id,
        f"{plan.strategy} {plan.lanes}x{plan.vectors}x{plan.vector} u{plan.unroll} w{plan.warps}",
        compiled.registers,
        compiled.spilled_bytes,
        compiled.stack_bytes,
        compiled.shared_bytes,
        occupancy(launch.capability, compiled.registers, compiled.shared_bytes, plan.warps),
        tuple(s for s, is_load in streams if is_load),
        tuple(s for s, is_load in streams if not is_load),
    )


def _grouped(found: Sequence[Access]) -> Iterable[tuple[str, list[Access]]]:
    """Accesses by parameter, loads and stores apart; of those in a loop and outside, the ones in the loop."""
    groups: dict[tuple[str, bool], list[Access]] = {}
    for access in found:
        groups.setdefault((access.parameter, access.load), []).append(access)
    for (name, _), group in groups.items():
        looped = [access for access in group if access.in_loop]
        yield name, looped or group


def _stream(
    launch: Launch, arguments: dict[str, Any], plan: Any, parameter: str, group: list[Access]
) -> tuple[Stream, bool]:
    """The stream behind one parameter of the kernel, and whether it is read."""
    is_load = group[0].load
    widths = tuple(sorted((access.width for access in group), reverse=True))
    kind, _, index = parameter.partition(".")
    if kind not in ("inputs", "outputs"):
        return Stream(parameter, "other", widths, 0, 0, 0.0, 0.0), is_load
    name, x, tap, again = _tensor(launch.op, arguments, kind, int(index))
    shape, time_dim = _shape(launch.op, arguments), arguments["time_dim"]
    tile = plan.lanes * (plan.unroll if plan.strategy == "lanes" else plan.vectors * plan.vector)
    per_step = sum(widths) * 32 * plan.warps / tile
    if x.dim() == 0:
        return Stream(name, "other", widths, 0, 0, 0.0, 0.0), is_load
    repeated = any(s == 0 and n > 1 for s, n in zip(x.expand(shape).stride(), shape, strict=True))
    role = "tap" if again else "repeated" if repeated else "data"
    along, extent = contiguous_extent(x, shape, time_dim)
    if tap and along == "time":
        extent = 1  # shifted by a step, so never aligned
    by_plan, by_layout = (_possible(x, along, extent, given, launch) for given in (plan, None))
    return Stream(name, role, widths, by_plan, by_layout, per_step, float(x.element_size())), is_load


def _shape(op: str, arguments: dict[str, Any]) -> torch.Size:
    from tritonrl.kernels.specs import SPECS

    given = list(arguments.values())
    return torch.broadcast_shapes(*(given[i].shape for i in SPECS[op].shaped_by))


def _tensor(op: str, arguments: dict[str, Any], kind: str, index: int) -> tuple[str, Tensor, int, bool]:
    """The tensor behind ``inputs.3`` or ``outputs.0``: its name, itself, its tap, and if another input has it."""
    from tritonrl.kernels import families
    from tritonrl.kernels.specs import allocate

    given = list(arguments.values())
    if kind == "outputs":
        return f"output {index}", [x for x in allocate(op, given) if x.numel()][index], 0, False
    inputs = getattr(families, op)(*given).inputs
    x, tap = inputs[index]
    name = next(name for name, argument in arguments.items() if argument is x)
    others = [i for i, (other, other_tap) in enumerate(inputs) if other is x and (other_tap == 0 or i < index)]
    return name + (f"[t{tap:+d}]" if tap else ""), x, tap, bool(tap and others)


def _possible(x: Tensor, along: str, extent: int, plan: Any, launch: Launch) -> int:
    """The widest access in bytes that the layout (and the plan, when given) allow a thread for this tensor.

    As many neighbouring elements as make 16 bytes of the floating dtype, as far as the alignment of the lines, the tile and
    the share of a thread in it go.
    """
    elements = 16 // getattr(torch, launch.dtype).itemsize if along else 1
    while elements > 1 and extent % elements:
        elements //= 2
    if plan is not None:
        in_tile = plan.vectors * plan.vector if along == "time" else plan.lanes
        tile = plan.lanes if plan.strategy == "lanes" else plan.lanes * plan.vectors * plan.vector
        while elements > 1 and (elements > in_tile or elements * 32 * plan.warps > tile):
            elements //= 2
    return elements * x.element_size()
