"""The piece of a recurrence that is computed at once, and the tuple that says where in memory it lies.

A block holds ``width`` values: ``width // group`` consecutive steps of ``group`` neighbouring lanes, the lane running
fastest.

===================  =================================  ==================================================
block                in memory                          the carry (the state between two blocks) is
===================  =================================  ==================================================
steps of one lane    ``group`` 1, time contiguous       one number
steps of few lanes   ``group`` lanes, then time         one number per lane of the group
a strip of lanes     ``group == width``, lanes only     one number per lane
one step, one lane   ``group == width == 1``            one number
===================  =================================  ==================================================

The bodies of the kernels (:mod:`.bodies`) never know which: they say ``read(io, REWARD)``, ``recur(io, a, b, carry)``,
``write(io, ADVANTAGE, y)``, and are compiled for the blocks that the strategy needs.

*First* and *final* mean the order of processing: a reverse recurrence begins at the last step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import models, register_model

from .numbers import Number
from .simd import constant, intrinsic, llvm_float, mask_type, splat, value_type

# The fields of ``io``. Of each operand: where it begins, its kind (:mod:`.geometry`), and its strides in bytes from
# step to step and from lane to lane; the lanes of a block may be two dimensions, of which the inner one has SPLIT
# elements. Of the block: the index of its first element, and whether it holds the first and the final step.
BASES, KINDS, TIME_STRIDES, LANE_STRIDES, OUTER_LANE_STRIDES, SPLIT, INDEX, HAS_FIRST, HAS_FINAL, BLOCK = range(10)

WORD = ir.IntType(64)


class Block(types.Type):
    """What a body is compiled for: nothing is stored, all of it is in the type.

    ``number``: what its values are in memory and in registers. ``across``: the index of a block counts lanes (a strip of
    lanes), not steps.
    """

    def __init__(self, number: Number, width: int, group: int, across: bool, reverse: bool) -> None:
        self.number, self.width, self.group, self.across, self.reverse = number, width, group, across, reverse
        element = self.element = number.element
        self.value, self.mask, self.carry = value_type(element, width), mask_type(width), value_type(element, group)
        super().__init__(name=f"Block({number.name}, {width}, {group}, {across}, {reverse})")

    @property
    def scans(self) -> bool:
        """Whether the recurrence runs inside the block, from element to element."""
        return self.width > self.group

    def at_edge(self, first: bool) -> list[int]:
        """The elements of the step that is processed first, or of the one that is processed last."""
        begin = self.width - self.group if first == self.reverse else 0
        return list(range(begin, begin + self.group))

    @property
    def kind(self) -> ir.Type:
        """The LLVM type of its values."""
        return llvm_float(self.element) if self.width == 1 else ir.VectorType(llvm_float(self.element), self.width)


register_model(Block)(models.OpaqueModel)


def block_of(io: Any) -> Block:
    """The block that ``io`` (a Numba type) belongs to."""
    block = io.types[BLOCK]
    assert isinstance(block, Block)
    return block


def block_constant(block: Block) -> Callable[[], Any]:
    """A function for compiled code that returns ``block``."""

    @intrinsic
    def make(typing_context: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            return context.get_dummy_value()

        return block(), codegen

    made: Callable[[], Any] = make
    return made


@intrinsic(prefer_literal=True)
def fill(typing_context: Any, io: Any, x: Any) -> Any:
    """The literal integer ``x`` as a value of the block (Numba has no literal floats)."""
    block, number = block_of(io), float(x.literal_value)

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        return constant(block.kind, number)

    return block.value(io, x), codegen


@intrinsic(prefer_literal=True)
def zeros(typing_context: Any, io: Any, count: Any) -> Any:
    """A tuple of ``count`` zero carries."""
    block, n = block_of(io), count.literal_value

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        zero = constant(context.get_value_type(block.carry), 0.0)
        return context.make_tuple(builder, sig.return_type, [zero] * n)

    return types.UniTuple(block.carry, n)(io, count), codegen


def _edge_mask(is_at_first: Callable[[Block], bool]) -> Any:
    @intrinsic
    def mask(typing_context: Any, io: Any) -> Any:
        block = block_of(io)
        first = is_at_first(block)

        def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
            has_edge = builder.extract_value(args[0], HAS_FIRST if first else HAS_FINAL)
            everywhere = splat(builder, has_edge, block.width)
            if not block.scans:
                return everywhere
            there = block.at_edge(first)
            return builder.and_(everywhere, ir.Constant(everywhere.type, [int(j in there) for j in range(block.width)]))

        return block.mask(io), codegen

    return mask


is_final = _edge_mask(lambda block: False)
# The last step of time, which a reverse recurrence processes first.
is_last = _edge_mask(lambda block: block.reverse)
