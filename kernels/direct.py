"""Launching a compiled Triton kernel again, without Triton's way there.

``kernel[grid](...)`` binds its arguments, works out what they specialise the kernel on and looks that up, which takes longer
than many of our kernels run. For a layout that was met before all of it is known, but for the alignment of the pointers. So
the compiled kernel that the first launch returned is kept, and the next one is what the last line of ``JITFunction.run`` does.

That line is no public interface. Where Triton's source does not have it as it is written here (3.6 and 3.7 do), where Triton
interprets, and where somebody listens (launch hooks, debugging, instrumentation), nothing is launched from here, and the
caller takes the public way: slower, never wrong.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from triton import knobs
from triton.runtime import driver
from triton.runtime.jit import JITFunction

Launch = Callable[..., None]
"""Launches one compiled kernel: the stream, then every argument of the kernel in order, with addresses for tensors."""

ALIGNED = 16  # bytes: Triton compiles one kernel for pointers that are multiples of it and another for the rest
_MISALIGNED = ALIGNED - 1

_LAST_LINE = (
    "kernel.run(grid_0,grid_1,grid_2,stream,kernel.function,kernel.packed_metadata,launch_metadata,"
    "knobs.runtime.launch_enter_hook,knobs.runtime.launch_exit_hook,*bound_args.values())"
)


@functools.cache
def interface_is_known() -> bool:
    """Whether this Triton launches as this file does."""
    try:
        return _LAST_LINE in re.sub(r"\s", "", inspect.getsource(JITFunction.run))
    except (OSError, TypeError):  # no source to look at
        return False


def is_watched(kernel: Any) -> bool:
    """Whether a launch has to go Triton's own way now, because it would do more than launch."""
    runtime = knobs.runtime
    return bool(
        getattr(runtime.launch_enter_hook, "calls", runtime.launch_enter_hook)  # a chain of hooks, or one set bare
        or getattr(runtime.launch_exit_hook, "calls", runtime.launch_exit_hook)
        or runtime.debug
        or runtime.add_stages_inspection_hook
        or knobs.compilation.instrumentation_mode
        or kernel.pre_run_hooks
    )


def direct(kernel: Any, compiled: Any, grid: Sequence[int]) -> Launch | None:
    """What launches ``compiled``, the result of ``kernel[grid](...)``, again; ``None`` where that cannot be known.

    It must be called with what ``compiled`` was made for: the same dtypes and constants, integers that are one or divisible
    by 16 where these were, and pointers aligned where these were. Triton's current device must be the same, too.
    """
    if not (isinstance(kernel, JITFunction) and isinstance(compiled, triton.compiler.CompiledKernel)):
        return None
    if not interface_is_known() or is_watched(kernel):
        return None
    try:
        run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata
    except AttributeError:
        return None
    x, y, z = (*grid, 1, 1)[:3]

    def launch(stream: int, *arguments: Any) -> None:
        # No launch metadata and no hooks: nobody listens (is_watched).
        run(x, y, z, stream, function, metadata, None, None, None, *arguments)

    return launch


def alignment_of(addresses: Sequence[int]) -> tuple[bool, ...]:
    """Which addresses are aligned; ``()`` if all of them are."""
    low = 0
    for address in addresses:
        low |= address
    return () if not low & _MISALIGNED else tuple([not address & _MISALIGNED for address in addresses])


def on_device(device: torch.device) -> Any:
    """Triton launches on the current device; make that the data's."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)


def launch_on(device: torch.device, launch: Launch, arguments: Sequence[Any]) -> None:
    """Launch on the current stream of ``device``, which need not be the current device."""
    active = driver.active
    current = active.get_current_device()
    if device.index is not None and device.index != current:
        with torch.cuda.device(device.index):
            return launch_on(device, launch, arguments)
    return launch(active.get_current_stream(current), *arguments)
