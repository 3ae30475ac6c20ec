"""Looking at numbers that have been computed, for the moments of a part (:mod:`.parts`).

Of each line of a part the deviations, and their squares, from the mean of the first few numbers that are looked at, in
float64. That is near enough, wherever it lies: the squared distance of the mean of ``k`` out of ``n`` numbers from that of all
is at most ``n / k`` times their variance. So the difference of squares is at most so much less exact than its terms: a
thousand times where lines have 32 numbers or more, four thousand where they are the fewest lanes that make a strip.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types

from .geometry import NUMBERS
from .memory import load, load_words
from .numbers import Number, like, raised, size_of
from .parts import STATE_BYTES, Parts
from .simd import Vector, inlined, intrinsic, shuffle, splat, value_type

WIDTH = 32
_FIELDS = len(Parts._fields)


def _loading(number: Number, width: int) -> Any:
    """``(address) -> width`` numbers as float64."""
    value = value_type(types.float64, width)

    @intrinsic
    def load_doubles(typing_context: Any, address: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            stored = number.stored if width == 1 else ir.VectorType(number.stored, width)
            x = raised(builder, number, load(builder, args[0], stored))
            return x if number.element == types.float64 else builder.fpext(x, like(x.type, ir.DoubleType()))

        return value(types.intp), codegen

    return load_doubles


@intrinsic
def _everywhere(typing_context: Any, x: Any) -> Any:
    """A float64 in every element of a vector."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return splat(builder, args[0], WIDTH)

    return Vector(types.float64, WIDTH)(types.float64), codegen


@intrinsic
def _total(typing_context: Any, x: Any) -> Any:
    """The sum of the elements of a vector, which is halved until one is left."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        (value,) = args
        width = value.type.count
        while width > 1:
            width //= 2
            low, high = (shuffle(builder, value, value, range(i, i + width)) for i in (0, width))
            value = builder.fadd(low, high)
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return types.float64(x), codegen


@intrinsic
def load_three(typing_context: Any, address: Any) -> Any:
    """Three float64 from memory."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        places = [builder.add(args[0], ir.Constant(args[0].type, 8 * k)) for k in range(3)]
        numbers = [load(builder, place, ir.DoubleType()) for place in places]
        return context.make_tuple(builder, sig.return_type, numbers)

    return types.UniTuple(types.float64, 3)(types.intp), codegen


@intrinsic
def store_three(typing_context: Any, address: Any, x: Any, y: Any, z: Any) -> Any:
    """The inverse of :func:`load_three`."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        for k, number in enumerate(args[1:]):
            place = builder.add(args[0], ir.Constant(args[0].type, 8 * k))
            builder.store(number, builder.inttoptr(place, ir.DoubleType().as_pointer()))
        return context.get_dummy_value()

    return types.void(types.intp, *(types.float64,) * 3), codegen


class Looks(NamedTuple):
    """How to look at numbers of one kind.

    ``beginning(address, count)`` is the mean of the first of ``count`` numbers, ``deviations(address, count, centre)`` the sums
    of ``x - centre`` and of its square. ``measure(plan, address, partials, part)`` looks at one part of the numbers that begin
    at ``address``.
    """

    beginning: Callable[..., float]
    deviations: Callable[..., tuple[float, float]]
    measure: Callable[..., None]


@functools.cache
def looks(number: Number) -> Looks:
    """The functions for numbers that are stored like ``number``."""
    load_many, load_one, size = _loading(number, WIDTH), _loading(number, 1), size_of(number.stored)

    @inlined
    def beginning(address: int, count: int) -> float:
        if count >= WIDTH:
            return _total(load_many(address)) / WIDTH
        total = 0.0
        for i in range(count):
            total += load_one(address + i * size)
        return total / count

    @inlined
    def deviations(address: int, count: int, centre: float) -> tuple[float, float]:
        whole = count - count % WIDTH
        many, sums, squares = _everywhere(centre), _everywhere(0.0), _everywhere(0.0)
        for i in range(0, whole, WIDTH):
            deviation = load_many(address + i * size) - many
            sums, squares = sums + deviation, squares + deviation * deviation
        first, second = _total(sums), _total(squares)
        for i in range(whole, count):
            deviation = load_one(address + i * size) - centre
            first, second = first + deviation, second + deviation * deviation
        return first, second

    @inlined
    def measure(plan: int, address: int, partials: int, part: int) -> None:
        at, lines, count, stride = part_at(plan, part)
        # Backwards, as they are computed.
        line = address + (at + (lines - 1) * stride) * size
        centre, rest, squares = beginning(line, count), 0.0, 0.0
        for _ in range(lines):
            first, second = deviations(line, count, centre)
            rest, squares = rest + first, squares + second
            line -= stride * size
        finish(partials + STATE_BYTES * part, lines * count, centre, rest, squares)

    return Looks(beginning, deviations, measure)


@inlined
def finish(partial: int, numbers: int, centre: float, rest: float, squares: float) -> None:
    """Write count, mean and M2 of so many numbers, from the sums of their deviations from ``centre`` and of the squares."""
    store_three(partial, float(numbers), centre + rest / numbers, squares - rest * rest / numbers)


@inlined
def part_at(plan: int, part: int) -> Any:
    """Where a part begins, how many lines it has and how many numbers in each, and how far these are from each other."""
    numbers, all_lines, rest, length, across, down = load_words(plan + 8 * NUMBERS, _FIELDS)
    in_line, in_time = (length + across - 1) // across, (all_lines + down - 1) // down
    unit, k = part % in_line, part // in_line
    other, k = k % rest, k // rest
    first_line, block = k % in_time * down, k // in_time
    at = ((block * all_lines + first_line) * rest + other) * length + unit * across
    count = min(across, length - unit * across, numbers - at)
    return at, min(down, all_lines - first_line), count, rest * length


def measuring(number: Number) -> Callable[[int, int, int, int, int], None]:
    """The kernel that looks at numbers which other kernels have computed; a task is a part.

    ``pointers`` are the addresses of the numbers and of where the moments of the parts go.
    """
    measure = looks(number).measure

    def kernel(plan: int, pointers: int, _: int, begin: int, end: int) -> None:
        address, partials = load_words(pointers, 2)
        for part in range(begin, end):
            measure(plan, address, partials, part)

    return kernel


def merging(partials: int, count: int, moments: int, begin: int, end: int) -> None:
    """The kernel that merges the moments of ``count`` parts, as :func:`tritonrl.kernels.moments.merge_moments` does.

    ``partials``, ``moments``: addresses. ``begin``, ``end``: of nothing; kernels have them.
    """
    total, overall, m2 = 0.0, 0.0, 0.0
    for i in range(count):
        numbers, mean, _ = load_three(partials + STATE_BYTES * i)
        total, overall = total + numbers, overall + numbers * mean
    overall /= total
    for i in range(count):
        numbers, mean, own = load_three(partials + STATE_BYTES * i)
        m2 += own + numbers * (mean - overall) * (mean - overall)
    store_three(moments, total, overall, m2)
