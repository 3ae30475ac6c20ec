"""SIMD registers as Numba types: what the kernels compute with.

LLVM vectorises loops by itself only while it can prove that no store aliases a load, and never along the dependent
dimension of a recurrence. The kernels therefore say what they mean: a :class:`Vector` is a register of ``width``
floats, a :class:`Mask` the result of comparing two of them. ``+ - *`` and comparisons work on vectors as on numbers, so
that one function body serves both. LLVM splits a vector that is wider than the machine's registers; nothing here knows
the processor.

Only ``contract`` (fusing ``x*y + z``) is allowed of the fast-math flags: the others let LLVM assume that there is no
NaN.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numba.extending
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model

CONTRACT = ("contract",)

# Numba's annotations describe an intrinsic as it is defined, with a typing context; compiled code calls it without one.
intrinsic: Any = numba.extending.intrinsic
# They leave out some of its options.
njit: Any = numba.njit
# Everything must end up in one LLVM function, where the values of a block live in registers. Nothing of it is called
# from Python, so the wrappers for that are left out, which takes a third of the compile time.
inlined = njit(
    forceinline=True, error_model="numpy", fastmath={"contract"}, no_cpython_wrapper=True, no_cfunc_wrapper=True
)


class Vector(types.Type):
    """``width`` floats of type ``element``."""

    def __init__(self, element: types.Type, width: int) -> None:
        self.element, self.width = element, width
        super().__init__(name=f"Vector({element}, {width})")


class Mask(types.Type):
    """``width`` truth values."""

    def __init__(self, width: int) -> None:
        self.width = width
        super().__init__(name=f"Mask({width})")


def llvm_float(element: types.Type) -> ir.Type:
    """The LLVM type of ``float32`` or ``float64``."""
    return ir.FloatType() if element == types.float32 else ir.DoubleType()


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vector) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(llvm_float(fe_type.element), fe_type.width))


@register_model(Mask)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Mask) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(ir.IntType(1), fe_type.width))


def value_type(element: types.Type, width: int) -> types.Type:
    """What ``width`` floats are held in: a vector, or a plain number when there is one."""
    return element if width == 1 else Vector(element, width)


def mask_type(width: int) -> types.Type:
    """The truth values that belong to ``width`` floats."""
    return types.boolean if width == 1 else Mask(width)


def constant(kind: ir.Type, x: float | int) -> ir.Constant:
    """``x`` as a scalar, or in every element of a vector."""
    if isinstance(kind, ir.VectorType):
        return ir.Constant(kind, [x] * kind.count)
    return ir.Constant(kind, x)


def splat(builder: ir.IRBuilder, x: ir.Value, width: int) -> ir.Value:
    """The scalar ``x`` in every element of a vector; ``x`` itself for a width of one."""
    if width == 1:
        return x
    undefined = ir.Constant(ir.VectorType(x.type, width), ir.Undefined)
    first = builder.insert_element(undefined, x, ir.Constant(ir.IntType(32), 0))
    return shuffle(builder, first, undefined, [0] * width)


def shuffle(builder: ir.IRBuilder, x: ir.Value, y: ir.Value, indices: Sequence[int]) -> ir.Value:
    """Elements of ``x`` (indices below its width) and ``y`` (the rest) in the given order."""
    return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(ir.IntType(32), len(indices)), list(indices)))


def moved(builder: ir.IRBuilder, x: ir.Value, entering: ir.Value, by: int) -> ir.Value:
    """Element ``j`` of the result is element ``j + by`` of ``x``; element ``j`` of ``entering`` where there is none."""
    width = x.type.count
    return shuffle(builder, x, entering, [j + by if 0 <= j + by < width else width + j for j in range(width)])


def rarely(
    builder: ir.IRBuilder,
    cases: Sequence[tuple[ir.Value, Callable[[], ir.Value]]],
    otherwise: Callable[[], ir.Value],
) -> ir.Value:
    """``if .. elif .. else`` as an expression; ``else`` is the rare case."""
    done = builder.append_basic_block("done")
    arrived = []
    for condition, value in cases:
        yes, no = builder.append_basic_block("yes"), builder.append_basic_block("no")
        builder.cbranch(condition, yes, no).set_weights([1000, 1])
        builder.position_at_end(yes)
        arrived.append((value(), builder.block))
        builder.branch(done)
        builder.position_at_end(no)
    arrived.append((otherwise(), builder.block))
    builder.branch(done)
    builder.position_at_end(done)
    phi = builder.phi(arrived[0][0].type)
    for value, origin in arrived:
        phi.add_incoming(value, origin)
    return phi


def _arithmetic(function: Callable[..., Any], instruction: str) -> None:
    @infer_global(function)
    class _Typing(AbstractTemplate):
        def generic(self, args: tuple[types.Type, ...], kws: Any) -> Any:
            if len(args) == 2 and isinstance(args[0], Vector) and args[0] == args[1]:
                return signature(args[0], *args)
            return None

    @lower_builtin(function, Vector, Vector)
    def _lower(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return getattr(builder, instruction)(*args, flags=CONTRACT)


def _comparison(function: Callable[..., Any], symbol: str) -> None:
    @infer_global(function)
    class _Typing(AbstractTemplate):
        def generic(self, args: tuple[types.Type, ...], kws: Any) -> Any:
            if len(args) == 2 and isinstance(args[0], Vector) and args[0] == args[1]:
                return signature(Mask(args[0].width), *args)
            return None

    @lower_builtin(function, Vector, Vector)
    def _lower(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        # "!=" is true of NaN, every other comparison is not: as in Python.
        compare = builder.fcmp_unordered if symbol == "!=" else builder.fcmp_ordered
        return compare(symbol, *args)


def _logical(function: Callable[..., Any], instruction: str) -> None:
    @infer_global(function)
    class _Typing(AbstractTemplate):
        def generic(self, args: tuple[types.Type, ...], kws: Any) -> Any:
            if len(args) == 2 and isinstance(args[0], Mask) and args[0] == args[1]:
                return signature(args[0], *args)
            return None

    @lower_builtin(function, Mask, Mask)
    def _lower(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return getattr(builder, instruction)(*args)


for _function, _instruction in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
    _arithmetic(_function, _instruction)
for _function, _symbol in (
    (operator.lt, "<"),
    (operator.le, "<="),
    (operator.gt, ">"),
    (operator.eq, "=="),
    (operator.ne, "!="),
):
    _comparison(_function, _symbol)
for _function, _instruction in ((operator.and_, "and_"), (operator.or_, "or_")):
    _logical(_function, _instruction)


@intrinsic
def where(typing_context: Any, condition: Any, x: Any, y: Any) -> Any:
    """``x`` where ``condition`` holds, else ``y``: a select, so that NaN in what is not chosen does not matter."""
    if x != y:
        return None

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return builder.select(*args)

    return x(condition, x, y), codegen


def multiply_add(builder: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    """``x*y + z``, in one rounding where the processor has the instruction."""
    kind = x.type
    if isinstance(kind, ir.VectorType):
        name = f"llvm.fmuladd.v{kind.count}{'f32' if isinstance(kind.element, ir.FloatType) else 'f64'}"
    else:
        name = f"llvm.fmuladd.{'f32' if isinstance(kind, ir.FloatType) else 'f64'}"
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
    return builder.call(function, [x, y, z])
