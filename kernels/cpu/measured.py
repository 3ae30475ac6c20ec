"""Taking the moments of a result on the way: what has been computed is looked at while it is in the cache.

For one sequence and time that is not cut, by each strategy in its own way. The moments of the parts are those that
:func:`.looks.measuring` finds, to the bit.
"""

from __future__ import annotations

from .geometry import EACH, GAP, INNER, NUMBERS, ROWS, STEPS, STRIP
from .looks import finish, load_three, looks, store_three
from .memory import call, load_words
from .numbers import Number, size_of
from .parts import STATE_BYTES, Parts
from .strategies import Body, Kernel, layout_of, strip_walk, word

_REST, _LENGTH, _ACROSS, _DOWN = (
    NUMBERS + Parts._fields.index(field) for field in ("rest", "length", "across", "down")
)


def measured_rows(number: Number) -> Kernel:
    """The kernel that has rows computed by another, and then looks at them: as many as are in a part, or a long one.

    ``pointers``: the address of that kernel, what it takes for its own pointers, the address of the result, and that of where
    the moments of the parts go.
    """
    measure = looks(number).measure

    def kernel(plan: int, pointers: int, scratch: int, begin: int, end: int) -> None:
        compute, operands, address, partials = load_words(pointers, 4)
        rows, each, length, across = word(plan, ROWS), word(plan, EACH), word(plan, _LENGTH), word(plan, _ACROSS)
        parts = (length + across - 1) // across
        for k in range(begin, end):
            task = begin + end - 1 - k  # backwards through memory, as within rows
            call(compute, plan, operands, scratch, task * each, min((task + 1) * each, rows))
            for part in range(task * parts, (task + 1) * parts):
                measure(plan, address, partials, part)

    return kernel


def measured_strips(body: Body, number: Number, width: int, result: int) -> Kernel:
    """The kernel of ``body`` for strips, with the moments of the operand ``result``.

    After each step it looks at the lanes of every part that the strip runs through. The address of where the moments go stands
    behind the pointers of the operands; in front of the carries, in scratch memory, is what has been seen of each part.
    """
    assert body.reverse
    n, size, layout_at = body.operands, size_of(number.stored), layout_of(body.operands)
    locate, enter, go, _ = strip_walk(body, number, width)
    beginning, deviations, _ = looks(number)

    def kernel(plan: int, pointers: int, scratch: int, begin: int, end: int) -> None:
        layout, steps, gap, total = layout_at(plan), word(plan, STEPS), word(plan, GAP), word(plan, INNER)
        across, down, rest, strip = word(plan, _ACROSS), word(plan, _DOWN), word(plan, _REST), word(plan, STRIP)
        partials, in_line = load_words(pointers + 8 * n, 1)[0], (total + across - 1) // across
        in_time, stride = (steps + down - 1) // down, layout[1][result]
        carries = scratch + STATE_BYTES * ((strip + across - 1) // across)
        for task in range(begin, end):
            lane = locate(plan, pointers, task)
            start, first_lane, lanes = lane
            position = task // ((total + strip - 1) // strip)
            first_part = (position // rest * in_time * rest + position % rest) * in_line + first_lane // across
            enter(lane, layout, carries, gap)
            for i in range(steps):
                go(lane, layout, steps, i, i + 1, carries, gap)
                t = steps - 1 - i
                for k in range(0, lanes, across):
                    address, count = start[result] + t * stride + (first_lane + k) * size, min(across, lanes - k)
                    state = scratch + STATE_BYTES * (k // across)
                    if i == 0 or t % down == down - 1:
                        store_three(state, beginning(address, count), 0.0, 0.0)
                    centre, sums, squares = load_three(state)
                    more, more_squares = deviations(address, count, centre)
                    sums, squares = sums + more, squares + more_squares
                    store_three(state, centre, sums, squares)
                    if t % down == 0:
                        part = first_part + t // down * rest * in_line + k // across
                        numbers = min(down, steps - t) * count
                        finish(partials + STATE_BYTES * part, numbers, centre, sums, squares)

    return kernel
