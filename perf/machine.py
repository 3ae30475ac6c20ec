"""Which machine, which versions, which commit: what makes a figure worth keeping."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from tritonrl import kernels

_PACKAGES = (
    "tritonrl",
    "torch",
    "triton",
    "numba",
    "numpy",
    "tensordict",
    "torchrl",
    "rlox",
    "jax",
    "accelerated-scan",
)


def _git(*arguments: str) -> str:
    root = Path(__file__).parents[1]
    try:
        done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"model name\s*:\s*(.+)", text)
    return found.group(1).strip() if found else platform.machine()


def _gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
    }


def describe(device: str) -> dict[str, Any]:
    """This machine, for a record. ``device``: ``cpu`` or ``cuda``."""
    # A copy of the tree on a lent machine has no .git: then the caller names the commit.
    commit = os.environ.get("TRITONRL_COMMIT") or _git("rev-parse", "--short=12", "HEAD")
    dirty = bool(_git("status", "--porcelain", "--untracked-files=no"))
    here: dict[str, Any] = {
        "device": device,
        "name": _cpu_name(),
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": _versions(),
        "backends": {status.device: f"{status.backend}: {status.detail}" for status in kernels.backends()},
        "commit": (commit or "unknown") + ("+changes" if dirty else ""),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    return here | _gpu() if device == "cuda" else here


def _busy_ticks() -> int:
    """Clock ticks that all CPUs together have spent working: user, nice, system, interrupts, and what a hypervisor took."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    user, nice, system, _idle, _waiting, interrupts, soft_interrupts, stolen = (int(x) for x in fields)
    return user + nice + system + interrupts + soft_interrupts + stolen


def busy_elsewhere(seconds: float = 2.0) -> float | None:
    """How many CPUs others keep busy, seen while this process sleeps; ``None`` where the system does not tell.

    It matters more than it seems: when two threads share a core with somebody else, each barrier between them can take a
    whole time slice of the scheduler. A ``clone()`` of 20 us was seen to take 16 ms, and with it all that runs on torch's
    thread pool, so the figures of others, and the ceiling, come out up to a thousand times too slow.
    """
    try:
        before = _busy_ticks()
        time.sleep(seconds)
        return (_busy_ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds
    except (OSError, ValueError, IndexError):
        return None


def settle_allocator() -> None:
    """Bring the allocator of the CPU to where it is in a program that has run for a while.

    glibc gives freed memory back to the system above a threshold, and a result that is allocated anew then costs a page fault
    for every 4 kB: on the machine of our records eight times what the kernel takes. The threshold rises to twice the largest
    block, of at most 32 MB, that was ever mapped by itself and freed. In a program that trains that happens sooner or later;
    here it happens now, not between two contenders.
    """
    block = torch.empty(31 * 2**20, dtype=torch.uint8)
    del block


def slug(machine: dict[str, Any]) -> str:
    """A file name for a machine: its device's name, and for a CPU how many threads."""
    name = re.sub(r"[^a-z0-9]+", "-", str(machine["name"]).lower()).strip("-")
    return name if machine["device"] == "cuda" else f"{name}-{machine['threads']}-threads"
