"""Many tasks of a kernel, shared by several threads: OpenMP's where torch has them running, our own pool's elsewhere.

The threads that torch computes with wait for work awake for a while, and start on it within a microsecond or two; a thread of
Python needs twenty to wake up, and would first have to compete with those. So a kernel goes to the same team, through the
function that compilers call for ``#pragma omp parallel``. A child of a fork has none of its parent's threads, and OpenMP does
not notice: there, and where torch has no OpenMP, :mod:`.pool` does the work.

Who comes takes the next chunk of tasks, so that a thread that is late or slow is not waited for longer than its chunk. All of
torch's threads are called each time, also for a few chunks: GNU's OpenMP ends the threads that a smaller team does not need,
and torch would have to start them anew.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types

from .compile import Compiled, compiled_once
from .memory import WORD, call, load_words, pointer_to
from .pool import POOL
from .simd import intrinsic

# A job: counters of the chunks and of the threads that have come, then what they need to know. 64-bit words.
NEXT, CAME, KERNEL, PLAN, POINTERS, SCRATCH, SCRATCH_BYTES, TASKS, CHUNKS, THREADS = range(10)
CACHE_LINE = 64

_local = threading.local()
_is_child = [False]
# A child of a fork has inherited a team that does not exist.
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=lambda: _is_child.__setitem__(0, True))


def run(
    kernel: Compiled, plan: int, pointers: int, scratch: int, tasks: int, chunks: int, threads: int, kept: Any
) -> None:
    """Run ``kernel`` on all of its tasks. ``scratch``: how many bytes each thread needs. ``kept``: what must stay in memory."""
    team = None if _is_child[0] else openmp()
    if chunks == 1 or threads == 1:
        kernel(plan, pointers, scratch_memory(scratch), 0, tasks)
    elif team is None:
        _run_in_pool(kernel, plan, pointers, scratch, tasks, chunks, threads, kept)
    else:
        each = -(-scratch // CACHE_LINE) * CACHE_LINE
        memory = scratch_memory(each * threads)
        job = array("q", [0, 0, kernel.address, plan, pointers, memory, each, tasks, chunks, threads])
        team(_member().address, job.buffer_info()[0], 0, 0)


def _run_in_pool(
    kernel: Compiled, plan: int, pointers: int, scratch: int, tasks: int, chunks: int, threads: int, kept: Any
) -> None:
    # The default argument keeps the memory alive for as long as a helper may write to it, even if the caller is
    # interrupted.
    def work(i: int, _kept: Any = kept) -> None:
        kernel(plan, pointers, scratch_memory(scratch), tasks * i // chunks, tasks * (i + 1) // chunks)

    POOL.run(work, chunks, threads)


def scratch_memory(size: int) -> int:
    """The address of at least ``size`` bytes that belong to this thread."""
    if not size:
        return 0
    memory: np.ndarray | None = getattr(_local, "memory", None)
    if memory is None or memory.nbytes < size + CACHE_LINE:
        memory = _local.memory = np.empty(size + CACHE_LINE, dtype=np.uint8)
        _local.address = -(-memory.ctypes.data // CACHE_LINE) * CACHE_LINE
    address: int = _local.address
    return address


@functools.cache
def openmp() -> Callable[[int, int, int, int], None] | None:
    """``GOMP_parallel(function, data, threads, flags)`` of the OpenMP library that torch uses, if it uses one.

    Zero threads are as many as torch computes with: it sets OpenMP's own number.
    """
    if "OpenMP" not in torch.__config__.parallel_info().partition("ATen parallel backend")[2]:
        return None
    try:
        function = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):  # TypeError: there is no CDLL(None) on Windows
        return None
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    return function


@intrinsic
def _next_of(typing_context: Any, counter: Any) -> Any:
    """The value of the counter at an address, which goes up by one."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return builder.atomic_rmw("add", pointer_to(builder, args[0], WORD), ir.Constant(WORD, 1), "seq_cst")

    return types.int64(counter), codegen


def _member() -> Compiled:
    return compiled_once(("member",), lambda: _takes_chunks, types.void(types.intp))


def _takes_chunks(job: int) -> None:
    """What each thread of the team does."""
    thread, (chunks, threads) = _next_of(job + 8 * CAME), load_words(job + 8 * CHUNKS, 2)
    if thread >= threads:  # there is scratch memory for so many
        return
    kernel, plan, pointers, scratch, scratch_bytes, tasks = load_words(job + 8 * KERNEL, 6)
    chunk = _next_of(job)
    while chunk < chunks:
        begin, end = tasks * chunk // chunks, tasks * (chunk + 1) // chunks
        call(kernel, plan, pointers, scratch + thread * scratch_bytes, begin, end)
        chunk = _next_of(job)
