"""From shapes and strides to (outer, time, inner): pure functions, checked by visiting every element."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tritonrl.kernels.geometry import Lanes, TooScattered, expanded_strides, merge_lanes


def merged(time_dim: int, *tensors: Tensor, reference: int = -1) -> tuple[Lanes, list[tuple[int, int, int]]]:
    shape = torch.broadcast_shapes(*(x.shape for x in tensors))
    strides = [expanded_strides(shape, x.shape, x.stride()) for x in tensors]
    return merge_lanes(shape, time_dim, strides, reference)


def offsets(sizes: Lanes, strides: Sequence[int]) -> list[int]:
    ranges = (range(n) for n in sizes)
    return [sum(i * s for i, s in zip(at, strides, strict=True)) for at in itertools.product(*ranges)]


def assert_every_element_is_visited_once(time_dim: int, *tensors: Tensor, reference: int = -1) -> Lanes:
    """Walking through (outer, time, inner) meets the same elements of each tensor together, as walking through the shape."""
    sizes, strides = merged(time_dim, *tensors, reference=reference)
    shape = torch.broadcast_shapes(*(x.shape for x in tensors))
    assert sizes.outer * sizes.steps * sizes.inner == shape.numel()
    assert sizes.lanes == sizes.outer * sizes.inner
    assert sizes.steps == shape[time_dim]
    together = set(zip(*(offsets(sizes, s) for s in strides), strict=True))
    own = [expanded_strides(shape, x.shape, x.stride()) for x in tensors]
    everywhere = itertools.product(*(range(n) for n in shape))
    expected = {tuple(sum(i * s for i, s in zip(at, x, strict=True)) for x in own) for at in everywhere}
    assert together == expected
    return sizes


@pytest.mark.parametrize(
    ("shape", "own", "strides"),
    [
        ((3, 4), (3, 4), (4, 1)),
        ((3, 4), (4,), (0, 1)),
        ((3, 4), (1, 4), (0, 1)),
        ((3, 4), (3, 1), (1, 0)),
        ((3, 4), (), (0, 0)),
        ((3, 1), (3, 1), (1, 0)),
        ((1, 4), (1, 4), (0, 1)),
        ((2, 3, 4), (3, 1), (0, 1, 0)),
    ],
)
def test_a_broadcast_dimension_has_a_stride_of_zero(
    shape: tuple[int, ...], own: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    assert expanded_strides(shape, own, torch.empty(own).stride()) == strides


def test_a_dimension_of_size_one_may_have_any_stride() -> None:
    assert expanded_strides((1, 4), (1, 4), (999, 1)) == (0, 1)
    assert expanded_strides((3, 4), (1, 4), (999, 1)) == (0, 1)


def test_expanded_strides_are_those_of_expand() -> None:
    x = torch.empty(5, 1, 4)[::2].transpose(0, 2)
    assert expanded_strides((4, 7, 3), x.shape, x.stride()) == x.expand(4, 7, 3).stride()


def test_the_layouts_that_people_have() -> None:
    n, t, f = 5, 7, 3
    sizes, strides = merged(-1, torch.empty(n, t))
    assert (sizes, strides) == (Lanes(1, t, n), [(0, 1, t)])
    sizes, strides = merged(-2, torch.empty(t, n))
    assert (sizes, strides) == (Lanes(1, t, n), [(0, n, 1)])
    sizes, strides = merged(-2, torch.empty(n, t, 1))
    assert (sizes, strides) == (Lanes(1, t, n), [(0, 1, t)])
    sizes, strides = merged(-2, torch.empty(n, t, f))
    assert (sizes, strides) == (Lanes(n, t, f), [(t * f, f, 1)])
    sizes, strides = merged(-3, torch.empty(t, n, f))
    assert (sizes, strides) == (Lanes(1, t, n * f), [(0, n * f, 1)])
    sizes, strides = merged(-1, torch.empty(t))
    assert (sizes, strides) == (Lanes(1, t, 1), [(0, 1, 0)])


def test_one_flag_for_all_features_keeps_the_features_apart() -> None:
    sizes, (data, flag) = merged(-2, torch.empty(5, 7, 3), torch.empty(5, 7, 1), reference=0)
    assert sizes == Lanes(5, 7, 3)
    assert (data, flag) == ((21, 3, 1), (7, 1, 0))


def test_many_batch_dimensions_merge_when_all_agree() -> None:
    assert merged(-1, torch.empty(2, 3, 4, 5), torch.empty(2, 3, 4, 5))[0] == Lanes(1, 5, 24)
    assert merged(-2, torch.empty(2, 3, 4, 5), torch.empty(2, 3, 4, 5))[0] == Lanes(6, 4, 5)
    # An expand in the middle costs one dimension, a second one too many.
    one = torch.empty(2, 1, 4, 5).expand(2, 3, 4, 5)
    with pytest.raises(TooScattered, match="3 lane dimensions remain"):
        merged(-1, torch.empty(2, 3, 4, 5), one)
    assert merged(-1, torch.empty(6, 4, 5), torch.empty(6, 1, 5))[0] == Lanes(6, 5, 4)


def test_the_reference_decides_which_lanes_are_the_inner_ones() -> None:
    here, there = torch.empty(4, 3, 5), torch.empty(3, 4, 5).transpose(0, 1)
    assert merged(-1, here, there, reference=0)[0] == Lanes(4, 5, 3)
    assert merged(-1, here, there, reference=1)[0] == Lanes(3, 5, 4)


def test_nothing_is_no_problem() -> None:
    assert merged(-1, torch.empty(0, 5))[0] == Lanes(1, 5, 0)
    assert merged(-1, torch.empty(5, 0))[0] == Lanes(1, 0, 5)
    assert merged(-1, torch.empty(1, 1))[0] == Lanes(1, 1, 1)


def test_strides_beyond_two_to_the_31_are_counted_exactly() -> None:
    big = torch.empty(3, 2**20, 2**12, device="meta")
    sizes, strides = merged(-2, big)
    assert sizes == Lanes(3, 2**20, 2**12)
    assert strides == [(2**32, 2**12, 1)]
    assert merged(-1, big)[0] == Lanes(1, 2**12, 3 * 2**20)


@given(data=st.data())
def test_every_element_of_every_tensor_is_visited_together(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    tensors = []
    for _ in range(data.draw(st.integers(1, 3))):
        own = [n if data.draw(st.booleans()) else 1 for n in shape]
        order = data.draw(st.permutations(range(len(shape))))
        step = data.draw(st.sampled_from([1, 2]))
        x = torch.empty([step * own[d] for d in order])[tuple(slice(None, None, step) for _ in order)]
        tensors.append(x.permute([order.index(d) for d in range(len(shape))]))
    tensors.append(torch.empty(shape))
    time_dim = -data.draw(st.integers(1, len(shape)))
    try:
        assert_every_element_is_visited_once(time_dim, *tensors)
    except TooScattered:
        # Then there really are more than two dimensions that differ: three lane dimensions at least.
        assert sum(n > 1 for d, n in enumerate(shape) if d != len(shape) + time_dim) > 2


def test_the_reference_of_a_launch_is_dense_so_that_its_lanes_make_two_dimensions_at_most() -> None:
    for order in itertools.permutations(range(4)):
        x = torch.empty(2, 3, 4, 5).permute(order)
        for time_dim in range(-4, 0):
            assert_every_element_is_visited_once(time_dim, x)
