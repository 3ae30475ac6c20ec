"""How many warps a multiprocessor can hold of a kernel: arithmetic on what the compiler reports."""

from __future__ import annotations

from typing import NamedTuple


class Multiprocessor(NamedTuple):
    """The limits of one multiprocessor (CUDA C++ programming guide, "Compute Capabilities")."""

    registers: int = 65536
    warps: int = 64
    blocks: int = 32
    shared_bytes: int = 228 * 1024
    reserved_bytes: int = 1024  # of shared memory, for every block


MULTIPROCESSORS: dict[int, Multiprocessor] = {
    80: Multiprocessor(shared_bytes=164 * 1024),
    90: Multiprocessor(),
    100: Multiprocessor(),
}


def _up(n: int, granule: int) -> int:
    return -(-n // granule) * granule


def occupancy(capability: int, registers: int, shared_bytes: int, warps: int) -> float:
    """The fraction of a multiprocessor's warps that can be resident.

    Registers are allocated to a warp in units of 256, and warps in groups of four.
    """
    limits = MULTIPROCESSORS[capability]
    by_registers = limits.registers // _up(max(registers, 1) * 32, 256) // 4 * 4 // warps
    by_shared = limits.shared_bytes // (shared_bytes + limits.reserved_bytes)
    blocks = min(by_registers, by_shared, limits.warps // warps, limits.blocks)
    return blocks * warps / limits.warps
