"""Count, mean and M2 of a result, read once more while it is still in the cache.

A result is dense, whatever its layout, so its numbers are taken as they lie in memory. They are cut into parts, and those
into chunks that fit the first-level cache: of each chunk the deviations, and their squares, from the mean of what came before
it, in float64. Only where that is far from its own mean, so that the difference of squares would lose digits, is the chunk
looked at again: first for its mean, then for the deviations from it. Chunks and parts merge as in
:mod:`tritonrl.kernels.moments`. Where they end depends on nothing but how many numbers there are, so the bits of the result
do not depend on how many threads there are.
"""

from __future__ import annotations

import functools
import math
from array import array
from collections.abc import Sequence
from typing import Any

import torch
from llvmlite import ir
from numba import types
from torch import Tensor

from . import team
from .compile import compiled_once
from .memory import load, load_words
from .numbers import NUMBERS, Number, like, raised, size_of
from .simd import Vector, inlined, intrinsic, shuffle, splat, value_type
from .strategies import Kernel

PART, CHUNK, WIDTH = 1 << 16, 1 << 12, 32
# How many times the variance the square of the distance from another mean may be: four bits of 53 are lost then.
FAR = 16.0


def measure(x: Tensor, counts: Tensor | None, moments: Tensor) -> None:
    """Count, mean and M2 of what counts in ``x`` into ``moments``. ``x`` is dense and zero where it does not count."""
    numbers = x.numel()
    if not numbers:
        moments.zero_()
        return
    parts, threads = -(-numbers // PART), torch.get_num_threads()
    partials = torch.empty((parts, 3), dtype=torch.float64)
    function = compiled_once(("moments", NUMBERS[x.dtype].name), functools.partial(_reduction, NUMBERS[x.dtype]))
    plan = array("q", [x.data_ptr(), numbers])
    team.run(function, plan.buffer_info()[0], partials.data_ptr(), 0, parts, parts, threads, (x, partials, plan))
    merged = _merged(partials.tolist())
    if counts is not None:
        merged = _without_the_others(*merged, _how_many(counts, x.shape))
    moments.copy_(torch.tensor(merged, dtype=torch.float64))


def _merged(parts: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """As :func:`tritonrl.kernels.moments.merge_moments`; a few numbers are merged sooner in Python than in a dozen ops."""
    total = sum(count for count, _, _ in parts)
    overall = sum(count * mean for count, mean, _ in parts) / total
    # Not squared by ``**``, which raises an error where a product is infinite.
    apart = [mean - overall for _, mean, _ in parts]
    return total, overall, sum(m2 + count * d * d for (count, _, m2), d in zip(parts, apart, strict=True))


def _how_many(counts: Tensor, shape: torch.Size) -> int:
    """How many steps count; a mask that is broadcast counts as often as it stands for a step."""
    return int(counts.count_nonzero()) * (shape.numel() // counts.numel())


def _without_the_others(total: float, mean: float, m2: float, count: int) -> tuple[float, float, float]:
    """The moments of ``count`` numbers, from those of the same and some zeros."""
    if not count:
        return 0.0, 0.0, 0.0
    kept_mean = mean * total / count
    kept_m2 = m2 - (total - count) * mean * kept_mean
    return float(count), kept_mean, kept_m2 if math.isnan(kept_m2) else max(kept_m2, 0.0)


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
def _store(typing_context: Any, address: Any, x: Any) -> Any:
    """A float64 to memory."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        builder.store(args[1], builder.inttoptr(args[0], ir.DoubleType().as_pointer()))
        return context.get_dummy_value()

    return types.void(types.intp, types.float64), codegen


def _reduction(number: Number) -> Kernel:
    """The kernel ``(plan, partials, -, first part, end)``: three numbers to ``partials`` for each part.

    ``plan``: the address of the numbers, and how many there are.
    """
    load_many, load_one, size = _loading(number, WIDTH), _loading(number, 1), size_of(number.stored)

    @inlined
    def deviations(address: int, count: int, centre: float) -> tuple[float, float]:
        """The sums of ``x - centre`` and of its square."""
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
    def beginning(address: int, count: int) -> float:
        """The mean of the first few numbers."""
        return _total(load_many(address)) / WIDTH if count >= WIDTH else load_one(address)

    def kernel(plan: int, partials: int, _: int, begin: int, end: int) -> None:
        address, numbers = load_words(plan, 2)
        for part in range(begin, end):
            count, mean, m2 = 0, 0.0, 0.0
            for at in range(part * PART, min(numbers, (part + 1) * PART), CHUNK):
                some = min(CHUNK, numbers - at)
                centre = mean if count else beginning(address + at * size, some)
                rest, squares = deviations(address + at * size, some, centre)
                if not rest * rest / some <= FAR * (squares - rest * rest / some):  # or something is not finite
                    centre = deviations(address + at * size, some, 0.0)[0] / some
                    rest, squares = deviations(address + at * size, some, centre)
                apart, total = centre + rest / some - mean, count + some
                m2 += squares - rest * rest / some + apart * apart * (count * some / total)
                mean += apart * (some / total)
                count = total
            row = partials + 24 * part
            _store(row, float(count))
            _store(row + 8, mean)
            _store(row + 16, m2)

    return kernel
