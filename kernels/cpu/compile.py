"""Compiling kernels on first use, once per process, and keeping the machine code on disk between processes.

Numba's own cache would not do here. It recognises a function by its file's date and the identity of what it refers to:
it misses for kernels that are put together from parts, and it does not notice when a part in another file changed. So a
kernel is recognised by its name and the contents of all sources of this folder. What cannot be cached (a folder that is
read-only, a full disk, a damaged file) is compiled and kept in memory, silently: the user asked for numbers, not for a
file.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from numba import types
from numba.core.caching import FunctionCache, IndexDataCacheFile

from .measured import measured_strips
from .numbers import NUMBERS
from .pieces import pieces
from .simd import njit
from .strategies import Body, rows, strips

_SIGNATURE = types.void(types.intp, types.intp, types.intp, types.intp, types.intp)
_lock = threading.RLock()

# A fork while another thread compiles would leave Numba's lock held for ever in the child. Wait for the compiler
# instead.
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


@functools.cache
def _sources() -> str:
    """A digest of everything that the machine code depends on, apart from Numba's version and the processor."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


class _KernelCache(FunctionCache):
    """Files of its own for each kernel, so that processes that compile different kernels at once cannot mix them up."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        super().__init__(function)
        self._cache_file = IndexDataCacheFile(self._cache_path, f"tritonrl.{name}", _sources())

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return sig, codegen.magic_tuple()

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # a damaged file; begin anew
            with contextlib.suppress(OSError):
                self._cache_file.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError:
            self.disable()


class Compiled:
    """Machine code: called from Python as it is, and from machine code by the address of its C function."""

    def __init__(self, dispatcher: Any) -> None:
        self._run = dispatcher
        (found,) = dispatcher.overloads.values()
        self.address: int = found.library.get_pointer_to_function(found.fndesc.llvm_cfunc_wrapper_name)

    def __call__(self, *args: int) -> None:
        self._run(*args)


def _compiled(function: Callable[..., None], name: str, cached: bool, signature: Any) -> Compiled:
    dispatcher = njit(nogil=True, error_model="numpy", fastmath={"contract"})(function)
    if cached:
        dispatcher._cache = _KernelCache(function, name)
    dispatcher.compile(signature)
    dispatcher.disable_compile()
    return Compiled(dispatcher)


_kernels: dict[tuple[Any, ...], Compiled] = {}


def kernel(op: str, body: Body, dtype: torch.dtype, width: int, group: int) -> Compiled:
    """The machine code of ``op`` for data of ``dtype``: rows of ``group`` lanes, or strips if that is 0."""
    number = NUMBERS[dtype]
    made = (
        functools.partial(rows, body, number, width, group) if group else functools.partial(strips, body, number, width)
    )
    return compiled_once((op, number.name, width, group), made)


def kernel_of_measured_strips(op: str, body: Body, dtype: torch.dtype, width: int, result: int) -> Compiled:
    """The same for strips, with the moments of the operand ``result``."""
    number = NUMBERS[dtype]
    made = functools.partial(measured_strips, body, number, width, result)
    return compiled_once((op, number.name, width, 0, "moments"), made)


def kernels_of_pieces(op: str, body: Body, dtype: torch.dtype, width: int, group: int) -> tuple[Compiled, Compiled]:
    """The same for time cut into pieces: the kernel that computes them, and the one that begins them again."""
    number = NUMBERS[dtype]
    first, second = (
        compiled_once(
            (op, number.name, width, group, name), functools.partial(pieces, body, number, width, group, again)
        )
        for name, again in (("pieces", False), ("again", True))
    )
    return first, second


def compiled_once(
    key: tuple[Any, ...], make: Callable[[], Callable[..., None]], signature: Any = _SIGNATURE
) -> Compiled:
    """The machine code of what ``make`` returns, known by its key."""
    found = _kernels.get(key)
    if found is not None:
        return found
    with _lock:
        if key not in _kernels:
            _kernels[key] = _with_cache_if_possible(make(), "-".join(map(str, key)), signature)
        return _kernels[key]


def _with_cache_if_possible(function: Callable[..., None], name: str, signature: Any) -> Compiled:
    try:
        return _compiled(function, name, True, signature)
    except Exception:
        # No folder can be written, or Numba's cache has changed inside. A real error of the compiler comes again.
        return _compiled(function, name, False, signature)
