"""Counters at zero, for kernels in which the last program has something to do, without a memset in front of each launch.

Such a kernel counts its programs and puts its counter back to zero, so one piece of memory can serve launch after launch. A
device's counters are handed out in turn, not one for a stream: a counter comes round again after ``TURN`` launches, more than
a GPU lets be under way (32 hardware queues of some thousand launches each), so no two that run at once have the same.

A launch that a CUDA graph captures is repeated at any time, beside anything. It keeps a counter for itself, for good; replays
of one graph follow each other. When those are spent, or nothing was launched before the capture, it gets memory of the graph's
own and a memset in the graph.
"""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

TURN = 1 << 15
CAPTURED = 1 << 14
_APART = 4  # int32: 16 bytes, so that a counter is as aligned as any other tensor
_lock = threading.Lock()
_by_device: dict[torch.device, Counters] = {}


class Counters:
    """Those of one device."""

    def __init__(self, device: torch.device) -> None:
        # Not in this thread: if `torch.compile` warms up for a CUDA graph, what a thread allocates belongs to the graph, and if
        # it is in inference mode, or under a dispatch mode or a functorch transform, so is the tensor.
        with ThreadPoolExecutor(1) as elsewhere:
            self.all = elsewhere.submit(_zeros, device).result()
        self.turns, self.captured = itertools.count(), itertools.count(TURN)

    def next(self) -> Tensor:
        """The next one for a launch that happens once."""
        return self.all[next(self.turns) % TURN]

    def kept(self) -> Tensor | None:
        """One that nobody else will get, if there is any left."""
        place = next(self.captured)
        return self.all[place] if place < TURN + CAPTURED else None


def _zeros(device: torch.device) -> Tensor:
    made = torch.zeros(TURN + CAPTURED, _APART, dtype=torch.int32, device=device)
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()  # once in a process: whatever stream comes next finds zeros
    return made


def counter_on(device: torch.device) -> Tensor:
    """A counter at zero for one launch, as the first of a few numbers."""
    counters = _by_device.get(device)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        kept = None if counters is None else counters.kept()
        return torch.zeros(_APART, dtype=torch.int32, device=device) if kept is None else kept
    if counters is None:
        with _lock:
            counters = _by_device.get(device) or _by_device.setdefault(device, Counters(device))
    return counters.next()
