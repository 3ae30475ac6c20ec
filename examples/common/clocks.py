"""Where the time of a training goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Clock:
    """Wall-clock seconds by name. A GPU is waited for at both ends, so that its work counts where it was asked for."""

    def __init__(self, device: str) -> None:
        self.device, self.seconds = torch.device(device), defaultdict[str, float](float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = self._now()
        yield
        self.seconds[name] += self._now() - started

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class KernelClock(TorchDispatchMode):
    """Within this context, counts the time inside tritonrl's own kernels as ``kernels``.

    Their first call, which compiles them or loads what an earlier process compiled, is ``first kernel call``.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.name = clock, "first kernel call"

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.namespace != "tritonrl":
            return func(*args, **(kwargs or {}))
        with self.clock(self.name):
            self.name = "kernels"
            return func(*args, **(kwargs or {}))
