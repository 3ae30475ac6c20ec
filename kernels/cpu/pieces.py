"""Time cut into pieces that are computed at once, for data with fewer rows or strips than there are threads.

First every piece is computed with a guess of the carries that enter it, and sets a *mark* now and then: the carries that it
has there. Then, task by task, each piece but the first is begun again with the carries that the piece before it left, and
goes on until it comes to a mark that says what it has itself, bit for bit. From there on nothing can differ: the same
instructions would get the same numbers. So the result has the very bits of the uncut computation, whatever the number of
threads, and nothing is ever approximated.

How soon that is depends on the discounts: behind a done at once, with a coefficient of 0.94 after some 300 steps, when the
difference is below the last bit. With coefficients of one and never a done, all of the piece is computed twice, the second
time after the others: then nothing is gained by more threads, and what is lost is their work.
"""

from __future__ import annotations

from .geometry import EVERY, GAP, MARKS, PIECE, PIECES, STEPS
from .memory import load_bits, load_words, store_bits
from .numbers import Number
from .simd import inlined
from .strategies import Body, Kernel, Walk, layout_of, row_walk, strip_walk, word


@inlined
def _copied(source: int, target: int, size: int) -> bool:
    """Copy ``size`` bytes, a multiple of four; whether that changed nothing."""
    same = True
    for at in range(0, size, 4):
        bits = load_bits(source + at)
        same = same and load_bits(target + at) == bits
        store_bits(target + at, bits)
    return same


def _walk(body: Body, number: Number, width: int, group: int) -> Walk:
    return row_walk(body, number, width, group) if group else strip_walk(body, number, width)


def pieces(body: Body, number: Number, width: int, group: int, again: bool) -> Kernel:
    """The kernel that computes every piece of every row or strip (a task is a piece); with ``again`` the one that begins
    pieces again (a task is a row or strip). The address of the marks stands behind the pointers of the operands."""
    n, count, size = body.operands, body.carries, number.element.bitwidth // 8
    layout_at, (locate, enter, go, stride) = layout_of(n), _walk(body, number, width, group)

    @inlined
    def keep(lanes: int, gap: int, source: int, target: int) -> bool:
        same = True
        for k in range(count):
            same = _copied(source + k * gap, target + k * gap, lanes * size) and same
        return same

    @inlined
    def one_piece(plan: int, pointers: int, scratch: int, task: int, piece: int) -> None:
        layout, lane, steps, gap = layout_at(plan), locate(plan, pointers, task), word(plan, STEPS), word(plan, GAP)
        each, every, marks = word(plan, PIECE), word(plan, EVERY), word(plan, MARKS)
        mark = load_words(pointers + 8 * n, 1)[0] + (task * word(plan, PIECES) + piece) * marks * count * gap
        if again:
            keep(lane[2], gap, mark - count * gap, scratch)
        else:
            enter(lane, layout, scratch, gap)
        for m in range(marks):
            at = steps % stride + piece * each + m * every
            if at < steps:
                go(lane, layout, steps, 0 if piece + m == 0 else at, min(steps, at + every), scratch, gap)
                if keep(lane[2], gap, scratch, mark + m * count * gap) and again:
                    break

    def compute(plan: int, pointers: int, scratch: int, begin: int, end: int) -> None:
        for i in range(begin, end):
            one_piece(plan, pointers, scratch, i // word(plan, PIECES), i % word(plan, PIECES))

    def begin_again(plan: int, pointers: int, scratch: int, begin: int, end: int) -> None:
        for task in range(begin, end):
            for piece in range(1, word(plan, PIECES)):
                one_piece(plan, pointers, scratch, task, piece)

    return begin_again if again else compute
