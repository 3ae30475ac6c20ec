"""Triton's interpreter with the programs of a launch truly interleaved, on a memory as weak as a GPU's. Test code.

The interpreter runs programs one after the other in grid order, so a kernel whose programs wait for each other never waits
there. Here every program has a thread of its own, of which one runs at a time: it hands over before each access to memory,
and a :class:`Schedule` says who goes on. That depends on nothing but a seed, so a schedule that fails can be run again.

What the memory model knows is what the PTX memory model promises, taken for a program (a block of threads) as a whole:

- A plain store is seen by who is *ordered behind* it. Anybody else may see it, or an older value.
- A release at an atomic hands on what was stored, or itself acquired, before the program's last *barrier*: the release is one
  thread's, and what the others stored is only behind a barrier in front of it (causality order through ``bar.sync``).
- An acquire at an atomic takes what was handed on there, for accesses behind the next barrier. Atomics in between, which only
  read-modify-write, pass it on. A relaxed atomic hands on and takes nothing.

A plain access to what others wrote, not ordered behind them, is a data race and recorded as one; what it reads is stale by
chance. The other half of a GPU's freedom, the order in which accesses happen, is the schedule's.
"""

from __future__ import annotations

import ctypes
import inspect
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest
import triton.language as tl  # noqa: F401  (the interpreter patches the `tl` that it finds beside the function it runs)
from triton._C.libtriton import ir
from triton.runtime import interpreter

_SEM = ir.MEM_SEMANTIC
_RELEASES = (_SEM.RELEASE, _SEM.ACQUIRE_RELEASE)
_ACQUIRES = (_SEM.ACQUIRE, _SEM.ACQUIRE_RELEASE)
_IDLE_POLLS = 2  # so many fruitless reads of one flag, and the program is waiting for it
_MOST_HANDOVERS = 200_000

View = dict[int, int]  # of an address, which of its versions is the oldest that may be seen


class NobodyMoves(Exception):
    """Every program that was started waits for another, or would for ever."""


class _Abandoned(BaseException):
    """Unwinds the thread of a program that will not be resumed."""


class Access(NamedTuple):
    """What a program is about to do."""

    kind: str
    address: int = 0


@dataclass(eq=False)
class Program:
    """One program of the grid. ``view``: what it is ordered behind; ``ordered``: what a release would hand on."""

    index: int
    grid_index: tuple[int, int, int]
    body: Callable[[], None]
    view: View = field(default_factory=dict)
    ordered: View = field(default_factory=dict)
    acquired: View = field(default_factory=dict)
    ticket: int | None = None
    next: Access = field(default_factory=lambda: Access("start"))
    polled: tuple[int, bytes] = (0, b"")
    idle: int = 0
    finished: bool = False
    failure: BaseException | None = None
    thread: threading.Thread | None = None
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def waits(self) -> bool:
        """Whether it is about to read once more what it has read often enough, and nobody has changed that since."""
        address, value = self.polled
        again = self.idle >= _IDLE_POLLS and self.next == Access("atomic", address)
        return again and ctypes.string_at(address, len(value)) == value


Choice = Callable[[Sequence[Program], random.Random], Program]


def anyone(ready: Sequence[Program], rng: random.Random) -> Program:
    """Any of the programs that can move."""
    return rng.choice(ready)


def last_started_first(ready: Sequence[Program], rng: random.Random) -> Program:
    """One after the other, each as far as it comes, the one with the highest index first."""
    return max(ready, key=lambda p: p.index)


def last_ticket_first(ready: Sequence[Program], rng: random.Random) -> Program:
    """All take a ticket; then whoever drew the last one runs, and the first only when everybody else waits."""
    return next((p for p in ready if p.ticket is None), None) or max(ready, key=lambda p: p.ticket or 0)


class Schedule(NamedTuple):
    """Who goes on, how many programs there is room for at once, and whether they start in grid order."""

    choose: Choice = anyone
    resident: int | None = None
    seed: int = 0
    in_grid_order: bool = True

    def __repr__(self) -> str:
        room = "" if self.resident is None else f", room for {self.resident}"
        return f"{self.choose.__name__}{room}, seed {self.seed}" + ("" if self.in_grid_order else ", started anyhow")


class Memory:
    """What was ever stored where, and what releases handed on."""

    def __init__(self, rng: random.Random, races: list[str]) -> None:
        self.rng = rng
        self.versions: dict[int, list[tuple[bytes, int]]] = {}  # value, and the index of the program that stored it
        self.handed_on: dict[int, View] = {}
        self.races = races

    def store(self, program: Program, addresses: Sequence[int], size: int, perform: Callable[[], Any]) -> Any:
        for address in addresses:
            versions = self.versions.setdefault(address, [(ctypes.string_at(address, size), -1)])
            if program.view.get(address, 0) < len(versions) - 1:
                self.races.append(f"program {program.index} stores over {self._who(versions)}")
        done = perform()
        for address in addresses:
            self.versions[address].append((ctypes.string_at(address, size), program.index))
            program.view[address] = len(self.versions[address]) - 1
        return done

    def load(self, program: Program, addresses: np.ndarray, mask: np.ndarray, loaded: np.ndarray) -> np.ndarray:
        """``loaded``, with older values where nothing orders the program behind the last store."""
        flat = np.ascontiguousarray(loaded).copy().reshape(-1)
        for i, (address, wanted) in enumerate(zip(addresses.reshape(-1).tolist(), mask.reshape(-1), strict=True)):
            versions = self.versions.get(address) if wanted else None
            oldest = program.view.get(address, 0)
            if versions is None or oldest == len(versions) - 1:
                continue
            self.races.append(f"program {program.index} loads what is not ordered behind {self._who(versions)}")
            stale = versions[self.rng.choice((oldest, self.rng.randrange(oldest, len(versions))))][0]
            flat[i] = np.frombuffer(stale, dtype=flat.dtype)[0]
        return flat.reshape(loaded.shape)

    def atomic(self, program: Program, address: int, size: int, sem: Any, perform: Callable[[], Any]) -> Any:
        before = ctypes.string_at(address, size)
        done = perform()
        if sem in _RELEASES:
            _join(self.handed_on.setdefault(address, {}), program.ordered)
        if sem in _ACQUIRES:
            _join(program.acquired, self.handed_on.get(address, {}))
        if ctypes.string_at(address, size) != before:
            program.idle = 0
        else:
            program.idle = program.idle + 1 if program.polled == (address, before) else 1
            program.polled = address, before
        return done

    @staticmethod
    def barrier(program: Program) -> None:
        _join(program.view, program.acquired)
        program.ordered = dict(program.view)

    @staticmethod
    def _who(versions: Sequence[tuple[bytes, int]]) -> str:
        return f"the store of program {versions[-1][1]}"


def _join(view: View, other: View) -> None:
    for address, version in other.items():
        view[address] = max(version, view.get(address, 0))


class Interleaving:
    """Runs the programs of each launch by a schedule. ``races``: what was unordered. ``waited``: how often one had to."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.rng = random.Random(schedule.seed)
        self.races: list[str] = []
        self.current: Program | None = None
        self.waited = 0
        self._back = threading.Semaphore(0)
        self._abandoned = False

    def run(self, programs: Sequence[Program]) -> None:
        pending = list(programs)
        self._abandoned = False
        self.memory = Memory(self.rng, self.races)  # a launch is ordered behind the one before it
        if not self.schedule.in_grid_order:
            self.rng.shuffle(pending)
        started: list[Program] = []
        try:
            for _ in range(_MOST_HANDOVERS):
                while pending and (self.schedule.resident is None or len(started) < self.schedule.resident):
                    started.append(self._start(pending.pop(0)))
                if not started:
                    return
                ready = [p for p in started if not p.waits()]
                self.waited += len(started) - len(ready)
                if not ready:
                    raise NobodyMoves(self._explain(started, len(pending)))
                chosen = self.schedule.choose(ready, self.rng)
                self._resume(chosen)
                if chosen.failure is not None:
                    raise chosen.failure
                started = [p for p in started if not p.finished]
            raise NobodyMoves(f"not finished after {_MOST_HANDOVERS} accesses: {self._explain(started, len(pending))}")
        finally:
            self._abandon(started)

    def before(self, access: Access) -> Program | None:
        """Hand over, and say who performs the access; nobody if no launch of ours is running."""
        program = self.current
        if program is None:
            return None
        program.next = access
        if access.kind not in ("atomic", "barrier"):
            program.idle = 0
        self._back.release()
        program.go.acquire()
        if self._abandoned:
            raise _Abandoned
        return program

    def _start(self, program: Program) -> Program:
        def body() -> None:
            program.go.acquire()
            try:
                if not self._abandoned:
                    program.body()
            except _Abandoned:
                pass
            except BaseException as failure:  # the main thread raises it
                program.failure = failure
            program.finished = True
            self._back.release()

        program.thread = threading.Thread(target=body, daemon=True)
        program.thread.start()
        return program

    def _resume(self, program: Program) -> None:
        self.current = program
        interpreter.interpreter_builder.grid_idx = program.grid_index
        program.go.release()
        self._back.acquire()
        self.current = None

    def _abandon(self, programs: Sequence[Program]) -> None:
        self._abandoned = True
        for program in programs:
            if not program.finished and program.thread is not None:
                self.current = program
                program.go.release()
                program.thread.join()
        self.current = None

    def _explain(self, started: Sequence[Program], pending: int) -> str:
        lines = [
            f"program {p.index} (ticket {p.ticket}) waits for {p.polled[0]:#x}, which holds {p.polled[1].hex()}"
            for p in started
        ]
        return "; ".join([*lines, f"{pending} programs not started ({self.schedule})"])


def _addresses(pointers: Any, mask: Any) -> list[int]:
    return [int(a) for a, wanted in zip(pointers.data.reshape(-1), mask.data.reshape(-1), strict=True) if wanted]


def _size(pointers: Any) -> int:
    return int(interpreter._get_np_dtype(pointers.get_element_ty()).itemsize)


def _patch_memory(patch: pytest.MonkeyPatch, run: Interleaving) -> None:
    """Let every access of the interpreter go through the memory model, one handover in front of each."""
    builder = interpreter.interpreter_builder
    load, store, atomic, cas = (
        getattr(builder, f"create_{name}") for name in ("masked_load", "masked_store", "atomic_rmw", "atomic_cas")
    )

    def masked_load(pointers: Any, mask: Any, *rest: Any) -> Any:
        program = run.before(Access("load"))
        loaded = load(pointers, mask, *rest)
        if program is not None:
            loaded.data = run.memory.load(program, pointers.data, mask.data, loaded.data)
        return loaded

    def masked_store(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        program = run.before(Access("store"))
        if program is None:
            return store(pointers, value, mask, *rest)
        return run.memory.store(
            program, _addresses(pointers, mask), _size(pointers), lambda: store(pointers, value, mask, *rest)
        )

    def performed(pointers: Any, sem: Any, perform: Callable[[], Any]) -> Any:
        assert pointers.data.size == 1, "atomics on blocks are not modelled"
        address = int(pointers.data.reshape(-1)[0])
        program = run.before(Access("atomic", address))
        if program is None:
            return perform()
        old = run.memory.atomic(program, address, _size(pointers), sem, perform)
        if program.ticket is None:
            program.ticket = int(old.data.reshape(-1)[0])
        return old

    def barrier() -> None:
        if (program := run.before(Access("barrier"))) is not None:
            run.memory.barrier(program)

    def atomic_rmw(op: Any, pointers: Any, value: Any, mask: Any, sem: Any, scope: Any) -> Any:
        return performed(pointers, sem, lambda: atomic(op, pointers, value, mask, sem, scope))

    def atomic_cas(pointers: Any, expected: Any, value: Any, sem: Any, scope: Any) -> Any:
        return performed(pointers, sem, lambda: cas(pointers, expected, value, sem, scope))

    replaced = {"create_masked_load": masked_load, "create_masked_store": masked_store, "create_barrier": barrier}
    for name, function in {**replaced, "create_atomic_rmw": atomic_rmw, "create_atomic_cas": atomic_cas}.items():
        patch.setattr(builder, name, function, raising=True)


def _executor(run: Interleaving) -> type:
    """A grid executor that collects the programs of the grid, and at the last one runs them all."""

    class Executor(interpreter.GridExecutor):  # type: ignore[misc]
        def __init__(self, fn: Any, *rest: Any) -> None:
            super().__init__(fn, *rest)
            programs: list[Program] = []
            builder = interpreter.interpreter_builder

            def collect(**arguments: Any) -> None:
                programs.append(Program(len(programs), builder.grid_idx, lambda: fn(**arguments)))
                if len(programs) == int(np.prod(builder.grid_dim)):
                    run.run(programs)

            collect.__signature__ = inspect.signature(fn)  # type: ignore[attr-defined]
            self.fn = collect

    return Executor


@contextmanager
def interleaved(schedule: Schedule) -> Iterator[Interleaving]:
    """Launches in this block run by the schedule."""
    run = Interleaving(schedule)
    with pytest.MonkeyPatch.context() as patch:
        _patch_memory(patch, run)
        patch.setattr(interpreter, "GridExecutor", _executor(run))
        # A function that is called from a kernel patches the language again, which takes most of the time of a run.
        patch.setattr(interpreter.InterpretedFunction, "__call__", lambda self, *a, **k: self.rewrite()(*a, **k))
        yield run
