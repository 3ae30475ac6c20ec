"""The recurrence itself within a block, ``y[t] = b[t] + a[t] * y[before t]``, and what passes on to the next block."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from .blocks import Block, block_of
from .simd import constant, intrinsic, moved, multiply_add, rarely, shuffle, splat

_INDEX = ir.IntType(32)


@intrinsic
def recur(typing_context: Any, io: Any, a: Any, b: Any, carry: Any) -> Any:
    """``y[t] = b[t] + a[t] * y[before t]``, beginning with ``carry``; where ``a`` is 0, nothing of it is read."""
    block = block_of(io)
    if a != block.value or b != block.value or carry != block.carry:
        return None

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        _, a_value, b_value, entering = args
        if not block.scans:
            return _step(builder, a_value, b_value, entering)
        return _scan(builder, block, a_value, b_value, entering)

    return block.value(io, a, b, carry), codegen


@intrinsic
def lag(typing_context: Any, io: Any, x: Any, carry: Any) -> Any:
    """``x`` of the step that was processed before; ``carry`` where that was in the block before."""
    block = block_of(io)

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        _, value, entering = args
        if not block.scans:
            return entering
        return moved(builder, value, _tiled(builder, block, entering), _back(block, 1))

    return block.value(io, x, carry), codegen


@intrinsic
def edge(typing_context: Any, io: Any, x: Any) -> Any:
    """What the next block gets as a carry: ``x`` of the step that was processed last."""
    block = block_of(io)

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return _step_of(builder, block, args[1], block.at_edge(first=False)) if block.scans else args[1]

    return block.carry(io, x), codegen


def _back(block: Block, steps: int) -> int:
    """How far apart in the register are an element and the one that was processed ``steps`` before it."""
    return block.group * (steps if block.reverse else -steps)


def _step_of(builder: ir.IRBuilder, block: Block, x: ir.Value, elements: list[int]) -> ir.Value:
    """The given elements of ``x``, all lanes of one step, as a carry."""
    if block.group == 1:
        return builder.extract_element(x, ir.Constant(_INDEX, elements[0]))
    return shuffle(builder, x, x, elements)


def _tiled(builder: ir.IRBuilder, block: Block, carry: ir.Value) -> ir.Value:
    """The carry at every step of the block."""
    if block.group == 1:
        return splat(builder, carry, block.width)
    return shuffle(builder, carry, carry, [j % block.group for j in range(block.width)])


def _step(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, before: ir.Value) -> ir.Value:
    cut = builder.fcmp_ordered("==", a, constant(a.type, 0.0))
    return builder.select(cut, b, multiply_add(builder, a, before, b))


def _scan(builder: ir.IRBuilder, block: Block, a: ir.Value, b: ir.Value, carry: ir.Value) -> ir.Value:
    """All steps of a register in ``log2`` rounds, each of which doubles how many steps an element stands for.

    Composing steps multiplies by the zeros of cuts instead of selecting. That is right as long as everything is finite,
    and shows as NaN or infinity in the result when it is not, for nothing brings those back to a number. Then, rarely,
    the block is computed again with care.
    """
    many_a, many_b, steps = a, b, 1
    while steps < block.width // block.group:
        by = _back(block, steps)
        many_b = multiply_add(builder, many_a, moved(builder, many_b, constant(b.type, 0.0), by), many_b)
        many_a = builder.fmul(many_a, moved(builder, many_a, constant(a.type, 1.0), by))
        steps *= 2
    fast = multiply_add(builder, many_a, _tiled(builder, block, carry), many_b)
    odd = builder.bitcast(_not_finite(builder, fast), ir.IntType(block.width))
    all_finite = builder.icmp_unsigned("==", odd, ir.Constant(odd.type, 0))
    careful = _careful(builder.module, block, carry.type)
    return rarely(builder, [(all_finite, lambda: fast)], lambda: builder.call(careful, [a, b, carry]))


def _not_finite(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    difference = builder.fsub(x, x)
    return builder.fcmp_unordered("uno", difference, difference)


def _careful(module: ir.Module, block: Block, carry_kind: ir.Type) -> ir.Function:
    """The function ``(a, b, carry) -> y`` for blocks in which something is not finite.

    Where nothing that is not finite arrives, it gives the very bits of the fast way, so that what lies behind a cut
    cannot be seen in them. Everywhere else the steps are taken one by one, as in the textbook.
    """
    name = f"tritonrl.careful.{block.width}.{block.group}.{'reverse' if block.reverse else 'forward'}.{carry_kind}"
    if name in module.globals:
        return module.globals[name]
    function = ir.Function(module, ir.FunctionType(block.kind, [block.kind, block.kind, carry_kind]), name)
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block())
    scanned = _selecting_scan(builder, block, *function.args)
    stepped = _step_by_step(builder, block, *function.args)
    builder.ret(builder.select(_not_finite(builder, scanned), stepped, scanned))
    return function


def _selecting_scan(builder: ir.IRBuilder, block: Block, a: ir.Value, b: ir.Value, carry: ir.Value) -> ir.Value:
    cut = builder.fcmp_ordered("==", a, constant(a.type, 0.0))
    steps = 1
    while steps < block.width // block.group:
        by = _back(block, steps)
        b = builder.select(cut, b, multiply_add(builder, a, moved(builder, b, constant(b.type, 0.0), by), b))
        a = builder.select(cut, a, builder.fmul(a, moved(builder, a, constant(a.type, 1.0), by)))
        cut = builder.or_(cut, moved(builder, cut, constant(cut.type, 0), by))
        steps *= 2
    return builder.select(cut, b, multiply_add(builder, a, _tiled(builder, block, carry), b))


def _step_by_step(builder: ir.IRBuilder, block: Block, a: ir.Value, b: ir.Value, carry: ir.Value) -> ir.Value:
    steps = [list(range(begin, begin + block.group)) for begin in range(0, block.width, block.group)]
    result: ir.Value = ir.Constant(a.type, ir.Undefined)
    for elements in reversed(steps) if block.reverse else steps:
        carry = _step(builder, _step_of(builder, block, a, elements), _step_of(builder, block, b, elements), carry)
        if block.group == 1:
            result = builder.insert_element(result, carry, ir.Constant(_INDEX, elements[0]))
        else:
            chosen = [block.width + j % block.group if j in elements else j for j in range(block.width)]
            result = shuffle(builder, result, _tiled(builder, block, carry), chosen)
    return result
