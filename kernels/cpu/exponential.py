"""``exp`` of a number or of a register, without a call to the C library, which knows no registers."""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import types

from .simd import Vector, constant, intrinsic, multiply_add


class _Format:
    """What the algorithm needs to know of a floating-point format.

    ``degree``: of the Taylor polynomial on ``|x| <= ln(2)/2`` that leaves an error below half a unit in the last place.
    ``ln2_high`` has enough trailing zero bits that its product with the exponent is exact.
    """

    def __init__(self, element: types.Type) -> None:
        single = element == types.float32
        self.bits, self.mantissa, self.bias = (32, 23, 127) if single else (64, 52, 1023)
        self.degree = 7 if single else 13
        self.ln2_high = 0.693145751953125 if single else 0.693147180369123816490
        self.ln2_low = math.log(2.0) - self.ln2_high if single else 1.90821492927058770002e-10
        # Beyond these the result is infinite or zero; clamping keeps the exponent arithmetic in range.
        self.highest, self.lowest = (89.0, -104.0) if single else (710.0, -746.0)


def _power_of_two(builder: ir.IRBuilder, n: ir.Value, kind: ir.Type, form: _Format) -> ir.Value:
    """``2**n`` by writing the exponent bits."""
    biased = builder.add(n, constant(n.type, form.bias))
    return builder.bitcast(builder.shl(biased, constant(n.type, form.mantissa)), kind)


@intrinsic
def exp(typing_context: Any, x: Any) -> Any:
    """``e**x`` to about one unit in the last place; infinite, zero and NaN as IEEE has it."""
    element = x.element if isinstance(x, Vector) else x
    if element not in (types.float32, types.float64):
        return None
    form = _Format(element)

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        (value,) = args
        kind = value.type
        integer: ir.Type = ir.IntType(form.bits)
        if isinstance(kind, ir.VectorType):
            integer = ir.VectorType(integer, kind.count)
        high, low = constant(kind, form.highest), constant(kind, form.lowest)
        clamped = builder.select(builder.fcmp_ordered(">", value, high), high, value)
        clamped = builder.select(builder.fcmp_ordered("<", clamped, low), low, clamped)
        # A NaN would be undefined as an integer; it is put back at the end.
        is_number = builder.fcmp_ordered("ord", value, value)
        clamped = builder.select(is_number, clamped, constant(kind, 0.0))
        # Adding 1.5 * 2**mantissa rounds to the nearest integer.
        magic = constant(kind, 1.5 * 2.0**form.mantissa)
        scaled = builder.fmul(clamped, constant(kind, 1.0 / math.log(2.0)))
        whole = builder.fsub(builder.fadd(scaled, magic), magic)
        rest = multiply_add(builder, whole, constant(kind, -form.ln2_high), clamped)
        rest = multiply_add(builder, whole, constant(kind, -form.ln2_low), rest)
        result: ir.Value = constant(kind, 1.0 / math.factorial(form.degree))
        for power in range(form.degree - 1, -1, -1):
            result = multiply_add(builder, result, rest, constant(kind, 1.0 / math.factorial(power)))
        # In two steps, because 2**n alone may be out of range where the product is not.
        n = builder.fptosi(whole, integer)
        half = builder.ashr(n, constant(integer, 1))
        result = builder.fmul(result, _power_of_two(builder, half, kind, form))
        result = builder.fmul(result, _power_of_two(builder, builder.sub(n, half), kind, form))
        return builder.select(is_number, result, value)

    return x(x), codegen
