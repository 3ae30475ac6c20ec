"""Reading the operands of a block from memory and writing its results, whatever their strides.

An operand that is contiguous along the block is one load, a broadcast one a load and a copy to all elements; any other
stride is gathered by a function of its own. Which it is does not change inside a loop, so the processor predicts the
branch: that costs less than a kernel for every combination of strides would.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from .blocks import (
    BASES,
    HAS_FINAL,
    HAS_FIRST,
    INDEX,
    KINDS,
    LANE_STRIDES,
    OUTER_LANE_STRIDES,
    SPLIT,
    TIME_STRIDES,
    WORD,
    Block,
    block_of,
)
from .geometry import ABSENT, CONTIGUOUS, ONE, ONE_DOUBLE
from .numbers import lowered, raised, size_of
from .simd import constant, intrinsic, llvm_float, moved, rarely, splat


def pointer_to(builder: ir.IRBuilder, address: ir.Value, kind: ir.Type) -> ir.Value:
    """An address as a pointer to ``kind``."""
    return builder.inttoptr(address, kind.as_pointer())


def load(builder: ir.IRBuilder, address: ir.Value, kind: ir.Type) -> ir.Value:
    """What lies at an address, which need only be aligned to one element."""
    element = kind.element if isinstance(kind, ir.VectorType) else kind
    return builder.load(pointer_to(builder, address, kind), align=size_of(element))


def prefetch_to_write(builder: ir.IRBuilder, address: ir.Value) -> None:
    """Have a cache line fetched that is soon to be written. Any address will do, also one without memory behind it."""
    byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
    signature = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
    function = builder.module.declare_intrinsic("llvm.prefetch", [byte], signature)
    to_write, near, data = (ir.Constant(word, x) for x in (1, 3, 1))
    builder.call(function, [builder.inttoptr(address, byte), to_write, near, data])


def _plus(builder: ir.IRBuilder, base: ir.Value, index: ir.Value, stride: ir.Value) -> ir.Value:
    return builder.add(base, builder.mul(index, stride))


class _Operand:
    """Operand ``k`` of ``io``, as LLVM values."""

    def __init__(self, builder: ir.IRBuilder, io: ir.Value, k: int) -> None:
        def of(field: int) -> ir.Value:
            return builder.extract_value(io, [field, k])

        self.base, self.kind, self.time_stride = of(BASES), of(KINDS), of(TIME_STRIDES)
        self.lane_stride, self.outer_lane_stride = of(LANE_STRIDES), of(OUTER_LANE_STRIDES)
        self.split, self.index = builder.extract_value(io, SPLIT), builder.extract_value(io, INDEX)

    def is_a(self, builder: ir.IRBuilder, kind: int) -> ir.Value:
        return builder.icmp_signed("==", self.kind, ir.Constant(WORD, kind))


def _read(builder: ir.IRBuilder, block: Block, x: _Operand, element: ir.Type) -> ir.Value:
    """The ``width`` elements of a block: contiguous, all the same, or gathered."""
    if block.width == 1:
        return load(builder, _plus(builder, x.base, x.index, x.time_stride), element)
    kind = ir.VectorType(element, block.width)

    def contiguous() -> ir.Value:
        return load(builder, _plus(builder, x.base, x.index, ir.Constant(WORD, size_of(element))), kind)

    def one() -> ir.Value:
        return splat(builder, load(builder, x.base, element), block.width)

    def gathered() -> ir.Value:
        strides = [x.time_stride, x.lane_stride, x.outer_lane_stride, x.split]
        return builder.call(_gather(builder.module, block, element), [x.base, x.index, *strides])

    cases = [(x.is_a(builder, CONTIGUOUS), contiguous), (x.is_a(builder, ONE), one)]
    return rarely(builder, cases, gathered)


def _gather(module: ir.Module, block: Block, element: ir.Type) -> ir.Function:
    """The function ``(base, index, time stride, lane stride, outer lane stride, split) -> vector``.

    It is not inlined: LLVM would keep ``width`` addresses per operand up to date in the loops that never gather.
    """
    name = f"tritonrl.gather.{block.width}.{block.group}.{block.across}.{element}"
    if name in module.globals:
        return module.globals[name]
    kind = ir.VectorType(element, block.width)
    function = ir.Function(module, ir.FunctionType(kind, [WORD] * 6), name)
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block())
    base, index, time_stride, lane_stride, outer_lane_stride, split = function.args
    zero, one = ir.Constant(WORD, 0), ir.Constant(WORD, 1)
    result: ir.Value = ir.Constant(kind, ir.Undefined)
    outer = inner = zero
    if block.across:
        outer, inner = builder.udiv(index, split), builder.urem(index, split)
    else:
        base = _plus(builder, base, builder.udiv(index, ir.Constant(WORD, block.group)), time_stride)
    for j in range(block.width):
        if j and not block.across and j % block.group == 0:
            base, outer, inner = builder.add(base, time_stride), zero, zero
        address = _plus(builder, _plus(builder, base, inner, lane_stride), outer, outer_lane_stride)
        result = builder.insert_element(result, load(builder, address, element), ir.Constant(ir.IntType(32), j))
        inner = builder.add(inner, one)
        full = builder.icmp_unsigned("==", inner, split)
        outer, inner = builder.add(outer, builder.zext(full, WORD)), builder.select(full, zero, inner)
    builder.ret(result)
    return function


def _read_floats(builder: ir.IRBuilder, block: Block, x: _Operand) -> ir.Value:
    return raised(builder, block.number, _read(builder, block, x, block.number.stored))


def _read_bytes(builder: ir.IRBuilder, block: Block, x: _Operand) -> ir.Value:
    return _read(builder, block, x, ir.IntType(8))


@intrinsic(prefer_literal=True)
def read(typing_context: Any, io: Any, k: Any) -> Any:
    """The floats of operand ``k``."""
    block, position = block_of(io), k.literal_value

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return _read_floats(builder, block, _Operand(builder, args[0], position))

    return block.value(io, k), codegen


@intrinsic(prefer_literal=True)
def read_discount(typing_context: Any, io: Any, k: Any) -> Any:
    """The floats of operand ``k``, which may also be one float64, as Python numbers are, in any kernel."""
    block, position = block_of(io), k.literal_value

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        x, element = _Operand(builder, args[0], position), llvm_float(block.element)

        def one_double() -> ir.Value:
            number = load(builder, x.base, ir.DoubleType())
            number = number if element == ir.DoubleType() else builder.fptrunc(number, element)
            return splat(builder, number, block.width)

        return rarely(builder, [(x.is_a(builder, ONE_DOUBLE), one_double)], lambda: _read_floats(builder, block, x))

    return block.value(io, k), codegen


def _flag_reader(name: str, symbol: str, following: bool) -> Any:
    @intrinsic(prefer_literal=True)
    def reader(typing_context: Any, io: Any, k: Any) -> Any:
        block, position = block_of(io), k.literal_value

        def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            if following:
                x = _neighbour(builder, block, args[0], position, not block.reverse, _read_bytes)
            else:
                x = _read_bytes(builder, block, _Operand(builder, args[0], position))
            return builder.icmp_unsigned(symbol, x, constant(x.type, 0))

        return block.mask(io, k), codegen

    reader.__doc__ = name
    return reader


read_flag = _flag_reader("The truth values of operand ``k``, a byte each.", "!=", False)
read_unset = _flag_reader("The opposite of the truth values of operand ``k``.", "==", False)
read_unset_following = _flag_reader("``read_unset`` of the following step in time; anything at the last.", "==", True)


def _neighbour(
    builder: ir.IRBuilder, block: Block, io: ir.Value, k: int, ahead: bool, reading: Callable[..., ir.Value]
) -> ir.Value:
    """Operand ``k`` one step further in the order of processing (``ahead``) or one step back; anything beyond the edge."""
    x = _Operand(builder, io, k)
    neighbour = (builder.sub if block.reverse == ahead else builder.add)(x.base, x.time_stride)
    # Beyond the edge there is no memory, so the block there is read where it is, and moved over in the register.
    at_edge = builder.extract_value(io, HAS_FINAL if ahead else HAS_FIRST)
    x.base = builder.select(at_edge, x.base, neighbour)
    value = reading(builder, block, x)
    if not block.scans:
        return value
    by = -block.group if block.reverse == ahead else block.group
    return builder.select(at_edge, moved(builder, value, value, by), value)


@intrinsic(prefer_literal=True)
def read_ahead(typing_context: Any, io: Any, k: Any) -> Any:
    """The floats of operand ``k`` one step further in the order of processing; anything at the final step."""
    block, position = block_of(io), k.literal_value

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return _neighbour(builder, block, args[0], position, True, _read_floats)

    return block.value(io, k), codegen


@intrinsic(prefer_literal=True)
def is_wanted(typing_context: Any, io: Any, k: Any) -> Any:
    """Whether the result ``k`` has memory to be written to."""
    position = k.literal_value

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return builder.not_(_Operand(builder, args[0], position).is_a(builder, ABSENT))

    return types.boolean(io, k), codegen


@intrinsic(prefer_literal=True)
def write(typing_context: Any, io: Any, k: Any, x: Any) -> Any:
    """Store ``x`` as the result ``k``. Results are contiguous along every block."""
    block, position = block_of(io), k.literal_value
    if x != block.value:
        return None

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        result, x = _Operand(builder, args[0], position), lowered(builder, block.number, args[2])
        size = size_of(block.number.stored)
        address = _plus(builder, result.base, result.index, ir.Constant(WORD, size))
        if block.across:
            # The same lanes of the step to come. What is read there the processor foresees; what is written it fetches only
            # when the store comes up, and all stores behind that one wait. Beyond the last step this does nothing.
            # Stores past the caches would spare the fetch: GAE alone, 4096 x 128, took 232 instead of 312 us. But whoever reads
            # the results next pays for it: with these and two inputs copied behind it 750 instead of 670, so it was given up.
            ahead = (builder.sub if block.reverse else builder.add)(address, result.time_stride)
            prefetch_to_write(builder, ahead)
        builder.store(x, pointer_to(builder, address, x.type), align=size)
        return context.get_dummy_value()

    return types.void(io, k, x), codegen


@intrinsic(prefer_literal=True)
def load_words(typing_context: Any, address: Any, count: Any) -> Any:
    """``count`` 64-bit integers, as a tuple."""
    n = count.literal_value

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        words = [load(builder, builder.add(args[0], ir.Constant(WORD, 8 * k)), WORD) for k in range(n)]
        return context.make_tuple(builder, sig.return_type, words)

    return types.UniTuple(types.int64, n)(address, count), codegen


@intrinsic
def load_bits(typing_context: Any, address: Any) -> Any:
    """Four bytes, whatever they mean."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return load(builder, args[0], ir.IntType(32))

    return types.int32(address), codegen


@intrinsic
def store_bits(typing_context: Any, address: Any, bits: Any) -> Any:
    """The inverse of :func:`load_bits`."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        builder.store(args[1], pointer_to(builder, args[0], ir.IntType(32)), align=4)
        return context.get_dummy_value()

    return types.void(address, types.int32), codegen


@intrinsic
def advance(typing_context: Any, addresses: Any, strides: Any, by: Any) -> Any:
    """``addresses + by * strides``, operand by operand."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        start, stride, n = args
        extract = builder.extract_value
        ahead = [_plus(builder, extract(start, k), n, extract(stride, k)) for k in range(sig.args[0].count)]
        return context.make_tuple(builder, sig.return_type, ahead)

    return addresses(addresses, strides, types.int64), codegen


@intrinsic(prefer_literal=True)
def load_carries(typing_context: Any, io: Any, address: Any, count: Any, gap: Any) -> Any:
    """``count`` carries from scratch memory, ``gap`` bytes apart."""
    block, n = block_of(io), count.literal_value

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        places = [_plus(builder, args[1], ir.Constant(WORD, k), args[3]) for k in range(n)]
        return context.make_tuple(builder, sig.return_type, [load(builder, place, block.kind) for place in places])

    return types.UniTuple(block.carry, n)(io, address, count, types.int64), codegen


@intrinsic
def store_carries(typing_context: Any, io: Any, address: Any, gap: Any, carries: Any) -> Any:
    """The inverse of :func:`load_carries`."""
    block = block_of(io)

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        for k in range(len(sig.args[3])):
            place = pointer_to(builder, _plus(builder, args[1], ir.Constant(WORD, k), args[2]), block.kind)
            builder.store(builder.extract_value(args[3], k), place, align=size_of(llvm_float(block.element)))
        return context.get_dummy_value()

    return types.void(io, address, types.int64, carries), codegen


@intrinsic
def call(typing_context: Any, function: Any, plan: Any, pointers: Any, scratch: Any, begin: Any, end: Any) -> Any:
    """Call the kernel at an address."""

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        kind = ir.FunctionType(ir.VoidType(), [WORD] * 5)
        builder.call(pointer_to(builder, args[0], kind), args[1:])
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 6), codegen
