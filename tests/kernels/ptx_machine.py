"""A machine for the PTX that Triton makes of our kernels: the code that a GPU would be given, run without one. Test code.

All threads of a program are in step: an instruction is one numpy operation over them. (So it says nothing about barriers that
are missing within a program; test_split_ptx.py reads those.) Programs are interleaved: one hands over in front of each atomic
and each acquire, and a seed says who goes on, with room for only so many at once. Opcodes that are not known are an error, as
are branches that the threads of a program do not all take, and accesses outside of what was handed over.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Registers = dict[str, np.ndarray]
_BASE, _GUARD = 0x10000, 256
_TYPES = {"b8": np.uint8, "u8": np.uint8, "s8": np.int8, "b16": np.uint16, "u16": np.uint16, "s16": np.int16,
          "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "b64": np.uint64, "u64": np.uint64, "s64": np.int64,
          "f32": np.float32, "f64": np.float64}  # fmt: skip
_MOST_HANDOVERS = 1_000_000


class Instruction(NamedTuple):
    """``predicate`` as ``%p1`` or ``!%p1``; operands that stand in braces are lists."""

    predicate: str
    opcode: str
    operands: tuple[Any, ...]


class Arena:
    """Global memory: every tensor that a kernel is given, with guards between them."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.at: dict[str, int] = {}
        self.tensors = dict(tensors)
        size = _GUARD
        for name, x in tensors.items():
            self.at[name] = size
            size += -(-x.untyped_storage().nbytes() // 16) * 16 + _GUARD
        self.bytes = np.full(size, 0xA5, dtype=np.uint8)
        self.allowed = np.zeros(size, dtype=bool)
        for name, x in tensors.items():
            raw = _raw(x)
            self.bytes[self.at[name] : self.at[name] + raw.size] = raw
            self.allowed[self.at[name] : self.at[name] + raw.size] = True

    def address(self, name: str) -> int:
        return _BASE + self.at[name] + self.tensors[name].storage_offset() * self.tensors[name].element_size()

    def places(self, addresses: np.ndarray, size: int) -> np.ndarray:
        places = (addresses.astype(np.int64) - _BASE)[:, None] + np.arange(size)
        assert places.min(initial=0) >= 0 and places.max(initial=0) < self.bytes.size, "outside of memory"
        assert self.allowed[places].all(), "outside of every tensor"
        return places

    def write_back(self) -> None:
        for name, x in self.tensors.items():
            raw = _raw(x)
            raw[:] = self.bytes[self.at[name] : self.at[name] + raw.size]


def _raw(x: Tensor) -> np.ndarray:
    whole = torch.empty(0, dtype=torch.uint8).set_(x.untyped_storage())  # type: ignore[call-overload]
    return whole.numpy()


def parse(ptx: str) -> tuple[list[Instruction], dict[str, int]]:
    """The instructions, and where each label stands."""
    body = ptx.split("\n{", 1)[1].split("\n}", 1)[0]
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    for raw in re.sub(r"//.*", "", body).splitlines():
        line = raw.strip()
        if label := re.fullmatch(r"(\$L\w+):", line):
            labels[label[1]] = len(code)
        elif line and not line.startswith((".", "$")):
            match = re.fullmatch(r"(?:@(!?%p\d+)\s+)?([a-z][\w.:]*)\s*(.*?)\s*;", line)
            assert match, line
            code.append(Instruction(match[1] or "", match[2], tuple(_operands(match[3]))))
    return code, labels


def _operands(text: str) -> Iterator[Any]:
    for one in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", text):
        if one.startswith("{"):
            yield [x.strip() for x in one[1:-1].split(",")]
        else:
            yield one.strip()


class Block:
    """One program: its threads, its registers and its shared memory."""

    def __init__(self, machine: Machine, index: int) -> None:
        self.machine = machine
        n = machine.threads
        self.ticket: float = np.inf  # what the first atomic gave
        self.thread = np.arange(n, dtype=np.uint32)
        self.lane = (self.thread % 32).astype(np.int64)
        self.special = {
            "%tid.x": self.thread,
            "%ctaid.x": np.full(n, index, np.uint32),
            "%nctaid.x": np.full(n, machine.grid, np.uint32),
            "%ctaid.y": np.zeros(n, np.uint32),
            "%nctaid.y": np.ones(n, np.uint32),
            "%laneid": self.thread % 32,
        }
        self.registers: Registers = {}
        self.shared = np.zeros(max(machine.shared_bytes, 4), dtype=np.uint8)

    def run(self) -> Iterator[None]:
        at, code, n = 0, self.machine.code, self.machine.threads
        everybody = np.ones(n, dtype=bool)
        while True:
            predicate, opcode, operands = code[at]
            active = everybody
            if predicate:
                active = self.registers[predicate.lstrip("!")] ^ (predicate[0] == "!")
            at += 1
            if opcode == "ret":
                assert active.all() or not active.any()
                if active.any():
                    return
            elif opcode.startswith("bra"):
                assert active.all() or not active.any(), "threads of one program part"
                at = self.machine.labels[operands[0]] if active.any() else at
            else:
                if opcode.startswith("atom") or "acquire" in opcode:
                    yield
                self.execute(opcode, operands, active)

    def value(self, operand: str, kind: Any) -> np.ndarray:
        """What an operand is worth to each thread, as a number of this kind."""
        if operand in self.registers:
            found = self.registers[operand]
            return found if found.dtype == kind else found.view(kind)
        if operand in self.special:
            return self.special[operand].view(kind)
        if operand.startswith("%"):  # a register that nothing was ever written to: whatever it holds must not matter
            return np.full(self.machine.threads * np.dtype(kind).itemsize, 0xA5, np.uint8).view(kind)
        if operand == "global_smem":
            operand = "0"
        if operand.startswith(("0f", "0d")):
            raw = int(operand[2:], 16)
            bits = np.uint32(raw) if operand[1] == "f" else np.uint64(raw)
            return np.full(self.machine.threads, bits).view(kind)
        unsigned = {4: np.uint32, 8: np.uint64, 2: np.uint16, 1: np.uint8}[np.dtype(kind).itemsize]
        return np.full(
            self.machine.threads, int(operand.rstrip("U"), 0) % 2 ** (8 * np.dtype(kind).itemsize), unsigned
        ).view(kind)

    def assign(self, register: str, value: np.ndarray, active: np.ndarray) -> None:
        value = np.ascontiguousarray(value)
        if value.dtype != bool:
            value = value.view({2: np.uint16, 4: np.uint32, 8: np.uint64}[value.dtype.itemsize])
        old = self.registers.get(register)
        self.registers[register] = value if old is None or active.all() else np.where(active, value, old)

    def execute(self, opcode: str, operands: Sequence[Any], active: np.ndarray) -> None:
        name, *modifiers = opcode.split(".")
        kind = next((_TYPES[m] for m in reversed(modifiers) if m in _TYPES), None)
        if name in ("ld", "st"):
            self.access(name == "ld", modifiers, kind, operands, active)
        elif name == "atom":
            self.atomic(modifiers, kind, operands, active)
        elif name in ("bar", "membar", "fence"):
            pass
        elif isinstance(operands[0], list) and name == "mov":
            halves = self.value(operands[1], np.uint64).view(np.uint32).reshape(-1, 2)
            for i, register in enumerate(operands[0]):
                self.assign(register, halves[:, i], active)
        elif name == "ldmatrix":
            rows = self.value(operands[1][1:-1].strip().split("+")[0], np.uint32).reshape(-1, 32)
            rows = np.repeat(rows[:, :8], 4, axis=1).reshape(-1) + 4 * (self.thread % 4)
            where = rows.astype(np.int64)[:, None] + np.arange(4)
            (to,) = operands[0]
            self.assign(to, self.shared[where].copy().view(np.uint32).reshape(-1), active)
        else:
            self.assign(operands[0], self.compute(name, modifiers, kind, operands[1:]), active)

    def access(self, load: bool, modifiers: Sequence[str], kind: Any, operands: Sequence[Any], active: Any) -> None:
        pointer, registers = (operands[1], operands[0]) if load else (operands[0], operands[1])
        registers = registers if isinstance(registers, list) else [registers]
        inside = pointer[1:-1].replace(" ", "")
        if "param" in modifiers:
            given = self.machine.parameters[int(inside.rsplit("_", 1)[1])]
            raw = (
                np.array([given], np.float32).view(kind) if isinstance(given, float) else np.array([given]).astype(kind)
            )
            self.assign(registers[0], np.repeat(raw, self.machine.threads), active)
            return
        base, _, offset = inside.partition("+")
        is_shared = "shared" in modifiers
        addresses = self.value(base, np.uint32 if is_shared else np.uint64).astype(np.int64) + int(offset or 0)
        size = np.dtype(kind).itemsize
        memory = self.shared if is_shared else self.machine.arena.bytes
        for i, register in enumerate(registers):
            here = addresses[active] + i * size
            where = here[:, None] + np.arange(size) if is_shared else self.machine.arena.places(here, size)
            if load:
                wide = np.dtype(kind) if size > 1 else np.dtype(np.uint8)
                value = np.zeros(self.machine.threads, wide)
                value[active] = memory[where].copy().view(kind).reshape(-1)
                self.assign(register, value.astype(np.uint16) if size == 1 else value, active)
            else:
                narrow = self.value(register, kind if size > 1 else np.uint16)[active].astype(kind)
                memory[where] = narrow.view(np.uint8).reshape(-1, size)

    def atomic(self, modifiers: Sequence[str], kind: Any, operands: Sequence[Any], active: np.ndarray) -> None:
        assert active.sum() <= 1, "one thread performs an atomic"
        to, pointer, operand = operands
        base, _, offset = pointer[1:-1].replace(" ", "").partition("+")
        old = np.zeros(self.machine.threads, kind)
        for i in np.flatnonzero(active):
            address = self.value(base, np.uint64)[i : i + 1].astype(np.int64) + int(offset or 0)
            where = self.machine.arena.places(address, np.dtype(kind).itemsize)[0]
            old[i] = self.machine.arena.bytes[where].view(kind)[0]
            given = self.value(operand, kind)[i]
            self.ticket = float(old[i]) if np.isinf(self.ticket) else self.ticket
            new = old[i] + given if "add" in modifiers else old[i] | given
            self.machine.arena.bytes[where] = np.array([new], kind).view(np.uint8)
        self.assign(to, old, active)

    def compute(self, name: str, modifiers: Sequence[str], kind: Any, operands: Sequence[str]) -> np.ndarray:
        if name == "shfl":
            return self.shuffle(modifiers, operands)
        if name == "cvt":
            to, of = (_TYPES[m] for m in modifiers if m in _TYPES)
            if np.dtype(of).itemsize == 1:  # half of a register
                return self.value(operands[0], np.uint16).astype(np.uint8).view(of).astype(to)
            return self.value(operands[0], of).astype(to)
        if name == "mov" and isinstance(operands[0], list):
            return np.stack([self.value(x, np.uint32) for x in operands[0]], axis=1).view(np.uint64).reshape(-1)
        if "f32x2" in modifiers:
            pairs = [self.value(x, np.uint64).view(np.float32) for x in operands]
            return _ARITHMETIC[name](*pairs).view(np.uint64)
        if "pred" in modifiers:
            given = [self.registers[x] if x in self.registers else self.value(x, np.int32) != 0 for x in operands]
            return _LOGIC[name](*given)
        if name == "selp":
            chosen = self.registers[operands[2]]
            return np.where(chosen, self.value(operands[0], kind), self.value(operands[1], kind))
        if name == "setp":
            return _COMPARE[modifiers[0]](*(self.value(x, kind) for x in operands))
        if "wide" in modifiers:
            wide = np.int64 if kind is np.int32 else np.uint64
            product = self.value(operands[0], kind).astype(wide) * self.value(operands[1], kind).astype(wide)
            return product + self.value(operands[2], wide) if name == "mad" else product
        if name == "redux":
            values = self.value(operands[0], kind).reshape(-1, 32)
            return np.repeat(_REDUCE[modifiers[1]](values, axis=1).astype(kind), 32)
        if name in ("shl", "shr"):
            by = self.value(operands[1], np.uint32).astype(np.int64)
            assert (by < 8 * np.dtype(kind).itemsize).all()
            return _ARITHMETIC[name](self.value(operands[0], kind), by.astype(kind))
        given = [self.value(x, np.uint32 if name == "prmt" else kind) for x in operands]
        return _ARITHMETIC[name](*given).astype(given[0].dtype)

    def shuffle(self, modifiers: Sequence[str], operands: Sequence[str]) -> np.ndarray:
        x = self.value(operands[0], np.uint32).reshape(-1, 32)
        by, lane = int(operands[1], 0), np.arange(32)
        source = lane - by if "up" in modifiers else lane ^ by if "bfly" in modifiers else np.full(32, by)
        return x[:, np.where(source >= 0, source, lane)].reshape(-1)


def _fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return (a.astype(np.float64) * b + c).astype(a.dtype)


def _permute(a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
    """Bytes of two words."""
    both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    found = np.zeros_like(a)
    for i in range(4):
        which = (selector >> np.uint32(4 * i)) & np.uint32(7)
        byte = (both >> (which.astype(np.uint64) * np.uint64(8))) & np.uint64(0xFF)
        found |= (byte << np.uint64(8 * i)).astype(np.uint32)
    return found


def _truncated(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.trunc(a.astype(np.float64) / b)


def _field(a: np.ndarray, at: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Some bits of a word, of which the highest is the sign if the word has one."""
    bits = a.dtype.type(8 * a.dtype.itemsize)
    return (a << (bits - at - length)) >> (bits - length)


_LOGIC: dict[str, Callable[..., np.ndarray]] = {
    "and": np.logical_and, "or": np.logical_or, "not": np.logical_not, "mov": lambda x: x, "xor": np.logical_xor,
}  # fmt: skip
_COMPARE: dict[str, Callable[..., np.ndarray]] = {
    "eq": np.equal, "neu": np.not_equal, "ne": lambda a, b: (a != b) & (a == a) & (b == b),
    "lt": np.less, "gt": np.greater, "le": np.less_equal, "ge": np.greater_equal,
}  # fmt: skip
_REDUCE: dict[str, Callable[..., np.ndarray]] = {"add": np.sum, "max": np.max, "min": np.min}
_ARITHMETIC: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "fma": _fused, "mov": lambda x: x, "and": np.bitwise_and,
    "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.bitwise_not, "shl": np.left_shift, "shr": np.right_shift,
    "prmt": _permute, "neg": np.negative, "max": np.fmax, "min": np.fmin, "bfe": _field, "rem": np.fmod,
    "mad": lambda a, b, c: a * b + c,
    "div": lambda a, b: a / b if a.dtype.kind == "f" else _truncated(a, b),
}  # fmt: skip


class Machine:
    """A GPU with room for ``resident`` programs at once."""

    def __init__(self, ptx: str, parameters: Sequence[Any], arena: Arena, grid: int, threads: int, shared: int) -> None:
        self.code, self.labels = parse(ptx)
        self.parameters, self.arena = parameters, arena
        self.grid, self.threads, self.shared_bytes = grid, threads, shared

    def run(self, resident: int, seed: int) -> None:
        rng = random.Random(seed)
        pending = list(range(self.grid))
        rng.shuffle(pending)
        running: list[tuple[Block, Iterator[None]]] = []
        with np.errstate(all="ignore"):
            for _ in range(_MOST_HANDOVERS):
                while pending and len(running) < resident:
                    block = Block(self, pending.pop())
                    running.append((block, block.run()))
                if not running:
                    return
                # Everybody takes a ticket soon, and then who has the last ones is likely to overtake the others.
                chosen = max(rng.choices(running, k=2), key=lambda x: x[0].ticket)
                if next(chosen[1], "finished") == "finished":
                    running.remove(chosen)
        raise AssertionError(f"not finished after {_MOST_HANDOVERS} handovers")
