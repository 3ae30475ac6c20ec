"""What a plan table holds."""

from __future__ import annotations

from typing import NamedTuple


class Table(NamedTuple):
    """The numbers that a plan is chosen by.

    ``device``: the GPU's name. ``measured``: when and how; empty where nobody did.
    ``registers``: a thread's share for the data of its steps, in numbers of 4 bytes; the scan needs as much again.
    ``programs``: how many programs a multiprocessor should have before one program takes more rows or lanes.
    ``rows_warps``, ``lanes_warps``, ``split_rows_warps``, ``split_lanes_warps``: warps of a program, by strategy and (for
    split) by whether time is contiguous. ``rows_vectors``, ``split_vectors``: the most vectors (for lanes in split: steps)
    that a thread takes. ``unroll``: the most steps that lanes keeps in flight.
    ``split_tiles``: from how many tiles on a row is split. ``split_lanes``, ``split_steps``: lanes are split with fewer
    of them than this for each multiprocessor, from so many steps on. ``split_rows``: the most lanes in a tile of split.
    """

    device: str
    measured: str = ""
    registers: int = 64
    programs: int = 2
    rows_warps: int = 4
    rows_vectors: int = 2
    lanes_warps: int = 4
    unroll: int = 8
    split_tiles: int = 4
    split_rows_warps: int = 8
    split_lanes: int = 64
    split_steps: int = 128
    split_lanes_warps: int = 4
    split_vectors: int = 4
    split_rows: int = 32
