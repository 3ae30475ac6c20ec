"""The Numba backend by itself: plans, strategies, the disk cache, and every op against its fp64 twin in plain torch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tritonrl.kernels import compose, cpu, torch_backend
from tritonrl.kernels.cpu import bodies, compile, dispatch, geometry, served, strategies
from tritonrl.kernels.cpu.geometry import CONTIGUOUS, GATHERED, ONE, Dimension, Operand, cut_time, merged, strip_size
from tritonrl.kernels.moments import measure
from tritonrl.kernels.specs import SPECS

OPS = tuple(SPECS)
FLAGS = ("done", "terminated")
NUMBERS = {"gamma": 0.97, "lmbda": 0.9, "rho_thresh": 1.1, "c_thresh": 0.9}
# Shape and time dimension that make each strategy: rows of time, rows of a few lanes, strips of lanes; the sizes fill no
# register exactly.
ROWS, FEW_LANES, STRIPS = ((3, 129), -1), ((67, 3), -2), ((21, 37), -2)


def parameters(op: str) -> list[tuple[str, str]]:
    """The types and names of an op's arguments, from its schema."""
    listed = SPECS[op].schema[1:].split(")")[0].split(",")
    return [(kind, name) for kind, name in (argument.split() for argument in listed)]


def draw(op: str, shape: tuple[int, ...], time_dim: int, dtype: torch.dtype = torch.float64, ends: float = 0.2) -> Any:
    """Random arguments of full shape for ``op``, in schema order; every tenth coefficient of a bare recurrence is zero."""
    generator = torch.Generator().manual_seed(11)
    done = torch.rand(shape, generator=generator) < ends
    args: dict[str, Any] = {}
    for kind, name in parameters(op):
        if name == "time_dim":
            args[name] = time_dim
        elif kind == "bool":
            args[name] = True
        elif name in FLAGS:
            args[name] = done if name == "done" else done & (torch.rand(shape, generator=generator) < 0.5)
        elif name in NUMBERS:
            args[name] = torch.tensor(NUMBERS[name], dtype=torch.float64)
        elif name == "carry":
            lanes = shape[:time_dim] + shape[len(shape) + time_dim + 1 :]
            args[name] = torch.randn(lanes, generator=generator, dtype=torch.float64).to(dtype)
        else:
            args[name] = (torch.randn(shape, generator=generator, dtype=torch.float64) * 0.5).to(dtype)
    if "a" in args:
        args["a"] = args["a"].masked_fill(done, 0.0)
    return args


def call(backend: Any, op: str, args: dict[str, Any]) -> tuple[Tensor, ...]:
    results = getattr(backend, op)(*args.values())
    return (results,) if isinstance(results, Tensor) else results


def doubled(args: dict[str, Any]) -> dict[str, Any]:
    return {k: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for k, x in args.items()}


def assert_as_in_the_textbook(op: str, args: dict[str, Any]) -> None:
    actual, expected = call(cpu, op, args), call(torch_backend, op, doubled(args))
    assert len(actual) == len(expected)
    for x, y in zip(actual, expected, strict=True):
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[x.dtype]
        torch.testing.assert_close(x.double(), y, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("shape", "time_dim"), [ROWS, STRIPS])
def test_every_op_in_float32_gives_what_the_textbook_gives_in_float64(
    op: str, shape: tuple[int, ...], time_dim: int
) -> None:
    assert_as_in_the_textbook(op, draw(op, shape, time_dim, torch.float32))


@pytest.mark.parametrize("op", ["gae", "linear_recurrence", "linear_recurrence_backward", "vtrace_backward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_few_contiguous_lanes_share_a_register(op: str, dtype: torch.dtype) -> None:
    assert_as_in_the_textbook(op, draw(op, *FEW_LANES, dtype))


@pytest.mark.parametrize("op", ["linear_recurrence", "linear_recurrence_backward"])
@pytest.mark.parametrize(("shape", "time_dim"), [ROWS, STRIPS])
def test_forwards_in_time_is_as_in_the_textbook_too(op: str, shape: tuple[int, ...], time_dim: int) -> None:
    args = draw(op, shape, time_dim, torch.float32)
    assert_as_in_the_textbook(op, args | {"reverse": False})
    assert_as_in_the_textbook(op, args | {"reverse": False, "carry": None})
    assert_as_in_the_textbook(op, args | {"carry": None})


@pytest.mark.parametrize("steps", [1, 2, 5, 8, 15, 16, 17, 127, 129, 1000, 5000])
@pytest.mark.parametrize("lanes", [1, 3, 40])
@pytest.mark.parametrize("time_first", [False, True])
def test_any_number_of_steps_and_lanes_works(steps: int, lanes: int, time_first: bool) -> None:
    shape, time_dim = ((steps, lanes), -2) if time_first else ((lanes, steps), -1)
    assert_as_in_the_textbook("gae", draw("gae", shape, time_dim, torch.float32))


@pytest.mark.parametrize("shape", [(0, 7), (7, 0), (0, 0)])
@pytest.mark.parametrize("op", OPS)
def test_nothing_in_gives_nothing_out(op: str, shape: tuple[int, int]) -> None:
    args = draw(op, shape, -1, torch.float32)
    assert all(x.shape == shape for x in call(cpu, op, args))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("op", ["gae", "gae_backward"])
def test_results_come_in_the_dtype_of_the_data(op: str, dtype: torch.dtype) -> None:
    args = draw(op, *ROWS, dtype)
    assert all(x.dtype is dtype for x in call(cpu, op, args))
    assert_as_in_the_textbook(op, args)


def test_mixed_dtypes_and_integers_are_converted() -> None:
    args = draw("gae", *ROWS, torch.float32)
    args["reward"] = args["reward"].half()
    args["next_value"] = (args["next_value"] * 8).int()
    args["gamma"] = torch.full(ROWS[0], 0.9, dtype=torch.float64)
    args["lmbda"] = torch.tensor(1)
    assert_as_in_the_textbook("gae", args)


@pytest.mark.parametrize("ends", [0.0, 1.0])
@pytest.mark.parametrize("op", ["gae", "td_lambda_return", "vtrace", "vtrace_backward"])
def test_all_done_and_none_done_are_ordinary_cases(op: str, ends: float) -> None:
    assert_as_in_the_textbook(op, draw(op, *ROWS, torch.float32, ends=ends))


@pytest.mark.parametrize("op", ["gae_backward", "vtrace_backward"])
@pytest.mark.parametrize("absent", ["grad_advantage", "grad_target", "terminated"])
def test_what_is_absent_counts_as_zero_or_as_done(op: str, absent: str) -> None:
    assert_as_in_the_textbook(op, draw(op, *ROWS, torch.float32) | {absent: None})


@pytest.mark.parametrize("op", [op for op in OPS if SPECS[op].discount_outputs])
def test_gradients_of_discounts_are_left_out_when_nobody_wants_them(op: str) -> None:
    args = draw(op, *ROWS, torch.float32)
    wanted, unwanted = call(cpu, op, args), call(cpu, op, args | {"with_discounts": False})
    count = SPECS[op].outputs
    assert all(x.numel() == 0 for x in unwanted[count:])
    assert all(torch.equal(x, y) for x, y in zip(wanted[:count], unwanted[:count], strict=True))


def gapped(x: Tensor) -> Tensor:
    """A slice of something larger, with NaN (or true) in the gaps."""
    garbage = True if x.dtype is torch.bool else math.nan
    return x.new_full([2 * n + 1 for n in x.shape], garbage)[tuple(slice(1, 2 * n + 1, 2) for n in x.shape)].copy_(x)


PLACES: dict[str, Callable[[int, Tensor], Tensor]] = {
    "gaps": lambda i, x: gapped(x),
    "transposed": lambda i, x: x.mT.contiguous().mT,
    "every other transposed": lambda i, x: x.mT.contiguous().mT if i % 2 else x,
    "one value for all steps": lambda i, x: x[:, :1].expand(x.shape) if i else x,
    "one value for all lanes": lambda i, x: x[:1].expand(x.shape) if i else x,
    "one value": lambda i, x: x[:1, :1].expand(x.shape) if i else x,
    "missing dimensions": lambda i, x: x[0] if i else x,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("op", ["gae", "vtrace_backward"])
@pytest.mark.parametrize(("shape", "time_dim"), [ROWS, STRIPS, FEW_LANES])
def test_strides_make_no_difference(op: str, place: str, shape: tuple[int, ...], time_dim: int) -> None:
    args = draw(op, shape, time_dim, torch.float32)
    like = parameters(op)[SPECS[op].like][1]
    placed = {
        name: PLACES[place](0 if name == like else 1 + i, x) if isinstance(x, Tensor) and x.dim() else x
        for i, (name, x) in enumerate(args.items())
    }
    assert_as_in_the_textbook(op, placed)


@pytest.mark.parametrize("shape", [(5, 33, 2), (33, 5, 2), (33, 20, 3), (33, 2, 17)])
@pytest.mark.parametrize("time_dim", [-3, -2])
def test_flags_of_one_feature_serve_all_features_without_a_copy(shape: tuple[int, ...], time_dim: int) -> None:
    args = draw("gae", shape, time_dim, torch.float32)
    args["done"], args["terminated"] = args["done"][..., :1], args["terminated"][..., :1]
    args["gamma"] = torch.rand((*shape[:-1], 1))
    served.forget()
    assert_as_in_the_textbook("gae", args)
    (prepared,) = dispatch._prepared.values()
    assert not prepared.conversions


def test_lanes_that_no_plan_can_merge_are_copied() -> None:
    shape = (9, 2, 3, 2)
    args = draw("gae", shape, -4, torch.float32)
    args["done"] = args["done"][:, :1, :, :1].expand(shape)
    served.forget()
    assert_as_in_the_textbook("gae", args)
    (prepared,) = dispatch._prepared.values()
    assert [k for k, _ in prepared.conversions] == [3]


@pytest.mark.parametrize("discount", [torch.tensor(0.9), torch.rand(3, 129), torch.rand(3, 1), torch.rand(129)])
def test_discounts_may_be_tensors_of_any_shape(discount: Tensor) -> None:
    args = draw("gae", *ROWS, torch.float32)
    assert_as_in_the_textbook("gae", args | {"gamma": discount, "lmbda": discount})


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("shape", "time_dim"), [ROWS, STRIPS, FEW_LANES])
def test_what_lies_behind_a_flag_changes_no_bit(poison: float, shape: tuple[int, ...], time_dim: int) -> None:
    args = draw("gae", shape, time_dim, torch.float32)
    step = torch.arange(shape[time_dim]).reshape([-1] + [1] * (-time_dim - 1)).expand(shape)
    args["done"] = args["done"] | (step == 11)
    args["terminated"] = args["terminated"] & args["done"]
    poisoned = args | {"reward": args["reward"].masked_fill(step > 11, poison)}
    poisoned["next_value"] = args["next_value"].masked_fill(args["terminated"], poison)
    for x, y in zip(call(cpu, "gae", args), call(cpu, "gae", poisoned), strict=True):
        assert torch.equal(x[step <= 11], y[step <= 11])


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("shape", "time_dim"), [ROWS, STRIPS, FEW_LANES])
def test_a_poisoned_step_that_is_not_behind_a_flag_spreads_as_in_the_textbook(
    poison: float, shape: tuple[int, ...], time_dim: int
) -> None:
    args = draw("gae", shape, time_dim, torch.float32, ends=0.02)
    args["reward"].select(time_dim, 15)[0] = poison
    assert_as_in_the_textbook("gae", args)


def masked(op: str, args: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """``args`` with the masks that ``op`` knows, and NaN in every number of a step that does not count.

    But for the results that a backward pass reads: they are zero at an invalid step, and the state at a skipped one.
    """
    generator = torch.Generator().manual_seed(5)
    known = [name for name in SPECS[op].optional if name != "cu_seqlens"]
    masks = {name: torch.rand(shape, generator=generator) < 0.3 for name in known}
    left_out = functools.reduce(torch.logical_or, masks.values())
    poisoned = {
        name: x.masked_fill(left_out, math.nan)
        for name, x in args.items()
        if isinstance(x, Tensor) and x.shape == shape and x.is_floating_point()
    }
    for name in {"advantage", "returns", "target"} & args.keys():
        poisoned[name] = args[name].masked_fill(masks["valid"], 0.0)
    return args | poisoned | masks | {"valid": ~masks["valid"]}


@pytest.mark.parametrize("op", [op for op in OPS if SPECS[op].optional])
@pytest.mark.parametrize(("shape", "time_dim"), [ROWS, FEW_LANES, STRIPS])
def test_the_kernels_take_masks_themselves(op: str, shape: tuple[int, ...], time_dim: int) -> None:
    args = masked(op, draw(op, shape, time_dim, torch.float32), shape)
    actual = call(cpu, op, args)
    expected = compose.serve(op, tuple(doubled(args).values()), torch_backend)
    for x, y in zip(actual, (expected,) if isinstance(expected, Tensor) else expected, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("shape", "time_dim"), [ROWS, FEW_LANES, STRIPS])
def test_next_values_are_derived_on_the_way(shape: tuple[int, ...], time_dim: int) -> None:
    args = draw("gae", shape, time_dim, torch.float32)
    bootstrap = torch.randn(args["value"].select(time_dim, 0).shape)
    following = args["value"].narrow(time_dim, 1, shape[time_dim] - 1)
    args["next_value"] = torch.cat([following, bootstrap.unsqueeze(time_dim)], time_dim)
    expected = call(cpu, "gae", args)
    found = cpu.gae_extended(*(args | {"next_value": None}).values(), True, bootstrap)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=False))
    torch.testing.assert_close(found[2], measure(expected[0]))


def test_every_number_of_16_bits_comes_out_as_it_went_in() -> None:
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        x = every.view(dtype)
        y = cpu.reward_to_go(x, torch.ones_like(x, dtype=torch.bool), torch.tensor(1.0), -1)
        assert torch.equal(y.isnan(), x.isnan())
        assert torch.equal(y[~x.isnan()].view(torch.int16), x[~x.isnan()].view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_results_of_16_bits_are_rounded_as_torch_rounds(dtype: torch.dtype) -> None:
    a, b = torch.full((5000,), 0.5, dtype=dtype), torch.randn(5000).to(dtype)
    exact = torch_backend.linear_recurrence(a.float(), b.float(), None, -1, True)
    mine = cpu.linear_recurrence(a, b, None, -1, True)
    # The order of the sums may differ by a rounding of float32, which moves a tie now and then, by one unit in the last place.
    assert (mine != exact.to(dtype)).float().mean() < 0.01
    torch.testing.assert_close(mine, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize(("shape", "time_dim"), [ROWS, FEW_LANES])
def test_coefficients_whose_product_overflows_do_not_spoil_a_finite_result(
    shape: tuple[int, ...], time_dim: int
) -> None:
    a, b = torch.full(shape, 1e20), torch.zeros(shape)
    b.select(time_dim, 0).fill_(1.0)
    y = cpu.linear_recurrence(a, b, None, time_dim, True)
    assert torch.equal(y, b)


def test_the_exponential_is_right_to_a_few_units_in_the_last_place() -> None:
    for dtype, allowed in ((torch.float32, 3e-7), (torch.float64, 5e-16)):
        limit = 80.0 if dtype is torch.float32 else 700.0
        x = torch.cat(
            [torch.linspace(-limit, limit, 4001, dtype=dtype), torch.tensor([0.0, 1e-30, -1e-30], dtype=dtype)]
        )
        zeros, ones, no = torch.zeros_like(x), torch.ones_like(x), torch.zeros_like(x, dtype=torch.bool)
        huge = torch.tensor(math.inf, dtype=torch.float64)
        # With a reward of one and no value the target is rho, which is exp of the log ratio when nothing clips it.
        advantage, _ = cpu.vtrace(x, zeros, ones, zeros, zeros, ~no, None, torch.ones(()), huge, huge, -1)
        error = (advantage.double() / x.double().exp() - 1).abs().max().item()
        assert error < allowed
        ends = torch.tensor([1000.0, -1000.0, math.inf, -math.inf, math.nan], dtype=dtype)
        zeros, ones, no = torch.zeros_like(ends), torch.ones_like(ends), torch.zeros_like(ends, dtype=torch.bool)
        advantage, _ = cpu.vtrace(ends, zeros, ones, zeros, zeros, ~no, None, torch.ones(()), huge, huge, -1)
        assert torch.equal(advantage[:4], torch.tensor([math.inf, 0.0, math.inf, 0.0], dtype=dtype))
        assert advantage[4].isnan()


def test_inputs_are_left_as_they_are() -> None:
    for op in OPS:
        args = draw(op, *ROWS, torch.float32)
        before = {k: x.clone() for k, x in args.items() if isinstance(x, Tensor)}
        call(cpu, op, args)
        assert all(torch.equal(args[k], x) for k, x in before.items())


def test_a_tensor_elsewhere_and_a_flag_that_is_none_are_refused_by_name() -> None:
    args = draw("gae", *ROWS, torch.float32)
    with pytest.raises(ValueError, match=r"gae: reward is on meta, expected cpu"):
        call(cpu, "gae", args | {"reward": args["reward"].to("meta")})
    with pytest.raises(TypeError, match=r"gae: done has dtype torch.float32, expected bool"):
        call(cpu, "gae", args | {"done": args["done"].float()})


# Plans


def plan(shape: tuple[int, ...], time_dim: int, *strides: tuple[int, ...], shares: int = 1) -> geometry.Plan:
    """A plan for float32 operands with these strides, the last of which is the result."""
    operands = [Operand(tuple(4 * s for s in x), 4) for x in strides]
    return geometry.make_plan(shape, time_dim, operands, len(operands) - 1, 4, shares)


def kinds(made: geometry.Plan, operands: int) -> list[int]:
    return made.words[geometry.HEADER : geometry.HEADER + operands].tolist()


def test_dimensions_merge_where_every_operand_allows_it() -> None:
    assert merged([Dimension(4, (15, 5)), Dimension(3, (5, 0)), Dimension(1, (9, 9)), Dimension(5, (1, 1))]) == [
        Dimension(4, (15, 5)),
        Dimension(3, (5, 0)),
        Dimension(5, (1, 1)),
    ]
    assert merged([Dimension(4, (15, 0)), Dimension(3, (5, 0)), Dimension(5, (1, 0))]) == [Dimension(60, (1, 0))]
    assert merged([]) == []


def test_the_layout_of_the_result_decides_the_strategy() -> None:
    assert plan((7, 100), -1, (100, 1))[:3] == (16, 1, 7)
    assert plan((100, 70), -2, (70, 1))[:3] == (16, 0, 1)
    assert plan((100, 3), -2, (3, 1))[:3] == (15, 3, 1)
    assert plan((7, 100, 2), -2, (200, 2, 1))[:3] == (16, 2, 7)
    assert plan((100, 7), -2, (1, 100))[:3] == (16, 1, 7)
    assert plan((7, 5), -1, (5, 1))[:3] == (4, 1, 7)
    assert plan((1, 70), -2, (70, 1))[:3] == (16, 0, 1)


def test_an_operand_is_gathered_only_where_it_lies_unlike_the_result() -> None:
    assert kinds(plan((7, 100), -1, (0, 1), (1, 0), (1, 7), (0, 0), (100, 1)), 5) == [
        *(CONTIGUOUS, ONE, GATHERED, ONE),
        CONTIGUOUS,
    ]
    assert kinds(plan((100, 70), -2, (0, 1), (1, 0), (140, 2), (70, 1)), 4) == [CONTIGUOUS, ONE, GATHERED, CONTIGUOUS]


def test_strips_are_whole_registers_and_never_smaller_than_one() -> None:
    for total in range(16, 400):
        for limit in (16, 48, 100, 1000):
            strip = strip_size(total, 16, limit)
            last = total % strip or strip
            assert strip % 16 == 0
            assert min(total, last) >= 16


def test_threads_get_strips_of_their_own_only_if_those_are_long() -> None:
    assert plan((100, 70), -2, (70, 1), shares=2).tasks == 1
    assert plan((100, 8192), -2, (8192, 1), shares=2).tasks == 2


def test_time_is_cut_only_where_there_are_too_few_rows_for_the_threads() -> None:
    assert cut_time(100_000, tasks=1, shares=2, stride=16).pieces == 2
    assert cut_time(100_000, tasks=3, shares=2, stride=16).pieces == 2
    assert cut_time(100_000, tasks=6, shares=4, stride=16).pieces == 2
    assert cut_time(100_000, tasks=2, shares=2, stride=16).pieces == 1
    assert cut_time(100_000, tasks=9, shares=2, stride=16).pieces == 1
    assert cut_time(100_000, tasks=1, shares=0, stride=16).pieces == 1
    assert cut_time(3000, tasks=1, shares=8, stride=16).pieces == 1


@pytest.mark.parametrize("stride", [1, 3, 5, 16])
@pytest.mark.parametrize("steps", [1, 2, 15, 16, 17, 4096, 4099, 100_000])
def test_pieces_and_their_marks_cover_every_step_once(steps: int, stride: int) -> None:
    for shares in range(9):
        cut = cut_time(steps, 1, shares, stride)
        rest = steps - steps % stride
        assert cut.piece == cut.every * cut.marks and cut.every % stride == 0
        assert (cut.pieces - 1) * cut.piece < max(1, rest) and rest <= cut.pieces * cut.piece


# The cache on disk


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder for machine code, and a process that has compiled nothing."""
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compile, "_kernels", {})
    yield tmp_path


def compiled() -> strategies.Kernel:
    compile._kernels.clear()
    return compile.kernel("reward_to_go", bodies.REWARD_TO_GO, torch.float32, 4, 1)


def loads(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A list that grows by whether the code was found, each time that the cache is asked."""
    found: list[bool] = []
    original = compile._KernelCache.load_overload

    def load(self: Any, *args: Any) -> Any:
        result = original(self, *args)
        found.append(result is not None)
        return result

    monkeypatch.setattr(compile._KernelCache, "load_overload", load)
    return found


def test_machine_code_is_kept_on_disk(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = loads(monkeypatch)
    compiled()
    assert len(list(cache.rglob("*.nbi"))) == len(list(cache.rglob("*.nbc"))) == 1
    compiled()
    assert found == [False, True]


def test_machine_code_of_other_sources_is_not_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = loads(monkeypatch)
    compiled()
    monkeypatch.setattr(compile, "_sources", lambda: "another version of this folder")
    compiled()
    assert found == [False, False]


def test_a_damaged_file_is_replaced(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled()
    for file in cache.rglob("*.nb?"):
        file.write_bytes(b"not machine code")
    found = loads(monkeypatch)
    compiled()
    compiled()
    assert found == [False, True]


def test_without_a_folder_to_write_to_kernels_are_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_folder(*args: Any) -> None:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(compile, "_KernelCache", no_folder)
    monkeypatch.setattr(compile, "_kernels", {})
    monkeypatch.setattr(dispatch, "_prepared", {})
    assert_as_in_the_textbook("reward_to_go", draw("reward_to_go", (3, 5), -1, torch.float32))


def test_a_full_disk_is_not_the_callers_problem(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compile.IndexDataCacheFile, "save", full)
    monkeypatch.setattr(dispatch, "_prepared", {})
    assert_as_in_the_textbook("reward_to_go", draw("reward_to_go", (3, 5), -1, torch.float32))
