"""What a plan table holds."""

from __future__ import annotations

from typing import NamedTuple


class Table(NamedTuple):
    """The numbers that a plan is chosen by.

    ``device``: the GPU's name. ``measured``: when and how; empty where nobody did.
    ``registers``: a thread's share for the data of its steps, in numbers of 4 bytes; the scan needs as much again.
    ``programs``: how many programs a multiprocessor should have before one program takes more rows or lanes.
    ``bytes_in_flight``: how many bytes a multiprocessor has to have asked for so that memory never waits: bandwidth times
    latency. ``ahead_numbers``: up to so many inputs and outputs of an access the next tile of rows is fetched ahead.
    ``rows_warps``, ``lanes_warps``, ``split_rows_warps``, ``tile_warps``: warps of a program in rows, in lanes, in split where
    time is contiguous, and in tiles of contiguous lanes. ``rows_vectors``, ``tile_steps``: the most vectors, or steps of
    lanes, that a thread takes. ``tile_numbers``: with more inputs and outputs of an access, lanes go in strips that keep half
    as much in flight, or in tiles without a loop. ``unroll``: the most steps that lanes keeps in flight, and
    ``lanes_numbers`` the most numbers that are inputs and outputs of those (of which the compiler holds about two thirds at a
    time). ``least_steps``: up to so many steps there is nothing to scan. ``split_tiles``: from how many tiles on time is split.
    """

    device: str
    measured: str = ""
    registers: int = 64
    programs: int = 2
    bytes_in_flight: int = 18_000
    ahead_numbers: int = 79
    rows_warps: int = 4
    rows_vectors: int = 2
    lanes_warps: int = 4
    lanes_numbers: int = 224
    unroll: int = 8
    least_steps: int = 2
    tile_warps: int = 4
    tile_steps: int = 4
    tile_numbers: int = 150
    split_tiles: int = 4
    split_rows_warps: int = 8
