"""The choice of strategy and block sizes: a pure function, looked at without a GPU and without Triton running anything."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tritonrl.kernels.geometry import Lanes, expanded_strides, merge_lanes
from tritonrl.kernels.plan import Plan, access_width, ceil_div, choose_plan, next_power_of_two
from tritonrl.kernels.tables import DEFAULT

MULTIPROCESSORS = (1, 16, 108, 132, 148)
LANES = (1, 2, 3, 7, 12, 31, 32, 33, 127, 1000, 1022, 4096, 65536, 100003, 2**20)
STEPS = (1, 2, 3, 5, 6, 8, 31, 127, 128, 129, 1000, 1024, 4096, 100000, 2**20)


def plan_for(*tensors: Tensor, time_dim: int = -1, multiprocessors: int = 132, streams: int | None = None) -> Plan:
    """The plan for data of these layouts; the last tensor stands for the results."""
    shape = torch.broadcast_shapes(*(x.shape for x in tensors))
    strides = [expanded_strides(shape, x.shape, x.stride()) for x in tensors]
    sizes, merged = merge_lanes(shape, time_dim, strides)
    widest = max(x.element_size() for x in tensors)
    return choose_plan(sizes, merged, merged[-1], widest, multiprocessors, streams or len(tensors))


def rows_plan(lanes: int, steps: int, item: int = 4, multiprocessors: int = 132, streams: int = 7) -> Plan:
    sizes = Lanes(1, steps, lanes)
    strides = (0, 1 if steps > 1 else 0, steps if lanes > 1 else 0)
    return choose_plan(sizes, [strides], strides, item, multiprocessors, streams)


def lanes_plan(lanes: int, steps: int, item: int = 4, multiprocessors: int = 132, streams: int = 7) -> Plan:
    strides = (0, lanes if steps > 1 else 0, 1 if lanes > 1 else 0)
    return choose_plan(Lanes(1, steps, lanes), [strides], strides, item, multiprocessors, streams)


def features_plan(lanes: int, steps: int, item: int = 4, multiprocessors: int = 132, streams: int = 7) -> Plan:
    """[N, T, 4]: the next step of four lanes lies behind them."""
    strides = (4 * steps, 4 if steps > 1 else 0, 1)
    return choose_plan(Lanes(lanes, steps, 4), [strides], strides, item, multiprocessors, streams)


def assert_covers(plan: Plan, sizes: Lanes) -> None:
    """Every lane has a program, none is needlessly there, and nothing is larger than the hardware takes."""
    for n in (plan.lanes, plan.vector, plan.vectors, plan.unroll, plan.warps, plan.width):
        assert n == next_power_of_two(n) >= 1
    assert plan.warps <= 16
    assert 64 <= plan.limit <= 255 and plan.limit * 32 * plan.warps <= 65536
    assert all(n >= 1 for n in plan.grid)
    assert plan.grid[0] < 2**31
    assert len(plan.grid) < 2 or plan.grid[1] <= 65535
    if plan.strategy == "lanes":
        width = sizes.inner if plan.by_outer else sizes.lanes
        assert plan.grid[0] * plan.lanes >= width > (plan.grid[0] - 1) * plan.lanes
        assert plan.grid[1] == (sizes.outer if plan.by_outer else 1)
        assert plan.lanes == 32 * plan.warps * plan.width, "every thread has an access"
        return
    assert plan.vector in (1, 2, 4, 8)
    assert sizes.steps % plan.vector == 0
    tiles = ceil_div(sizes.steps // plan.vector, plan.vectors)
    blocks = ceil_div(sizes.lanes, plan.lanes)
    assert plan.grid == ((tiles * blocks,) if plan.strategy == "split" else (blocks,))
    assert plan.stacked or plan.width == 1, "an access takes a vector, or lanes"
    # Smaller tiles are laid out badly: see rows in plan.py.
    assert plan.lanes * plan.vectors >= 32 * plan.width
    assert plan.lanes * plan.vectors >= 32 * plan.warps * plan.width, "every thread has a vector"


@pytest.mark.parametrize("item", [2, 4, 8])
@pytest.mark.parametrize("multiprocessors", MULTIPROCESSORS)
@pytest.mark.parametrize("streams", [3, 7, 28])
def test_every_tile_has_its_program(multiprocessors: int, item: int, streams: int) -> None:
    for lanes, steps in itertools.product(LANES, STEPS):
        sizes = Lanes(1, steps, lanes)
        for made in (rows_plan, lanes_plan):
            assert_covers(made(lanes, steps, item, multiprocessors, streams), sizes)
        assert_covers(features_plan(lanes, steps, item, multiprocessors, streams), Lanes(lanes, steps, 4))


def test_contiguous_time_is_read_in_vectors_of_steps_and_contiguous_lanes_in_those_of_lanes() -> None:
    assert rows_plan(4096, 128)[4:] == Plan("rows", (), 2, 2, 4, 32)[4:]
    assert lanes_plan(65536, 64).strategy == "lanes"

    def along(*tensors: Tensor, time_dim: int = -1) -> tuple[bool, int]:
        plan = plan_for(*tensors, time_dim=time_dim, streams=7)
        return plan.stacked or plan.strategy == "lanes", plan.width

    assert along(torch.empty(512, 64)) == (False, 1)
    assert along(torch.empty(64, 512), time_dim=-2) == (True, 4)
    assert along(torch.empty(512, 64, 1), time_dim=-2) == (False, 1)
    assert along(torch.empty(512, 64, 64), time_dim=-2) == (True, 4)
    # The results decide, not the inputs.
    assert along(torch.empty(64, 512).t(), torch.empty(512, 64)) == (False, 1)
    assert along(torch.empty(512, 64), torch.empty(64, 512).t()) == (True, 4)


@pytest.mark.parametrize("item", [2, 4, 8])
@pytest.mark.parametrize("made", [rows_plan, lanes_plan, features_plan])
def test_every_access_has_16_bytes_where_the_extent_allows(made: Any, item: int) -> None:
    """Whatever else a plan trades, in no shape of four or eight neighbours and more does a thread get fewer."""
    for lanes, steps in itertools.product((8, 64, 1000, 4096, 32768, 2**20), (8, 64, 128, 1000, 4096, 2**20)):
        plan = made(lanes, steps, item)
        across = max(plan.width, 1 if plan.stacked else plan.vector)
        assert across == min(16 // item, 4 if made is features_plan else 8)


def in_flight(plan: Plan, sizes: Lanes) -> float:
    """Bytes of GAE in float32 that a multiprocessor has asked for at a time, when every program has been started."""
    steps = plan.unroll if plan.strategy == "lanes" else (1 + plan.ahead) * plan.vectors * plan.vector
    return sizes.lanes * min(steps, sizes.steps) * 14 / 132


@pytest.mark.parametrize(("lanes", "steps"), [(32768, 8), (32768, 16), (4096, 32)])
def test_the_small_shapes_of_the_targets_ask_for_all_they_need_at_once_or_for_enough(lanes: int, steps: int) -> None:
    for made in (rows_plan, lanes_plan):
        plan = made(lanes, steps)
        assert min(in_flight(plan, Lanes(1, steps, lanes)), DEFAULT.bytes_in_flight) >= min(
            lanes * steps * 14 / 132, DEFAULT.bytes_in_flight
        )
        assert plan.strategy != "split" and plan.grid[0] >= 132


def test_lanes_go_in_strips_where_these_keep_memory_busy_and_in_tiles_where_they_do_not() -> None:
    for lanes in (128, 1024, 4096, 8192, 16384, 32768):
        assert lanes_plan(lanes, 64).strategy == "rows"
    for lanes in (65536, 2**20):
        plan = lanes_plan(lanes, 64)
        assert plan.strategy == "lanes"
        assert in_flight(plan, Lanes(1, 64, lanes)) >= DEFAULT.bytes_in_flight
    assert lanes_plan(4096, 4096).strategy == "rows"
    assert lanes_plan(64, 4096).strategy == "split"


def test_a_few_features_with_their_next_step_behind_them_are_a_tile_as_narrow_as_they_are() -> None:
    plan = features_plan(2048, 512)
    assert (plan.strategy, plan.lanes, plan.width) == ("rows", 4, 4)
    # Where time is short, several share a program.
    assert features_plan(8192, 8).lanes > 4


def test_what_has_many_streams_is_not_fetched_ahead() -> None:
    assert rows_plan(8192, 4096, streams=7).ahead
    assert not rows_plan(8192, 4096, streams=23).ahead
    assert lanes_plan(8192, 4096, streams=7).ahead
    assert not lanes_plan(8192, 4096, streams=23).ahead


def test_what_crowds_the_registers_is_not_looped_over_in_tiles() -> None:
    """The gradient of V-trace in 16 bits: 20 streams of 8 lanes a thread. In strips where lanes are half enough, else split."""
    assert lanes_plan(65536, 128, item=2, streams=20).strategy == "split"
    assert lanes_plan(131072, 128, item=2, streams=20).strategy == "lanes"
    assert lanes_plan(8192, 1024, item=2, streams=20).strategy == "split"
    assert lanes_plan(8192, 1024, item=2, streams=7).strategy == "rows"
    assert lanes_plan(8192, 16, item=2, streams=20).strategy == "rows"  # a single tile


def test_nothing_is_fetched_ahead_of_a_single_tile() -> None:
    for made in (rows_plan, lanes_plan):
        assert not made(4096, 32).ahead
        assert not made(1, 2**20).ahead


def test_a_single_step_is_a_matter_of_lanes() -> None:
    assert rows_plan(4096, 1).strategy == "lanes"
    assert lanes_plan(4096, 1).strategy == "lanes"
    assert rows_plan(1, 1).strategy == "rows"


def test_few_long_lanes_are_split_over_the_card() -> None:
    for made in (rows_plan, lanes_plan):
        plan = made(1, 2**20)
        assert plan.strategy == "split"
        assert plan.grid[0] >= 132
        assert made(100003, 2**10).strategy != "split"
        assert made(1, 64).strategy != "split"
        assert made(8, 128).strategy != "split"


def test_short_rows_share_a_program_when_there_are_many() -> None:
    assert rows_plan(32768, 8).lanes > 1
    assert rows_plan(32768, 8).grid[0] >= 2 * 132
    assert rows_plan(4, 8).grid[0] <= 4


def test_a_card_with_more_processors_gets_at_least_as_many_programs() -> None:
    for lanes, steps in itertools.product(LANES, STEPS):
        for made in (rows_plan, lanes_plan):
            few, many = (made(lanes, steps, multiprocessors=n) for n in (16, 148))
            if few.strategy == many.strategy:
                assert few.grid[0] <= many.grid[0]


@pytest.mark.parametrize(
    ("steps", "item", "width"),
    [(1000, 4, 4), (1000, 2, 8), (1000, 8, 2), (1002, 4, 2), (1001, 4, 1), (4, 4, 4), (4, 2, 4), (12, 2, 4), (1, 4, 1)],
)
def test_a_vector_fills_sixteen_bytes_of_the_widest_dtype_and_divides_time(steps: int, item: int, width: int) -> None:
    assert access_width(steps, [(0, 1, steps)], item, 1) == width
    assert access_width(steps, [(0, steps, 1)], item, 2) == width


def test_a_vector_keeps_every_row_aligned() -> None:
    assert access_width(64, [(0, 1, 64), (0, 1, 66)], 4, 1) == 2  # rows of 66: every second begins off
    assert access_width(64, [(0, 1, 65)], 4, 1) == 1
    assert access_width(64, [(64 * 3 + 1, 1, 64)], 4, 1) == 1
    assert access_width(64, [(0, 1, 64), (0, 5, 1)], 4, 1) == 4  # what is gathered anyway does not count
    assert access_width(64, [(0, 1, 64), (0, 0, 1)], 4, 1) == 4  # neither does what is broadcast along time
    assert access_width(64, [(0, 1, 0)], 4, 1) == 4


def test_wider_dtypes_get_narrower_vectors() -> None:
    assert plan_for(torch.empty(512, 64)).vector == 4
    assert plan_for(torch.empty(512, 64, dtype=torch.bfloat16)).vector == 8
    assert plan_for(torch.empty(512, 64, dtype=torch.float64)).vector == 2
    assert plan_for(torch.empty(512, 64, dtype=torch.bfloat16), torch.empty(512, 64)).vector == 4


def test_an_access_across_lanes_keeps_every_step_aligned() -> None:
    assert access_width(64, [(0, 64, 1), (0, 66, 1)], 4, 2) == 2
    assert access_width(64, [(64 * 3 + 1, 64, 1)], 4, 2) == 1
    assert access_width(64, [(0, 64, 1), (0, 1, 5)], 4, 2) == 4  # what is gathered anyway does not count
    assert access_width(64, [(0, 64, 1), (0, 65, 0)], 4, 2) == 4  # neither does what is broadcast over lanes


def test_strips_stay_inside_one_outer_index_where_lanes_are_contiguous() -> None:
    plan = plan_for(torch.empty(400, 16, 512), time_dim=-2, streams=7)
    assert (plan.strategy, plan.by_outer, plan.grid[1]) == ("lanes", True, 400)
    assert_covers(plan, Lanes(400, 16, 512))
    # Few inner lanes would leave threads idle, and the hardware has no room for more than 65535 outer ones.
    assert not plan_for(torch.empty(400, 16, 3), time_dim=-2).by_outer
    assert not plan_for(torch.empty(70000, 2, 32, device="meta"), time_dim=-2).by_outer


def test_steps_in_flight_are_no_more_than_there_are() -> None:
    for steps in STEPS:
        plan = lanes_plan(2**20, steps)
        assert plan.unroll <= next_power_of_two(steps)


@pytest.mark.parametrize("n", range(1, 40))
def test_powers_of_two_and_rounded_division(n: int) -> None:
    power = next_power_of_two(n)
    assert power >= n > power // 2 or (n, power) == (1, 1)
    assert power & (power - 1) == 0
    for d in range(1, 12):
        assert (ceil_div(n, d) - 1) * d < n <= ceil_div(n, d) * d


# What a launch prepares from layouts. Meta tensors have strides and no memory.

triton = pytest.importorskip("triton", reason="the launch needs Triton to be imported")


def prepared(op: str, *args: Any) -> Any:
    from tritonrl.kernels import families, launch
    from tritonrl.kernels.specs import allocate

    outputs = [x for x in allocate(op, args) if x.numel()]
    time_dim = next(x for x in args if isinstance(x, int))
    return launch.prepared_for(op, getattr(families, op)(*args), outputs, time_dim)


def reward_to_go_args(reward: Tensor, time_dim: int, **changed: Any) -> tuple[Any, ...]:
    made = {"reward": reward, "done": torch.empty(reward.shape, dtype=torch.bool, device=reward.device)} | changed
    return made["reward"], made["done"], torch.tensor(0.9), time_dim


def test_offsets_are_wide_only_beyond_two_to_the_31() -> None:
    def wide(*shape: int, time_dim: int = -1) -> bool:
        reward = torch.empty(shape, device="meta")
        return bool(prepared("reward_to_go", *reward_to_go_args(reward, time_dim)).constants["WIDE"])

    assert not wide(2**20, 2**11 - 1)
    assert not wide(2**20, 2**11)  # the last offset is 2^31 - 1
    assert wide(2**20 + 1, 2**11)
    assert wide(3, 2**30)
    assert wide(2**11, 2**20 + 1, time_dim=-2)
    small = torch.empty(4, 8, device="meta")
    far = torch.empty(2**30, 8, device="meta").as_strided((4, 8), (2**30, 1))
    assert not prepared("reward_to_go", *reward_to_go_args(small, -1)).constants["WIDE"]
    assert prepared("reward_to_go", *reward_to_go_args(far, -1)).constants["WIDE"]
    slow = torch.empty(0, dtype=torch.bool, device="meta").as_strided((4, 8), (1, 2**29))
    assert prepared("reward_to_go", *reward_to_go_args(small, -1, done=slow)).constants["WIDE"]


def test_a_preparation_is_kept_for_each_layout_and_dtype() -> None:
    from tritonrl.kernels import launch

    launch.forget()
    x = torch.empty(6, 8)
    first = prepared("reward_to_go", *reward_to_go_args(x, -1))
    assert prepared("reward_to_go", *reward_to_go_args(torch.randn(6, 8), -1)) is first
    assert len(launch._prepared) == 1
    others = [
        reward_to_go_args(x, -2),
        reward_to_go_args(x.double(), -1),
        reward_to_go_args(torch.empty(8, 6).t(), -1),
        reward_to_go_args(torch.empty(5, 8), -1),
        reward_to_go_args(x, -1, done=torch.empty(6, 1, dtype=torch.bool)),
    ]
    made = [prepared("reward_to_go", *args) for args in others]
    assert len({id(p) for p in (first, *made)}) == 6 == len(launch._prepared)


def test_layouts_without_end_do_not_eat_the_memory() -> None:
    from tritonrl.kernels import launch

    launch.forget()
    for n in range(1, 4200):
        launch._prepared[n] = launch._prepared.get(1)  # type: ignore[assignment]
    prepared("reward_to_go", *reward_to_go_args(torch.empty(3, 7), -1))
    assert len(launch._prepared) == 1
    launch.forget()


def test_numbers_go_by_value_and_the_absent_is_left_out() -> None:
    from tritonrl.kernels import preparation

    def kinds(dtype: torch.dtype, gamma: Tensor, terminated: Tensor | None) -> tuple[int, ...]:
        x, done = torch.empty(6, 8, dtype=dtype), torch.empty(6, 8, dtype=torch.bool)
        kept: tuple[int, ...] = prepared("gae", x, x, x, done, terminated, gamma, torch.tensor(0.9), -1).kinds
        return kept[4:]

    absent, number, uniform, steps = preparation._ABSENT, preparation._NUMBER, preparation._UNIFORM, preparation._STEPS
    flag = torch.empty(6, 8, dtype=torch.bool)
    assert kinds(torch.float32, torch.tensor(0.9), None) == (absent, number, number)
    assert kinds(torch.float32, torch.tensor(0.9).expand(6, 8), flag) == (steps, uniform, number)
    assert kinds(torch.float32, torch.empty(6, 1), flag) == (steps, steps, number)
    # A number that is passed by value arrives as float32.
    assert kinds(torch.float64, torch.tensor(0.9), flag) == (steps, uniform, uniform)
