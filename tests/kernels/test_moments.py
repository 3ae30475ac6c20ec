"""Moments of the advantages: those of the numbers that count, mergeable in any parts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tritonrl import kernels

from .ragged_cases import assert_close, counted, draw, masks, poisoned, run

SHAPE = (5, 13)


def expected_moments(x: Tensor) -> Tensor:
    """Count, mean and M2, straight from the definition, in float64."""
    x = x.double().flatten()
    mean = x.mean() if x.numel() else torch.zeros((), dtype=torch.float64)
    return torch.stack([torch.tensor(float(x.numel()), dtype=torch.float64), mean, (x - mean).square().sum()])


@pytest.mark.parametrize("derived", [False, True])
@pytest.mark.parametrize("which", ["", "valid", "skip", "valid skip"])
def test_moments_are_over_the_steps_that_count_and_change_nothing_else(which: str, derived: bool) -> None:
    args = draw("gae", SHAPE) | masks("gae", SHAPE, which)
    if derived:
        args |= {"next_value": None, "bootstrap_value": torch.randn(5, dtype=torch.float64)}
    plain = run("gae", args, -1)
    *outputs, moments = run("gae", poisoned(args, SHAPE), -1, moments=True)
    for x, y in zip(outputs, plain, strict=True):
        assert torch.equal(x, y)
    assert moments.shape == (3,) and moments.dtype is torch.float64
    assert_close(moments, expected_moments(plain[0][counted(args, SHAPE)]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_moments_of_narrow_dtypes_are_taken_in_wide_ones(dtype: torch.dtype) -> None:
    args = draw("gae", (3, 700))
    narrow = {n: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for n, x in args.items()}
    narrow["value"] = narrow["value"] - 100  # far from zero, where sums of squares would cancel
    advantage, _, moments = run("gae", narrow, -1, moments=True)
    assert moments.dtype is torch.float64
    torch.testing.assert_close(moments, expected_moments(advantage), rtol=1e-3, atol=0)


def test_moments_of_nothing_are_zeros() -> None:
    for shape in ((0, 4), (4, 0)):
        assert run("gae", draw("gae", shape), -1, moments=True)[2].tolist() == [0.0, 0.0, 0.0]
    args = draw("gae", SHAPE) | {"valid": torch.zeros(SHAPE, dtype=torch.bool)}
    assert run("gae", args, -1, moments=True)[2].tolist() == [0.0, 0.0, 0.0]


def test_merged_moments_of_parts_are_those_of_the_whole_whatever_the_parts() -> None:
    args = draw("gae", (12, 9))
    whole = run("gae", args, -1, moments=True)[2]
    parts = []
    for rows in (slice(0, 1), slice(1, 1), slice(1, 8), slice(8, 12)):  # one of them empty
        part = {name: x[rows] if isinstance(x, Tensor) else x for name, x in args.items()}
        parts.append(run("gae", part, -1, moments=True)[2])
    assert_close(kernels.merge_moments(torch.stack(parts)), whole)
    two_ranks = torch.stack(
        [kernels.merge_moments(torch.stack(parts[:2])), kernels.merge_moments(torch.stack(parts[2:]))]
    )
    assert_close(kernels.merge_moments(two_ranks), whole)
    assert_close(kernels.merge_moments(torch.stack(parts).reshape(2, 2, 3)), whole)


def test_a_part_of_count_zero_may_hold_anything() -> None:
    part = torch.tensor([4.0, 1.0, 2.0])
    nothing = torch.tensor([0.0, float("nan"), float("inf")])
    assert torch.equal(kernels.merge_moments(torch.stack([part, nothing])), part)


@pytest.mark.parametrize("which", ["", "valid skip"])
def test_standardised_advantages_have_mean_zero_and_deviation_one_where_they_count(which: str) -> None:
    args = draw("gae", SHAPE) | masks("gae", SHAPE, which)
    given = {name: args.get(name) for name in ("valid", "skip")}
    advantage, _, moments = run("gae", args, -1, moments=True)
    counts = counted(args, SHAPE)
    for correction in (0, 1):
        y = kernels.standardise(advantage, moments, **given, correction=correction)
        chosen = advantage[counts]
        assert_close(y[counts], (chosen - chosen.mean()) / chosen.std(correction=correction))
        assert (y[~counts] == 0).all()


def test_a_constant_is_divided_by_eps_and_a_single_number_gives_zero() -> None:
    assert kernels.standardise(torch.tensor([2.0]), torch.tensor([1.0, 2.0, 0.0])).tolist() == [0.0]
    found = kernels.standardise(torch.tensor([2.0, 3.0]), torch.tensor([2.0, 2.0, 0.0]), eps=0.5)
    assert found.tolist() == [0.0, 2.0]


def laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "time first":
        return x.t().contiguous().t()
    if layout == "with gaps":
        return torch.stack([x, x], -1)[..., 0]
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "time first", "with gaps"])
@pytest.mark.parametrize("which", ["", "valid", "skip", "valid skip"])
def test_standardised_in_one_kernel_as_in_several(which: str, layout: str, dtype: torch.dtype) -> None:
    """On either side of a graph: what records one is made of torch's operators."""
    for shape in ((1,), (3, 11), (37, 1800)):  # less than a register, and parts for several threads
        x = laid_out(torch.randn(shape).add(5).to(dtype), layout if len(shape) == 2 else "contiguous")
        given = {name: torch.rand(shape) < 0.7 for name in which.split()}
        given = {name: laid_out(m, layout) if len(shape) == 2 else m for name, m in given.items()}
        moments = torch.tensor([x.numel(), 4.5, 3.0 * x.numel()], dtype=torch.float64)
        found = kernels.standardise(x, moments, **given, correction=0)
        recorded = kernels.standardise(x.clone().requires_grad_(), moments, **given, correction=0)
        assert recorded.requires_grad and torch.equal(found, recorded.detach())
        if layout != "with gaps":
            assert found.stride() == x.stride()
        with kernels.use_backend("torch"):
            assert torch.equal(kernels.standardise(x, moments, **given, correction=0), found)


def test_masks_that_stand_for_several_numbers_are_broadcast() -> None:
    x, valid = torch.randn(4, 6), torch.tensor([[True], [False], [True], [True]])
    found = kernels.standardise(x, torch.tensor([18.0, 0.0, 18.0], dtype=torch.float64), valid=valid, correction=0)
    torch.testing.assert_close(found, x * valid)


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize(
    ("moments", "eps"),
    [
        ([3.0, 1.0, float("nan")], 1e-4),
        ([3.0, 1.0, float("inf")], 1e-4),
        ([3.0, float("inf"), 1.0], 1e-4),
        ([3.0, 1.0, 0.0], 0.0),
        ([0.0, 0.0, 0.0], 1e-4),
        ([1.0, 1.0, 0.5], 1e-4),
        ([3.0, 1.0, -1.0], 1e-4),
    ],
)
def test_moments_that_are_no_good_give_what_the_formula_gives(moments: list[float], eps: float, backend: str) -> None:
    x, (count, mean, m2) = torch.tensor([1.0, 2.0, -3.0]), torch.tensor(moments, dtype=torch.float64)
    deviation = (m2 / (count - 1).clamp_min(1)).sqrt().clamp_min(eps)
    with kernels.use_backend(backend):
        found = kernels.standardise(x, torch.tensor(moments, dtype=torch.float64), eps=eps)
    torch.testing.assert_close(found, (x - mean.float()) * (1 / deviation).float(), rtol=0, atol=0, equal_nan=True)


def test_standardising_nothing_gives_nothing() -> None:
    assert kernels.standardise(torch.empty(0, 3), torch.zeros(3, dtype=torch.float64)).shape == (0, 3)


def test_standardise_has_a_gradient_and_keeps_nan_that_does_not_count_away() -> None:
    x = torch.tensor([1.0, float("nan"), 3.0], requires_grad=True)
    valid = torch.tensor([True, False, True])
    kernels.standardise(x, torch.tensor([2.0, 2.0, 2.0]), valid=valid, correction=0).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1.0, 0.0, 1.0]


def test_numbers_far_from_zero_are_standardised_as_well_as_their_dtype_can_tell_them_apart() -> None:
    """Only the mean is rounded to float32, by less than 0.04 here; what is left is not to be cancelled once more."""
    exact = 1e6 + torch.randn(4096, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = exact.float()
    moments = expected_moments(x)
    found = kernels.standardise(x, moments).double()
    wanted = (x.double() - moments[1]) / (moments[2] / (x.numel() - 1)).sqrt()
    shift = (found - wanted).mean()
    assert shift.abs() < 0.04
    torch.testing.assert_close(found - shift, wanted, rtol=0, atol=1e-5)


def test_moments_have_no_gradient_and_leave_that_of_the_advantage_alone() -> None:
    args = draw("gae", SHAPE, discounts="step") | masks("gae", SHAPE)
    names = ("reward", "value", "next_value", "gamma", "lmbda")
    leaves = [args[name].requires_grad_() for name in names]
    advantage, target, moments = run("gae", args, -1, moments=True)
    assert not moments.requires_grad
    found = torch.autograd.grad((advantage * target).sum(), leaves)
    plain = run("gae", args, -1)
    for x, y in zip(found, torch.autograd.grad((plain[0] * plain[1]).sum(), leaves), strict=True):
        assert torch.equal(x, y)

    def function(*given: Tensor) -> tuple[Tensor, ...]:
        return run("gae", {**args, **dict(zip(names, given, strict=True))}, -1, moments=True)[:2]

    small = [x.detach()[:2, :4].requires_grad_() for x in leaves]
    args = {name: x[:2, :4] if isinstance(x, Tensor) else x for name, x in args.items()}
    assert torch.autograd.gradgradcheck(function, small)


def test_compiled_calls_with_moments_have_no_graph_break() -> None:
    args = draw("gae", SHAPE) | masks("gae", SHAPE)

    def function(reward: Tensor) -> Tensor:
        advantage, _, moments = run("gae", {**args, "reward": reward}, -1, moments=True)
        return kernels.standardise(advantage, kernels.merge_moments(moments), valid=args["valid"], skip=args["skip"])

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_close(compiled(args["reward"]), function(args["reward"]))


def test_opcheck_passes_with_moments() -> None:
    args = draw("gae", (2, 5)) | masks("gae", (2, 5))
    number = torch.tensor(0.9, dtype=torch.float64)
    data = [args[name].requires_grad_() for name in ("reward", "value", "next_value")]
    for masked in ((), (None, args["valid"], args["skip"])):
        given = (*data, args["done"], args["terminated"], number, number, -1, True, *masked)
        torch.library.opcheck(torch.ops.tritonrl.gae_extended.default, given)


def test_vmap_over_moments_is_refused_in_words() -> None:
    args = draw("gae", SHAPE)
    with pytest.raises(NotImplementedError, match="vmap over moments=True"):
        torch.func.vmap(lambda r: run("gae", {**args, "reward": r}, -1, moments=True)[2])(torch.randn(3, *SHAPE))


def test_what_is_not_moments_is_refused() -> None:
    with pytest.raises(RuntimeError, match="partials has shape \\(3, 2\\), expected"):
        kernels.merge_moments(torch.zeros(3, 2))
    with pytest.raises(TypeError, match="partials must be a tensor"):
        kernels.merge_moments([1.0, 2.0, 3.0])  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="moments has shape \\(2, 3\\), expected \\[3\\]"):
        kernels.standardise(torch.zeros(4), torch.zeros(2, 3))
