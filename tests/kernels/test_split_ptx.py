"""How the split kernel waits, on the metal: what Triton and ptxas make of its atomics, barriers and loads.

Triton documents neither who performs a scalar atomic nor how the others learn of its result. Found here, by compiling with
Triton 3.6.0 and 3.7.1 for sm_80, sm_90 and sm_100, and held to by these tests:

- *One thread*, the first, performs each scalar atomic, under a predicate. So there is one ticket for a program.
- *Every thread gets its result* through shared memory: ``st.shared`` by that thread, ``bar.sync``, ``ld.shared`` by all. In the
  spin loop a ``bar.sync`` at the head keeps the next round from overwriting what is still being read. The branch of the loop
  depends on nothing else that is loaded, so all threads take the same one.
- *Polling writes nothing*: an atomic addition of zero whose order is acquire becomes ``ld.global.gpu.acquire``, in SASS
  ``LDG.STRONG.GPU`` and ``CCTL.IVALL`` (drop what L1 holds).
- *Raising a bit* is ``atom.global.gpu.release.or`` by the one thread behind a ``bar.sync`` behind the stores of all; in SASS
  ``MEMBAR.ALL.GPU`` and a ``RED`` that nobody waits for.
- *Maps are loaded* by ``ld.global.cg`` (``LDG.STRONG.GPU``, not through L1) in every warp that needs them, each behind a
  ``bar.sync`` behind the spin loop; they are stable then, so scalars computed from them are the same in every warp.
- *Programs are counted*, where moments are wanted and in every strategy, by ``atom.global.gpu.acq_rel.add`` of the one thread
  behind a ``bar.sync`` behind the partial moments; in SASS ``MEMBAR.ALL.GPU``, ``ATOMG`` and ``CCTL.IVALL``. All threads learn
  of the count as of a ticket, and what was counted is loaded past L1 behind another ``bar.sync``.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tritonrl.kernels.backend import interpreting

pytest.importorskip("triton", reason="the kernels are compiled by Triton")
if interpreting():
    pytest.skip("with TRITON_INTERPRET nothing is compiled", allow_module_level=True)

import triton

from perf.ptx import accesses
from tritonrl.kernels import ahead_of_time
from tritonrl.kernels.ahead_of_time import Compiled, compile_for

from .ptx_machine import Arena, Block, Machine
from .test_ahead_of_time import CAPABILITIES, LAYOUTS, arguments

# Op and layout: one row a program, and 32 contiguous lanes a program, with moments and without.
KERNELS = [("gae_extended", "one long row"), ("linear_recurrence", "one long row"), ("gae_extended", "few long lanes")]

_KINDS = {
    "ticket": r"\batom\.global\.gpu\.relaxed\.add\.u32 (?P<to>%r\d+)",
    "count": r"\batom\.global\.gpu\.acq_rel\.add\.u32 (?P<to>%r\d+)",
    "raise": r"\b(atom|red)\.global\.gpu\.(release|acq_rel)\.or\.b32",
    "poll": r"\b(ld\.global\.gpu\.acquire|atom\.global\.gpu\.(acquire|acq_rel)\.\w+)\.[bu]32 (?P<to>%r\d+)",
    "barrier": r"\bbar\.sync\s+0;",
    "share": r"\bst\.shared\.b32 \[ %r\d+ \+ 0 \], (?P<to>%r\d+);",
    "learn": r"\bld\.shared\.b32\s+(?P<to>%r\d+), \[global_smem\];",
    "label": r"^(?P<to>\$L__BB\w+):",
    "branch": r"\bbra(\.uni)?\s+(?P<to>\$L__BB\w+)",
    "other atomic": r"\b(atom|red)\.",
    "global": r"\b(ld|st)\.global",
}


class Event(NamedTuple):
    """A line of PTX that matters here: its kind, register or label, predicate, text, and the pointer that it goes through."""

    kind: str
    to: str
    predicate: str
    text: str
    parameter: str = ""


def events(found: Compiled) -> list[Event]:
    through = iter(accesses(found.ptx, found.parameters))
    return list(_events(found.ptx, lambda: next(through).parameter))


def _events(ptx: str, parameter: Callable[[], str]) -> Iterator[Event]:
    for line in ptx.splitlines():
        kind = next((kind for kind, pattern in _KINDS.items() if re.search(pattern, line)), None)
        if kind is None:
            continue
        match = re.search(_KINDS[kind], line)
        assert match
        predicate = re.match(r"\s*@(!?%p\d+)", line)
        through = parameter() if re.search(_KINDS["global"], line) else ""
        yield Event(kind, match.groupdict().get("to") or "", predicate[1] if predicate else "", line.strip(), through)


def kinds(found: list[Event]) -> list[str]:
    return [event.kind for event in found]


def assignments(ptx: str) -> dict[str, list[str]]:
    """The right-hand sides by which each register is assigned."""
    assigned: dict[str, list[str]] = {}
    for line in ptx.splitlines():
        if match := re.match(r"\s*(?:@!?%p\d+\s+)?([a-z][\w.:]*)\s+(%[a-z]+\d+)\s*,\s*(.*);", line):
            assigned.setdefault(match[2], []).append(f"{match[1]} {match[3]}")
    return assigned


def assert_one_thread(found: Compiled, predicate: str) -> None:
    """Only the first thread of a program has the predicate: computed for all of them, because it is written in many ways."""
    assert predicate, "every thread does it"
    machine = Machine(found.ptx, (), Arena({}), 1, 32 * found.plan.warps, 0)
    block, needed = Block(machine, 0), sources(assignments(found.ptx), predicate)
    for _, opcode, operands in machine.code:
        if operands and isinstance(operands[0], str) and operands[0] in needed:
            block.execute(opcode, operands, np.ones(machine.threads, dtype=bool))
    assert np.flatnonzero(block.registers[predicate]).tolist() == [0]


def assert_broadcast(found: list[Event], i: int) -> Event:
    """The result of the ``i``-th event goes to every thread, through shared memory and a barrier."""
    result, (share, barrier, learn) = found[i], found[i + 1 : i + 4]
    assert (share.kind, barrier.kind, learn.kind) == ("share", "barrier", "learn")
    assert share.to == result.to and share.predicate == result.predicate
    assert learn.predicate == ""
    uses = [event for event in found if re.search(rf"{result.to}\b", event.text)]
    assert uses == [result, share], "nobody but through shared memory"
    return learn


def assert_one_ticket(compiled: Compiled) -> None:
    found = events(compiled)
    (i,) = (i for i, event in enumerate(found) if event.kind == "ticket")
    assert_one_thread(compiled, found[i].predicate)
    assert_broadcast(found, i)
    assert "other atomic" not in kinds(found)
    assert "global" not in kinds(found[:i]), "nothing is read before a program knows its tile"


def assert_uniform_waits(compiled: Compiled) -> None:
    """Each poll is by one thread, and the loop around it branches on what all threads got of it."""
    found, assigned = events(compiled), assignments(compiled.ptx)
    polls = [i for i, event in enumerate(found) if event.kind == "poll"]
    assert len(polls) == 3
    for i in polls:
        assert_one_thread(compiled, found[i].predicate)
        assert kinds(found[i - 2 : i]) == ["label", "barrier"]
        learned = assert_broadcast(found, i)
        back = found[i + 4]
        assert back.kind == "branch" and back.to == found[i - 2].to
        made_of = sources(assigned, back.predicate.lstrip("!"))
        assert learned.to in made_of
        said_to_all = {event.to for event in found if event.kind == "learn"}
        for register in made_of - said_to_all:
            for right in assigned[register]:
                assert not re.match(r"ld\.(global|shared)|atom|shfl|.*(%tid|%laneid)", right), right


def sources(assigned: dict[str, list[str]], register: str) -> set[str]:
    """Every register that one is computed from, itself included."""
    pending, seen = [register], set()
    while pending:
        register = pending.pop()
        if register not in seen:
            seen.add(register)
            pending += [x for right in assigned[register] for x in re.findall(r"%(?:rd|rs|r|p)\d+", right)]
    return seen


def assert_released(compiled: Compiled) -> None:
    """Between the last store to the workspace and the bit there is a barrier, and one thread raises it."""
    found = events(compiled)
    raised = [i for i, event in enumerate(found) if event.kind == "raise"]
    stored = [
        i for i, event in enumerate(found) if event.parameter == "published" and event.text.find("st.global") >= 0
    ]
    assert len(raised) == 3
    for first, last in zip([0, *raised], raised, strict=False):
        assert_one_thread(compiled, found[last].predicate)
        here = [i for i in stored if first < i < last]
        assert here
        assert "barrier" in kinds(found[max(here) : last])
        assert not {"label", "branch"} & set(kinds(found[max(here) : last]))
    assert max(stored) < max(raised)


def assert_acquired(compiled: Compiled) -> None:
    """What others published is loaded past L1, behind a spin loop and a barrier."""
    found = events(compiled)
    loaded = [
        i for i, event in enumerate(found) if event.parameter == "published" and event.text.find("ld.global") >= 0
    ]
    assert len(loaded) >= 5
    for i in loaded:
        assert re.search(r"ld\.global\.cg\.", found[i].text), found[i].text
        back = max((j for j in range(i) if found[j].kind == "branch" and found[j - 4].kind == "poll"), default=None)
        assert back is not None, "nothing is loaded in front of the first wait"
        assert "barrier" in kinds(found[back:i])
        assert "label" not in kinds(found[back:i]), "no other way leads here"


def assert_merged_by_the_last(compiled: Compiled) -> None:
    """Who counts last, and only who does, loads what all others stored before they were counted."""
    found = events(compiled)
    (i,) = (i for i, event in enumerate(found) if event.kind == "count")
    assert_one_thread(compiled, found[i].predicate)
    learned = assert_broadcast(found, i)
    partials = [j for j, event in enumerate(found) if event.parameter == "moments.0"]
    stored, loaded = [j for j in partials if j < i], [j for j in partials if j > i]
    assert [found[j].text.count("st.global") for j in stored] == [1, 1, 1]
    assert "barrier" in kinds(found[max(stored) : i])
    assert not {"label", "branch"} & set(kinds(found[max(stored) : i]))
    assert len(loaded) == 5 and all("ld.global.cg.v" in found[j].text for j in loaded)
    assert found[i + 4].kind == "barrier" and found[i + 5].kind == "branch", "whoever is not the last has done"
    away = found[i + 5]
    assert learned.to in sources(assignments(compiled.ptx), away.predicate.lstrip("!"))
    (end,) = (j for j, event in enumerate(found) if event.kind == "label" and event.to == away.to)
    assert end > max(loaded) and "global" not in kinds(found[end:])
    merged = [event for event in found if event.parameter == "moments.1"]
    assert len(merged) == 3 and all(event.predicate and "st.global" in event.text for event in merged)
    back = [j for j, event in enumerate(found) if event.parameter == "moments.2" and "st.global" in event.text]
    assert len(back) == 1 and i < back[0] < end, "the counter is put back"


CHECKS = (assert_one_ticket, assert_uniform_waits, assert_released, assert_acquired)


@pytest.mark.parametrize("check", CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("op", "layout"), KERNELS)
def test_programs_wait_and_publish_as_the_memory_model_asks(
    op: str, layout: str, capability: int, check: Callable[[Compiled], None]
) -> None:
    check(compiled_once(op, layout, capability)[0])


MERGING = ["one long row", "few long lanes", "short rows", "long rows", "tiles of lanes", "lanes contiguous"]


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("layout", MERGING)
def test_the_last_program_merges_behind_all_others(layout: str, capability: int) -> None:
    compiled, sass = compiled_once("gae_extended", layout, capability)
    assert_merged_by_the_last(compiled)
    assert_fenced_count(sass)


_compiled: dict[tuple[str, str, int], tuple[Compiled, list[str]]] = {}


def compiled_once(op: str, layout: str, capability: int) -> tuple[Compiled, list[str]]:
    """The kernel, and its SASS."""
    key = (op, layout, capability)
    if key not in _compiled:
        binaries: list[bytes] = []
        real = ahead_of_time._resource_usage

        def seen(cubin: bytes) -> Any:
            binaries.append(cubin)
            return real(cubin)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ahead_of_time, "_resource_usage", seen)
            found = compile_for(op, arguments(op, layout), capability)
        assert found.plan.strategy == LAYOUTS[layout][1]
        _compiled[key] = found, disassembled(binaries[0])
    return _compiled[key]


def disassembled(cubin: bytes) -> list[str]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    return re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(.*?)\s*;", text, re.MULTILINE)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("op", "layout"), KERNELS)
def test_the_assembler_fences_every_bit_and_drops_l1_behind_every_poll(op: str, layout: str, capability: int) -> None:
    assert_fenced(compiled_once(op, layout, capability)[1])


def fences(sass: list[str]) -> list[str]:
    """The instructions that order others, and loads and atomics that other programs see."""
    code = [re.sub(r"^@!?U?P\d\s+", "", line) for line in sass]
    return [line for line in code if re.match(r"MEMBAR|ATOM|RED[.G]|CCTL|LDG.*STRONG|BAR", line)]


def assert_fenced(sass: list[str]) -> None:
    code = fences(sass)
    bits = [i for i, line in enumerate(code) if re.match(r"(RED|ATOM)G?\.E\.OR\.STRONG\.GPU", line)]
    drops = [i for i, line in enumerate(code) if line.startswith("CCTL.IVALL") and "ADD" not in code[i - 1]]
    assert len(bits) == 3 and len(drops) == 3
    for i in bits:
        assert re.match(r"MEMBAR\.(ALL|SC)\.GPU", code[i - 1]) and code[i - 2].startswith("BAR.SYNC")
    for i in drops:
        assert code[i - 1].startswith("LDG.E.STRONG.GPU") and code[i - 2].startswith("BAR.SYNC")
        assert code[i + 1].startswith("BAR.SYNC")
    assert sum("STRONG.GPU" in line and line.startswith("LDG") for line in code) >= 3 + 5


def assert_fenced_count(sass: list[str]) -> None:
    code = fences(sass)
    (i,) = (i for i, line in enumerate(code) if "ADD" in line and code[i - 1].startswith("MEMBAR"))
    assert re.match(r"MEMBAR\.(ALL|SC)\.GPU", code[i - 1]) and code[i - 2].startswith("BAR.SYNC")
    assert re.match(r"ATOMG?\.E\.ADD\.STRONG\.GPU", code[i]) and code[i + 1].startswith("CCTL.IVALL")
    assert code[i + 2].startswith("BAR.SYNC") and code[i + 3].startswith("BAR.SYNC")
    assert [line.startswith("LDG.E.128.STRONG.GPU") for line in code[i + 4 :] if line.startswith("LDG")] == [True] * 5


# The checks, on code that is wrong.


def without_barrier_before(what: str) -> Callable[[str], str]:
    def cut(ptx: str) -> str:
        before, after = ptx.split(what, 1) if ptx.count(what) == 1 else ptx.rsplit(what, 1)
        head, tail = before.rsplit("bar.sync", 1)
        return head + tail.split(";", 1)[1] + what + after

    return cut


def hoisted(ptx: str) -> str:
    """The last load of a state, in front of everything."""
    lines = ptx.splitlines()
    load = lines.pop(max(i for i, line in enumerate(lines) if "ld.global.cg" in line))
    lines.insert(next(i for i, line in enumerate(lines) if "bar.sync" in line), load)
    return "\n".join(lines)


WRONG = {
    "every thread takes a ticket": (
        assert_one_ticket,
        lambda ptx: re.sub(r"@%p\d+ (atom.global.gpu.relaxed)", r"\1", ptx),
    ),
    "a thread in every warp takes a ticket": (
        assert_one_ticket,
        lambda ptx: ptx.replace("%tid.x", "%laneid"),
    ),
    "no barrier before the ticket is read": (
        assert_one_ticket,
        lambda ptx: re.sub(r"bar\.sync\s+0;", "", ptx, count=1),
    ),
    "every thread polls": (
        assert_uniform_waits,
        lambda ptx: re.sub(r"@%p\d+ (ld.global.gpu.acquire)", r"\1", ptx),
    ),
    "a poll overtakes the reading of the last": (assert_uniform_waits, without_barrier_before("ld.global.gpu.acquire")),
    "a branch on what one thread saw": (assert_uniform_waits, lambda ptx: ptx.replace("ld.shared.b32", "mov.b32")),
    "a branch on what each thread makes of it": (
        assert_uniform_waits,
        lambda ptx: re.sub(r"shl\.b32(\s+%r\d+), %r\d+, %r\d+;", r"mov.u32\1, %laneid;", ptx),
    ),
    "a relaxed poll": (assert_uniform_waits, lambda ptx: ptx.replace("gpu.acquire", "gpu.relaxed", 1)),
    "a relaxed bit": (assert_released, lambda ptx: ptx.replace("release.or", "relaxed.or", 1)),
    "a bit of the block only": (assert_released, lambda ptx: ptx.replace("gpu.release.or", "cta.release.or", 1)),
    "no barrier before the bit": (assert_released, without_barrier_before("atom.global.gpu.release.or")),
    "through L1": (assert_acquired, lambda ptx: ptx.replace("ld.global.cg", "ld.global.ca", 1)),
    "as if it were constant": (assert_acquired, lambda ptx: ptx.replace("ld.global.cg", "ld.global.nc", 1)),
    "hoisted": (assert_acquired, hoisted),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_code_is_seen(name: str) -> None:
    check, spoil = WRONG[name]
    right = compiled_once("linear_recurrence", "one long row", 90)[0]
    wrong = spoil(right.ptx)
    assert wrong != right.ptx
    check(right)
    with pytest.raises((AssertionError, ValueError)):
        check(right._replace(ptx=wrong))


def without_line(what: str, after: str) -> Callable[[str], str]:
    """Without the first line with ``what`` in it behind the last one with ``after``."""

    def cut(ptx: str) -> str:
        lines = ptx.splitlines()
        begin = max(i for i, line in enumerate(lines) if after in line)
        del lines[next(i for i in range(begin + 1, len(lines)) if what in lines[i])]
        return "\n".join(lines)

    return cut


WRONG_COUNT = {
    "every thread counts": lambda ptx: re.sub(r"@%p\d+ (atom.global.gpu.acq_rel.add)", r"\1", ptx),
    "relaxed": lambda ptx: ptx.replace("acq_rel.add", "relaxed.add"),
    "only released": lambda ptx: ptx.replace("acq_rel.add", "release.add"),
    "in the block": lambda ptx: ptx.replace("gpu.acq_rel.add", "cta.acq_rel.add"),
    "no barrier before it": without_barrier_before("atom.global.gpu.acq_rel.add"),
    "merged through L1": lambda ptx: ptx.replace("ld.global.cg.v4", "ld.global.ca.v4"),
    "everybody merges": without_line(" bra ", after="acq_rel.add"),
    "the counter stays": without_line("st.global.b32", after="st.global.b64"),
}


@pytest.mark.parametrize("name", WRONG_COUNT)
def test_a_wrong_count_is_seen(name: str) -> None:
    right = compiled_once("gae_extended", "short rows", 90)[0]
    wrong = WRONG_COUNT[name](right.ptx)
    assert wrong != right.ptx
    assert_merged_by_the_last(right)
    with pytest.raises((AssertionError, ValueError)):
        assert_merged_by_the_last(right._replace(ptx=wrong))


@pytest.mark.parametrize(
    ("check", "op", "layout"),
    [(assert_fenced, "linear_recurrence", "one long row"), (assert_fenced_count, "gae_extended", "short rows")],
)
@pytest.mark.parametrize("missing", ["MEMBAR", "CCTL", "BAR"])
def test_wrong_machine_code_is_seen(missing: str, check: Callable[[list[str]], None], op: str, layout: str) -> None:
    right = compiled_once(op, layout, 90)[1]
    wrong = [line for line in right if missing not in line]
    assert len(wrong) < len(right)
    check(right)
    with pytest.raises((AssertionError, ValueError)):
        check(wrong)
