"""How the numbers of a result are cut into the parts of which moments are taken, one by one, and then merged.

A result is dense. It is seen as lines of numbers that lie one behind the other, with ``rest`` others between two of the same
block; a part is ``across`` numbers of ``down`` lines:

- of *rows* it is some rows, or a stretch of one that is long;
- of *strips* it is some lanes for some steps, so that each part belongs to one strip.

Either way its numbers are computed by one thread, and soon one after the other. Where parts end depends on the shape alone, so
the bits of the moments do not depend on how many threads there are.
"""

from __future__ import annotations

from typing import NamedTuple

# What a thread is worth waking for, and what stays in a second-level cache.
PART = 1 << 15
# Of one, whose moments are under way or known: three float64.
STATE_BYTES = 24


class Parts(NamedTuple):
    """In memory the numbers are ``[blocks, lines, rest, length]``; the last line of all may be short."""

    numbers: int
    lines: int
    rest: int
    length: int
    across: int
    down: int

    @property
    def in_block(self) -> int:
        """How many parts there are in a block."""
        return -(-self.lines // self.down) * self.rest * -(-self.length // self.across)

    @property
    def how_many(self) -> int:
        """How many there are."""
        return -(-self.numbers // (self.lines * self.rest * self.length)) * self.in_block


def of_numbers(numbers: int) -> Parts:
    """As they lie in memory."""
    return Parts(numbers, -(-numbers // PART), 1, PART, PART, 1)


def of_rows(rows: int, row: int, width: int) -> Parts:
    """For ``rows`` of ``row`` numbers. A stretch of a long one ends where a register does."""
    if row > PART:
        return Parts(rows * row, 1, 1, row, PART // width * width, 1)
    some = PART // row
    return Parts(rows * row, -(-rows // some), 1, some * row, some * row, 1)


def of_lanes(steps: int, rest: int, lanes: int, across: int, blocks: int) -> Parts:
    """For ``lanes`` of ``steps``, of which ``across`` are in one part; ``rest``: others within a step."""
    return Parts(blocks * steps * rest * lanes, steps, rest, lanes, across, max(1, PART // across))
