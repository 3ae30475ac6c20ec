"""Reading PTX: every global load and store, how wide it is, which kernel parameter it reaches, and whether it is in a loop.

The compiler's registers are assigned once (but for loop variables), so an address is traced to its base pointer by following
the 64-bit registers that it was computed from, back to the parameter they start at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_ACCESS = re.compile(r"\b(ld|st)\.global(?:\.(?!v\d|[bsuf]\d)[\w:]+)*(?:\.v(\d))?\.[bsuf](\d+)\s[^\[]*\[\s*(%rd\d+)")
_COPY = re.compile(
    r"\bcp\.async\.\w+\.shared\.global(?:\.[\w:]+)*\s*\[[^\]]*\]\s*,\s*\[\s*(%rd\d+)[^\]]*\]\s*,\s*(0x[0-9a-f]+|\d+)"
)
_PARAMETER = re.compile(r"ld\.param\.[bu]64\s+(%rd\d+)\s*,\s*\[\w+_param_(\d+)")
_ASSIGNED = re.compile(r"^\s*(?:@!?%p\d+\s+)?[a-z][\w.:]*\s+(%rd\d+)\s*,\s*(.*);")
_LABEL = re.compile(r"^(\$L__BB\w+):")
_BRANCH = re.compile(r"\bbra(?:\.uni)?\s+(\$L__BB\w+)")
_POINTER = re.compile(r"\.param\s+\.u64\s+\.ptr\s+\.global\s.*_param_(\d+)")


class Access(NamedTuple):
    """One load or store instruction: ``width`` bytes a thread, from or to the kernel parameter ``parameter``."""

    load: bool
    width: int
    parameter: str
    in_loop: bool


def _loops(lines: Sequence[str]) -> list[tuple[int, int]]:
    """First and last line of everything that a backward branch encloses."""
    at: dict[str, int] = {}
    loops = []
    for i, line in enumerate(lines):
        if label := _LABEL.match(line):
            at[label.group(1)] = i
        if (branch := _BRANCH.search(line)) and branch.group(1) in at:
            loops.append((at[branch.group(1)], i))
    return loops


def _origins(lines: Sequence[str]) -> tuple[dict[str, set[str]], dict[str, int]]:
    """For each 64-bit register what it is computed from, and those that are loaded from a parameter."""
    sources: dict[str, set[str]] = {}
    parameters: dict[str, int] = {}
    for line in lines:
        if found := _PARAMETER.search(line):
            parameters[found.group(1)] = int(found.group(2))
        elif found := _ASSIGNED.match(line):
            sources.setdefault(found.group(1), set()).update(re.findall(r"%rd\d+", found.group(2)))
    return sources, parameters


def accesses(ptx: str, names: Sequence[str]) -> list[Access]:
    """Every global access of a kernel. ``names``: of its parameters, in order; what cannot be traced is called ``?``."""
    lines = ptx.splitlines()
    loops, (sources, parameters) = _loops(lines), _origins(lines)
    pointers = {int(i) for i in _POINTER.findall(ptx)}

    def base(register: str) -> str:
        pending, seen = [register], set()
        while pending:
            register = pending.pop()
            if register in seen:
                continue
            seen.add(register)
            index = parameters.get(register)
            if index is not None and index in pointers:
                return names[index] if index < len(names) else "?"
            pending += sources.get(register, ())
        return "?"

    found = []
    for i, line in enumerate(lines):
        in_loop = any(first <= i <= last for first, last in loops)
        if access := _ACCESS.search(line):
            kind, vector, bits, address = access.groups()
            found.append(Access(kind == "ld", int(vector or 1) * int(bits) // 8, base(address), in_loop))
        elif copy := _COPY.search(line):
            found.append(Access(True, int(copy.group(2), 0), base(copy.group(1)), in_loop))
    return found
