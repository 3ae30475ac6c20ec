"""How time is taken. A clock turns a call into samples, in seconds per call.

CPU: ``call``, the wall clock around whole calls.

CUDA, all of one and the same call:

- ``call``: wall clock from an idle device to an idle device, one call: what a user waits.
- ``host``: wall clock until the call returns, nothing waited for: what it costs the Python thread.
- ``stream``: the same of one call among fifty in a row, as in a program that runs ahead of the device. Where the device is
  busy for longer than the host, it is the device's time.
- ``cold``: device time between two events, L2 evicted before. ``warm``: the same without the eviction.
- ``kernels``: the durations of the call's kernels added up, as the driver's profiler reports them, L2 evicted before. It has
  no launch gaps and no event overhead (a pair of events costs a microsecond or two, see ``event_floor`` in the record), so it
  is the one to hold against a target of a few microseconds.
- ``replay``: device time of one replay of a CUDA graph of the call, from many replays back to back, L2 warm.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch

Call = Callable[[], object]
SHORTEST_SAMPLE = 1e-3  # seconds: shorter calls are timed several at a time
AHEAD = 2_000_000  # cycles, about a millisecond: for the host to enqueue what is timed (a compiled call took 0.3 ms)
LONGEST_DISTURBED = 2e-2  # seconds: in longer calls it does not show who ran before


class Clock(Protocol):
    """Prepared for one call; each :meth:`sample` is seconds per call."""

    def sample(self) -> float:
        """One sample."""


class Wall:
    """The wall clock around ``repeat`` calls, after as many that are not timed.

    Those let the caches and the thread pools forget who was timed before: worker threads of others keep spinning for a
    while. Calls too long to be disturbed by that go without.
    """

    def __init__(
        self,
        call: Call,
        repeat: int | None = None,
        wait: bool = False,
        start_idle: bool = False,
        warm_up: bool = True,
    ) -> None:
        self.call, self.wait, self.start_idle = call, wait, start_idle
        self.repeat, self.untimed = 1, 0
        lasted = max(self.sample(), 1e-9)
        if lasted < LONGEST_DISTURBED:  # the first call finds caches cold and threads asleep, and says too much
            lasted = max(min(lasted, self.sample(), self.sample()), 1e-9)
        self.repeat = repeat or max(1, min(1000, int(SHORTEST_SAMPLE / lasted)))
        self.untimed = self.repeat if warm_up and lasted < LONGEST_DISTURBED else 0

    def sample(self) -> float:
        """Seconds per call."""
        for _ in range(self.untimed):
            self.call()
        if self.start_idle:
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(self.repeat):
            self.call()
        if self.wait:
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / self.repeat


def _evict_l2() -> None:
    from .evict import evict_l2  # Triton is not imported before there is a GPU to use it on

    evict_l2()


class Events:
    """Device time between two events around one call. The host is kept ahead of the device, so launches leave no gaps."""

    def __init__(self, call: Call, cold: bool) -> None:
        self.call, self.cold = call, cold

    def sample(self) -> float:
        """Seconds."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(AHEAD)
        if self.cold:
            _evict_l2()
        start.record()
        self.call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3


class Kernels:
    """The durations of the call's kernels as the driver's profiler reports them. One sample profiles ``repeat`` calls."""

    def __init__(self, call: Call, repeat: int = 5) -> None:
        self.call, self.repeat = call, repeat

    def sample(self) -> float:
        """Seconds of device time per call.

        Raises:
            RuntimeError: if the profiler saw no kernel.
        """
        from torch.profiler import ProfilerActivity, profile

        from .evict import NAME

        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            for _ in range(self.repeat):
                _evict_l2()
                self.call()
            torch.cuda.synchronize()
        seen = [e for e in profiler.events() or () if e.device_type.name == "CUDA" and NAME not in e.name]
        if not seen:
            raise RuntimeError("the profiler saw no kernel")
        return float(sum(e.time_range.elapsed_us() for e in seen)) * 1e-6 / self.repeat


class Replay:
    """Device time of one replay of a CUDA graph of the call."""

    def __init__(self, call: Call, repeat: int = 20) -> None:
        self.repeat = repeat
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.kept = call()
        self.graph.replay()
        torch.cuda.synchronize()

    def sample(self) -> float:
        """Seconds per replay."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(AHEAD)
        start.record()
        for _ in range(self.repeat):
            self.graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3 / self.repeat


class Kind(NamedTuple):
    """A clock by name, and how one is made for a call. ``peers``: whether peers are timed with it too."""

    name: str
    make: Callable[[Call], Clock]
    peers: bool = True


_WALL = Kind("call", Wall)
_CUDA_CALL = Kind("call", lambda call: Wall(call, repeat=1, wait=True, start_idle=True))
_CUDA_HOST = Kind("host", lambda call: Wall(call, repeat=1, start_idle=True))
_STREAM = Kind("stream", lambda call: Wall(call, repeat=50, start_idle=True, warm_up=False))
_COLD = Kind("cold", lambda call: Events(call, cold=True))
_WARM = Kind("warm", lambda call: Events(call, cold=False))
_KERNELS = Kind("kernels", Kernels, peers=False)  # starting the profiler takes long
_REPLAY = Kind("replay", Replay)

_BY_MODE: dict[str, tuple[Kind, ...]] = {
    "eager": (_COLD, _WARM, _KERNELS, _CUDA_CALL, _CUDA_HOST, _STREAM),
    "compiled": (_COLD, _CUDA_CALL, _CUDA_HOST),
    "graph": (_REPLAY, _KERNELS),
}

# The clock that stands for a case where one figure is shown.
MAIN = {"cpu": ("call",), "cuda": ("cold", "replay", "call")}


def clocks_for(device: str, mode: str) -> tuple[Kind, ...]:
    """The clocks of a case on ``cpu`` or ``cuda``."""
    return (_WALL,) if device == "cpu" else _BY_MODE[mode]


def event_floor() -> float:
    """Seconds between two events with nothing in between: below this, ``cold`` and ``warm`` say nothing."""
    samples = sorted(Events(lambda: None, cold=False).sample() for _ in range(21))
    return samples[10]
