"""Standardising with known moments, in one pass over numbers as they lie in memory; masks lie alike, a byte each."""

from __future__ import annotations

import functools
import math
from array import array
from typing import Any

import torch
from llvmlite import ir
from numba import types
from torch import Tensor

from ..textbook import counted
from . import team
from .compile import compiled_once
from .memory import load, load_words, pointer_to
from .numbers import NUMBERS, Number, lowered, raised, size_of
from .simd import constant, intrinsic, llvm_float, splat
from .strategies import Kernel

PART, WIDTH = 1 << 15, 32


def standardised(
    x: Tensor, moments: Tensor, valid: Tensor | None, skip: Tensor | None, eps: float, correction: int
) -> Tensor:
    """What :func:`tritonrl.kernels.standardise` returns, for masks that lie in memory as ``x`` does, without gaps."""
    y, counts, number = torch.empty_like(x), counted(valid, skip), NUMBERS[x.dtype]
    masked = counts is not None
    made = functools.partial(_elementwise, number, masked)
    function = compiled_once(("standardise", number.name, masked), made)
    mask = 0 if counts is None else counts.data_ptr()
    plan = array("q", [x.data_ptr(), mask, y.data_ptr(), x.numel()])
    count, mean, m2 = moments.tolist()
    numbers = array("d", [mean, one_over_deviation(count, m2, eps, correction)])
    parts, threads = -(-x.numel() // PART), torch.get_num_threads()
    addresses = plan.buffer_info()[0], numbers.buffer_info()[0]
    team.run(function, *addresses, 0, parts, parts, threads, (x, counts, y, plan, numbers))
    return y


def one_over_deviation(count: float, m2: float, eps: float, correction: int) -> float:
    """One over the standard deviation, or over ``eps``."""
    variance = m2 / max(count - correction, 1.0)
    deviation = max(math.nan if variance < 0 else math.sqrt(variance), eps)  # a NaN stays one: nothing is greater
    return 1.0 / deviation if deviation else math.inf


def _at_once(number: Number, width: int, masked: bool) -> Any:
    """``(from, flags, to, mean and scale)``: standardise ``width`` numbers. ``to`` and the others are addresses."""

    @intrinsic
    def standardise(typing_context: Any, source: Any, flags: Any, target: Any, numbers: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            def many(kind: ir.Type) -> ir.Type:
                return kind if width == 1 else ir.VectorType(kind, width)

            def everywhere(place: int) -> ir.Value:
                address = builder.add(args[3], ir.Constant(args[3].type, 8 * place))
                x, element = load(builder, address, ir.DoubleType()), llvm_float(number.element)
                x = x if element == ir.DoubleType() else builder.fptrunc(x, element)
                return x if width == 1 else splat(builder, x, width)

            x = raised(builder, number, load(builder, args[0], many(number.stored)))
            y = builder.fmul(builder.fsub(x, everywhere(0)), everywhere(1))
            if masked:
                flag = load(builder, args[1], many(ir.IntType(8)))
                y = builder.select(builder.icmp_unsigned("!=", flag, constant(flag.type, 0)), y, constant(y.type, 0.0))
            to = pointer_to(builder, args[2], many(number.stored))
            builder.store(lowered(builder, number, y), to, align=size_of(number.stored))
            return context.get_dummy_value()

        return types.void(*(types.intp,) * 4), codegen

    return standardise


def _elementwise(number: Number, masked: bool) -> Kernel:
    """The kernel ``(plan, mean and scale, -, first part, end)``. ``plan``: where numbers, flags and results are; how many."""
    many, one, size = _at_once(number, WIDTH, masked), _at_once(number, 1, masked), size_of(number.stored)

    def kernel(plan: int, numbers: int, _: int, begin: int, end: int) -> None:
        source, flags, target, count = load_words(plan, 4)
        first, last = begin * PART, min(count, end * PART)
        whole = last - (last - first) % WIDTH
        for i in range(first, whole, WIDTH):
            many(source + i * size, flags + i, target + i * size, numbers)
        for i in range(whole, last):
            one(source + i * size, flags + i, target + i * size, numbers)

    return kernel
