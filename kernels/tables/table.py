"""What a plan table holds."""

from __future__ import annotations

from typing import NamedTuple


class Table(NamedTuple):
    """The numbers that a plan is chosen by. What they are unless a table says otherwise was found on an H100.

    ``device``: the GPU's name. ``measured``: when and how; empty where nobody did.

    Everywhere. ``programs``: how many programs a multiprocessor should have before one program takes more rows or lanes.
    ``bytes_in_flight``: how many bytes a multiprocessor has to have asked for so that memory never waits (bandwidth times
    latency, and about twice that in practice). ``ahead_numbers``: up to so many inputs and outputs of an access the next tile
    of rows is fetched ahead.

    Where time is contiguous. ``row_numbers``: a row is one tile, with a vector for every thread, if its program then has no
    more inputs and outputs, in numbers of 4 bytes. Such tiles have at least ``rows_warps`` warps, as long as a multiprocessor
    has ``rows_programs`` programs; short rows share one. Longer rows are walked tile by tile, by ``walk_warps`` warps with at
    most ``walk_vectors`` vectors, or ``walk_registers`` numbers, a thread, fewer where ``walk_programs`` programs on each
    multiprocessor have enough bytes in flight.

    Where lanes are. ``lanes_warps``, ``tile_warps``: of a program in strips and in tiles. ``unroll``: the most steps that a
    strip keeps in flight, and ``lanes_numbers`` the most numbers that are inputs and outputs of those (of which the compiler
    holds about two thirds at a time). ``registers``: half of a thread's share for the data of its steps in a tile, and
    ``tile_steps`` the most steps of an access. ``tile_numbers``: with more inputs and outputs of an access, lanes go in strips
    that keep half as much in flight, or in tiles without a loop. ``least_steps``: up to so many steps there is nothing to scan.

    Split. ``split_tiles``: from how many tiles on time is split. ``split_rows_warps``, ``split_rows_vectors``: of a program,
    and the most vectors of a thread (within ``registers``), where time is contiguous. ``split_rows_limits``: how many registers
    of a thread the compiler may use there, for up to so many inputs and outputs of an access and what else the kernel holds:
    pairs of the two. Fewer make room for more programs, too few would spill. Where lanes are contiguous, and with up to
    ``split_tile_numbers`` of the same, ``split_tile_registers``, ``split_tile_warps`` and ``split_tile_steps`` stand in the
    place of those without ``split``, and ``split_tile_limit`` is that of registers.
    """

    device: str
    measured: str = ""
    programs: int = 2
    bytes_in_flight: int = 36_000
    ahead_numbers: int = 79
    row_numbers: int = 18_500
    rows_warps: int = 2
    rows_programs: int = 4
    walk_warps: int = 2
    walk_vectors: int = 4
    walk_registers: int = 128
    walk_programs: int = 8
    lanes_warps: int = 4
    lanes_numbers: int = 224
    unroll: int = 8
    least_steps: int = 2
    registers: int = 64
    tile_warps: int = 4
    tile_steps: int = 4
    tile_numbers: int = 150
    split_tiles: int = 4
    split_rows_warps: int = 8
    split_rows_vectors: int = 2
    split_rows_limits: tuple[tuple[int, int], ...] = ((30, 64), (46, 80))
    split_tile_numbers: int = 30
    split_tile_registers: int = 128
    split_tile_warps: int = 2
    split_tile_steps: int = 8
    split_tile_limit: int = 176
