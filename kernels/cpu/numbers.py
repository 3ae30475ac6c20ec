"""The numbers that tensors hold, and those that registers do: 16-bit ones are computed with in float32."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from llvmlite import ir
from numba import types

from .simd import constant


class Number(NamedTuple):
    """``name``: as torch has it. ``element``: what registers hold. ``stored``: what memory holds, as LLVM has it.

    LLVM has a type for bfloat16 that few processors can do anything with; here its 16 bits are the upper half of a float32.
    """

    name: str
    element: Any
    stored: ir.Type

    @property
    def is_narrow(self) -> bool:
        """Whether memory holds something else than registers do."""
        return self.name in ("float16", "bfloat16")


NUMBERS = {
    torch.float64: Number("float64", types.float64, ir.DoubleType()),
    torch.float32: Number("float32", types.float32, ir.FloatType()),
    torch.float16: Number("float16", types.float32, ir.HalfType()),
    torch.bfloat16: Number("bfloat16", types.float32, ir.IntType(16)),
}
SIZES = {ir.HalfType(): 2, ir.FloatType(): 4, ir.DoubleType(): 8}


def size_of(kind: ir.Type) -> int:
    """Bytes of one element in memory."""
    if isinstance(kind, ir.IntType):
        return int(kind.width) // 8
    return SIZES[kind]


def like(kind: ir.Type, element: ir.Type) -> ir.Type:
    """``element``, or as many of it as the vector ``kind`` has."""
    return ir.VectorType(element, kind.count) if isinstance(kind, ir.VectorType) else element


def raised(builder: ir.IRBuilder, number: Number, x: ir.Value) -> ir.Value:
    """What was loaded, as what registers hold."""
    if number.name == "float16":
        return builder.fpext(x, like(x.type, ir.FloatType()))
    if number.name == "bfloat16":
        word = like(x.type, ir.IntType(32))
        return builder.bitcast(builder.shl(builder.zext(x, word), constant(word, 16)), like(x.type, ir.FloatType()))
    return x


def lowered(builder: ir.IRBuilder, number: Number, x: ir.Value) -> ir.Value:
    """The inverse of :func:`raised`, rounded to nearest, ties to even."""
    if number.name == "float16":
        return builder.fptrunc(x, like(x.type, ir.HalfType()))
    if number.name == "bfloat16":
        return _upper_half(builder, x)
    return x


def _upper_half(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    word, half = like(x.type, ir.IntType(32)), like(x.type, ir.IntType(16))
    bits = builder.bitcast(x, word)
    shift = constant(word, 16)
    is_odd = builder.and_(builder.lshr(bits, shift), constant(word, 1))
    rounded = builder.add(bits, builder.add(is_odd, constant(word, 0x7FFF)))
    # Rounding could carry a NaN over to infinity or zero; its upper half with a bit set is a NaN.
    quiet = builder.or_(bits, constant(word, 0x00400000))
    is_nan = builder.fcmp_unordered("uno", x, x)
    return builder.trunc(builder.lshr(builder.select(is_nan, quiet, rounded), shift), half)
