"""Masked data and derived next values: against a scalar loop, against each other, through every torch transform."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tritonrl import kernels
from tritonrl.kernels import compose, torch_backend
from tritonrl.kernels.backend import backend_for
from tritonrl.kernels.specs import ALL_SPECS, argument_names, plain_names

from . import ragged_oracle as oracle
from .ragged_cases import ALL, DATA, DISCOUNTS, MASKS, Args, assert_close, counted, draw, flag, masks, poisoned, run

LAYOUTS = {
    "[N,T]": ((3, 23), -1),
    "[T,N]": ((17, 5), 0),
    "[N,T,2]": ((2, 11, 2), -2),
    "[T]": ((29,), 0),
    "T=1": ((4, 1), 1),
}
WHICH = [(op, which) for op in ALL for which in ("valid", "skip", "valid skip") if set(which.split()) <= set(MASKS[op])]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("op", "which"), WHICH)
def test_a_masked_call_is_the_scalar_loop_with_nan_wherever_nothing_may_look(op: str, which: str, layout: str) -> None:
    shape, time_dim = LAYOUTS[layout]
    args = draw(op, shape, discounts="step") | masks(op, shape, which)
    expected = oracle.compute(op, args, time_dim)
    for actual, y in zip(run(op, poisoned(args, shape), time_dim), expected, strict=True):
        assert_close(actual, y)


@pytest.mark.parametrize(("op", "which"), WHICH)
def test_gradients_of_a_masked_call_are_those_of_the_scalar_loop_and_zero_where_nothing_counts(
    op: str, which: str
) -> None:
    shape = (3, 13)
    args = draw(op, shape, discounts="step") | masks(op, shape, which)
    names = DATA[op] + DISCOUNTS[op]
    upstream = [torch.randn(shape, dtype=torch.float64) for _ in range(2 if op in ("gae", "vtrace") else 1)]
    # A gradient that arrives where nothing counts goes nowhere, NaN or not.
    arriving = [g.masked_fill(~counted(args, shape), float("nan")) for g in upstream]

    def found(given: Args, outputs: Any, grads: list[Tensor]) -> tuple[Tensor, ...]:
        leaves = {name: given[name].detach().requires_grad_() for name in names}
        found = torch.autograd.grad(outputs({**given, **leaves}), list(leaves.values()), grads, allow_unused=True)
        return tuple(torch.zeros(shape) if g is None else g for g in found)

    expected = found(args, lambda given: oracle.compute(op, given, -1), upstream)
    actual = found(poisoned(args, shape), lambda given: run(op, given, -1), arriving)
    for x, y in zip(actual, expected, strict=True):
        assert_close(x, y)
        assert (x[~counted(args, shape)] == 0).all()


@pytest.mark.parametrize(("op", "which"), WHICH)
def test_masks_that_mask_nothing_change_no_bit(op: str, which: str) -> None:
    shape = (5, 19)
    args = draw(op, shape)
    nothing = {name: torch.full(shape, name == "valid") for name in which.split()}
    for x, y in zip(run(op, {**args, **nothing}, -1), run(op, args, -1), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("op", ALL)
def test_a_right_padded_batch_is_each_row_alone(op: str) -> None:
    lengths = [7, 1, 0, 12, 5]
    shape = (len(lengths), 12)
    args = draw(op, shape, discounts="step")
    valid = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    outputs = run(op, poisoned({**args, "valid": valid}, shape), -1)
    for i, length in enumerate(lengths):
        alone = {name: x[i, :length] if isinstance(x, Tensor) else x for name, x in args.items()}
        for whole, row in zip(outputs, run(op, alone, -1), strict=True):
            assert_close(whole[i, :length], row)
            assert (whole[i, length:] == 0).all()


def test_skipping_steps_is_taking_them_out() -> None:
    args = draw("gae", (40,))
    skip = flag((40,), 0.4, 9)
    args["done"] &= ~skip
    args["terminated"] &= ~skip
    kept = {name: x[~skip] if isinstance(x, Tensor) else x for name, x in args.items()}
    for whole, short in zip(run("gae", {**args, "skip": skip}, 0), run("gae", kept, 0), strict=True):
        assert_close(whole[~skip], short)


def test_a_skipped_step_that_is_done_still_cuts() -> None:
    one, none = torch.ones(3), torch.zeros(3, dtype=torch.bool)
    middle = torch.tensor([False, True, False])
    given = {"reward": one, "value": 0 * one, "next_value": 0 * one, "gamma": 1.0, "lmbda": 1.0, "skip": middle}
    assert kernels.gae(**given, done=none, time_dim=0)[0].tolist() == [2.0, 0.0, 1.0]
    assert kernels.gae(**given, done=middle, time_dim=0)[0].tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("op", ALL)
def test_masks_broadcast_over_features_and_may_be_integers(op: str) -> None:
    shape = (2, 9, 3)
    args = draw(op, shape)
    narrow = masks(op, (2, 9, 1))
    wide = {name: x.expand(shape).contiguous() for name, x in narrow.items()}
    for given in (narrow, {name: x.int() for name, x in narrow.items()}):
        for x, y in zip(run(op, {**args, **given}, 1), run(op, {**args, **wide}, 1), strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("op", ALL)
def test_nothing_valid_and_nothing_there_give_zeros_and_nothing(op: str) -> None:
    for shape in ((3, 5), (0, 5), (3, 0)):
        args = draw(op, shape)
        for x in run(op, poisoned({**args, "valid": torch.zeros(shape, dtype=torch.bool)}, shape), -1):
            assert x.shape == shape and (x == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_dtypes_keep_their_dtype_and_are_close(dtype: torch.dtype) -> None:
    shape = (4, 33)
    args = draw("gae", shape) | masks("gae", shape)
    narrow = {n: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for n, x in args.items()}
    exact = {n: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for n, x in narrow.items()}
    for x, y in zip(run("gae", narrow, -1), oracle.compute("gae", exact, -1), strict=True):
        assert x.dtype is dtype
        torch.testing.assert_close(x.double(), y, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


# Derived next values.


@pytest.mark.parametrize("which", ["", "valid", "skip", "valid skip"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_derived_next_values_are_the_values_of_the_next_step_that_counts(which: str, layout: str) -> None:
    shape, time_dim = LAYOUTS[layout]
    args = draw("gae", shape) | masks("gae", shape, which)
    lanes = torch.Size([n for d, n in enumerate(shape) if d != time_dim % len(shape)])
    args |= {"next_value": None, "bootstrap_value": torch.randn(lanes, dtype=torch.float64)}
    for actual, y in zip(
        run("gae", poisoned(args, shape), time_dim), oracle.compute("gae", args, time_dim), strict=True
    ):
        assert_close(actual, y)


def test_derived_next_values_are_explicit_ones_shifted() -> None:
    args = draw("gae", (3, 8))
    bootstrap = torch.randn(3, dtype=torch.float64)
    args["next_value"] = torch.cat([args["value"][:, 1:], bootstrap[:, None]], 1)
    derived = {**args, "next_value": None, "bootstrap_value": bootstrap}
    for x, y in zip(run("gae", derived, 1), run("gae", args, 1), strict=True):
        assert torch.equal(x, y)


def test_a_padded_row_bootstraps_from_its_own_bootstrap_value() -> None:
    args = draw("gae", (2, 10))
    args |= {"next_value": None, "bootstrap_value": torch.tensor([3.0, -2.0], dtype=torch.float64)}
    valid = torch.arange(10) < torch.tensor([[4], [10]])
    whole = run("gae", poisoned({**args, "valid": valid}, (2, 10)), -1)
    alone = {n: x[0, :4] if isinstance(x, Tensor) and x.dim() == 2 else x for n, x in args.items()}
    alone["bootstrap_value"] = args["bootstrap_value"][0]
    for x, y in zip(whole, run("gae", alone, -1), strict=True):
        assert_close(x[0, :4], y)


@pytest.mark.parametrize("which", ["", "valid skip"])
@pytest.mark.parametrize("discounts", ["number", "step"])
def test_gradients_through_derived_next_values_are_those_of_the_scalar_loop(which: str, discounts: str) -> None:
    shape = (2, 9)
    args = draw("gae", shape, discounts=discounts) | masks("gae", shape, which)
    args |= {"next_value": None, "bootstrap_value": torch.randn(2, dtype=torch.float64)}
    names = ("reward", "value", "bootstrap_value") + (("gamma", "lmbda") if discounts == "step" else ())
    upstream = [torch.randn(shape, dtype=torch.float64) for _ in range(2)]
    found = []
    for outputs, given in ((oracle.compute, args), (run, poisoned(args, shape))):
        leaves = [given[name].detach().requires_grad_() for name in names]
        y = outputs("gae", {**given, **dict(zip(names, leaves, strict=True))}, -1)
        found.append(torch.autograd.grad(y, leaves, upstream))
    for expected, actual in zip(*found, strict=True):
        assert_close(actual, expected)


# Backends that know nothing of this.


def _plain_backend(record: list[tuple[str, int]] | None = None) -> Any:
    """The plain torch backend as if it had been written before there were masks."""

    def limited(op: str) -> Any:
        def function(*args: Any) -> Any:
            assert len(args) == len(plain_names(op)), f"{op} was called with {len(args)} arguments"
            if record is not None:
                record.append((op, len(args)))
            return getattr(torch_backend, op)(*args)

        return function

    return SimpleNamespace(**{op: limited(op) for op in ALL_SPECS if op != "gae_extended"})


def _op_arguments(op: str, shape: tuple[int, ...], optional: tuple[str, ...]) -> list[Any]:
    made: Args = {name: torch.randn(shape, dtype=torch.float64) for name in plain_names(op)}
    done = flag(shape, 0.2, 1)
    made |= {
        "done": done,
        "terminated": done & flag(shape, 0.5, 2),
        "time_dim": -1,
        "with_discounts": True,
        "moments": True,
    }
    made |= {
        name: 0.9 + 0.2 * torch.rand(shape, dtype=torch.float64)
        for name in ("gamma", "lmbda", "rho_thresh", "c_thresh")
    }
    made |= {"valid": flag(shape, 0.75, 3), "skip": flag(shape, 0.3, 4)}
    given = {name: made[name] for name in optional}
    return [made[name] for name in plain_names(op)] + [given.get(name) for name in ALL_SPECS[op].optional]


@pytest.mark.parametrize(("op", "which"), WHICH)
def test_composition_serves_a_backend_without_masks_and_agrees_with_the_twin(op: str, which: str) -> None:
    args = _op_arguments(op, (4, 15), tuple(which.split()))
    mine, twin = compose.serve(op, args, _plain_backend()), getattr(torch_backend, op)(*args)
    for x, y in zip(_several(mine), _several(twin), strict=True):
        assert_close(x, y)


def test_a_backend_without_masks_or_moments_still_gives_moments_and_derived_next_values() -> None:
    args = _op_arguments("gae_extended", (4, 15), ())
    args[2], args[9] = None, torch.randn(4, dtype=torch.float64)
    mine, twin = (compose.serve("gae_extended", args, backend) for backend in (_plain_backend(), torch_backend))
    for x, y in zip(mine, twin, strict=True):
        assert_close(x, y)


@pytest.mark.parametrize("op", ALL)
def test_a_call_without_masks_reaches_the_backend_with_the_arguments_it_always_had(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record: list[tuple[str, int]] = []
    backend = _plain_backend(record)
    monkeypatch.setattr("tritonrl.kernels.ops.backend_for", lambda device: backend)
    args = draw(op, (3, 7), discounts="step")
    leaf = args["reward"].requires_grad_()
    torch.autograd.grad(run(op, args, -1)[0].sum(), leaf)
    assert record == [(op, len(plain_names(op))), (f"{op}_backward", len(plain_names(f"{op}_backward")))]


@pytest.mark.parametrize("differentiated", ["value", "gamma"])
def test_derived_next_values_of_masked_data_are_the_same_with_and_without_a_gradient(differentiated: str) -> None:
    shape = (3, 23)
    args = draw("gae", shape, discounts="step") | masks("gae", shape)
    args |= {"next_value": None, "bootstrap_value": torch.randn(3, dtype=torch.float64)}
    expected = run("gae", args, -1)
    args[differentiated] = args[differentiated].requires_grad_()
    actual = run("gae", args, -1)
    for x, y in zip(actual, expected, strict=True):
        assert x.requires_grad and not y.requires_grad
        assert_close(x.detach(), y)
    (grad,) = torch.autograd.grad(sum(x.sum() for x in actual), args[differentiated])
    nudge = torch.randn_like(grad)
    moved = run("gae", args | {differentiated: args[differentiated].detach() + 1e-6 * nudge}, -1)
    change = sum(float((x - y).sum()) for x, y in zip(moved, expected, strict=True))
    assert change / 1e-6 == pytest.approx(float((grad * nudge).sum()), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("which", ["valid", "skip", "valid skip"])
def test_next_values_derived_past_masks_are_the_same_below_the_api(which: str, packed: bool) -> None:
    """Of backends with a kernel for them and without; what has no gradient there says so."""
    shape = (12,)
    args = draw("gae", shape) | masks("gae", shape, which) | {"next_value": None}
    args["bootstrap_value"] = torch.randn(3 if packed else (), dtype=torch.float64)
    offsets = {"cu_seqlens": torch.tensor([0, 5, 5, 12])} if packed else {}
    expected = run("gae", args, 0, **offsets)
    given = {**dict.fromkeys(argument_names("gae_extended")), **args, **offsets, "time_dim": -1, "moments": False}
    for name in ("gamma", "lmbda"):
        given[name] = torch.as_tensor(given[name], dtype=torch.float64)
    for backend in (torch_backend, backend_for(torch.device("cpu")), _plain_backend()):
        found = compose.serve("gae_extended", list(given.values()), backend)
        for x, y in zip(found, expected, strict=False):
            assert_close(x, y)
    given["value"] = given["value"].clone().requires_grad_()
    result = torch.ops.tritonrl.gae_extended(*given.values())[0]
    with pytest.raises(NotImplementedError, match=r"no gradient|neither gradient .* tritonrl.kernels.gae"):
        result.sum().backward()


def test_who_only_looks_on_changes_nothing_of_how_next_values_are_derived() -> None:
    """One op with masks, whatever the backend makes of it; two where a derivative may be asked for."""
    args = draw("gae", (3, 8)) | masks("gae", (3, 8), "valid skip")
    args |= {"next_value": None, "bootstrap_value": torch.zeros(3, dtype=torch.float64)}
    assert kernels.explain("gae", **args, time_dim=-1).count("tritonrl::") == 1
    ops: list[list[str]] = []
    for value in (args["value"], args["value"].clone().requires_grad_()):
        with torch.profiler.profile() as profile:
            run("gae", args | {"value": value}, -1)
        ops.append([event.name for event in profile.events() if event.name.startswith("tritonrl::")])
    assert ops == [["tritonrl::gae_extended"], ["tritonrl::linear_recurrence", "tritonrl::gae"]]


def _several(x: Any) -> tuple[Tensor, ...]:
    return (x,) if isinstance(x, Tensor) else tuple(x)


# Transforms.


def _leaves(op: str, shape: tuple[int, ...]) -> tuple[tuple[str, ...], list[Tensor], Args]:
    args = draw(op, shape, discounts="step") | masks(op, shape)
    names = DATA[op] + DISCOUNTS[op]
    return names, [args[name].detach().requires_grad_() for name in names], args


@pytest.mark.parametrize("op", ALL)
def test_first_and_second_derivatives_pass_gradcheck(op: str) -> None:
    names, leaves, args = _leaves(op, (2, 5))

    def function(*given: Tensor) -> tuple[Tensor, ...]:
        return run(op, {**args, **dict(zip(names, given, strict=True))}, -1)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("which", ["", "valid skip"])
def test_derivatives_through_derived_next_values_pass_gradcheck(which: str) -> None:
    shape = (2, 5)
    args = draw("gae", shape, discounts="step") | masks("gae", shape, which)
    names = ("reward", "value", "gamma", "lmbda", "bootstrap_value")
    args["bootstrap_value"] = torch.randn(2, dtype=torch.float64)
    leaves = [args[name].detach().requires_grad_() for name in names]

    def function(*given: Tensor) -> tuple[Tensor, ...]:
        return run("gae", {**args, **dict(zip(names, given, strict=True)), "next_value": None}, -1)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("op", [*ALL, "gae_extended"])
def test_opcheck_passes(op: str) -> None:
    args = _op_arguments(op, (3, 6), MASKS.get(op, ("valid", "skip")))
    for x in args:
        if isinstance(x, Tensor) and x.is_floating_point():
            x.requires_grad_()
    torch.library.opcheck(getattr(torch.ops.tritonrl, op).default, tuple(args))


def test_opcheck_passes_with_a_derived_next_value() -> None:
    args = _op_arguments("gae_extended", (3, 6), ())
    args[2], args[9] = None, torch.randn(3, dtype=torch.float64)
    for i in (0, 1, 5, 6, 9):
        args[i].requires_grad_()
    torch.library.opcheck(torch.ops.tritonrl.gae_extended.default, tuple(args))


@pytest.mark.parametrize("batched", ["data", "masks", "both"])
@pytest.mark.parametrize("op", ALL)
def test_vmap_is_a_loop_over_calls(op: str, batched: str) -> None:
    shape, batch = (2, 7), 3
    cases = [draw(op, shape, seed=10 * i) | {n: flag(shape, 0.6, 10 * i) for n in MASKS[op]} for i in range(batch)]
    tensors = [n for n, x in cases[0].items() if isinstance(x, Tensor)]
    moving = {"data": [n for n in tensors if n not in MASKS[op]], "masks": list(MASKS[op]), "both": tensors}[batched]
    stacked = [torch.stack([case[n] for case in cases]) for n in moving]

    def one(*given: Tensor) -> tuple[Tensor, ...]:
        return run(op, {**cases[0], **dict(zip(moving, given, strict=True))}, -1)

    results = torch.func.vmap(one)(*stacked)
    for i in range(batch):
        for x, y in zip(results, one(*(x[i] for x in stacked)), strict=True):
            assert torch.equal(x[i], y)


def test_vmap_over_derived_next_values_and_per_sample_gradients() -> None:
    args = draw("gae", (2, 6))
    value, bootstrap = torch.randn(4, 2, 6, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)

    def loss(value: Tensor, bootstrap: Tensor) -> Tensor:
        return (
            run("gae", {**args, "value": value, "next_value": None, "bootstrap_value": bootstrap}, -1)[0].pow(2).sum()
        )

    found = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)))(value, bootstrap)
    for i in range(4):
        v, b = value[i].clone().requires_grad_(), bootstrap[i].clone().requires_grad_()
        for x, y in zip(found, torch.autograd.grad(loss(v, b), (v, b)), strict=True):
            assert_close(x[i], y)


@pytest.mark.parametrize("op", ALL)
def test_compiled_masked_calls_have_no_graph_break_and_the_same_results_and_gradients(op: str) -> None:
    names, leaves, args = _leaves(op, (3, 8))

    def function(*given: Tensor) -> Tensor:
        return sum(y.sin().sum() for y in run(op, {**args, **dict(zip(names, given, strict=True))}, -1))

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for x, y in zip(
        torch.autograd.grad(compiled(*leaves), leaves), torch.autograd.grad(function(*leaves), leaves), strict=True
    ):
        assert_close(x, y)


def test_compiled_derived_next_values_have_no_graph_break() -> None:
    args = draw("gae", (3, 8)) | masks("gae", (3, 8))
    value = args.pop("value").requires_grad_()
    for given in (args, {n: x for n, x in args.items() if n not in MASKS["gae"]}):

        def function(value: Tensor, given: Args = given) -> Tensor:
            more = {"value": value, "next_value": None, "bootstrap_value": value[:, 0] * 2}
            return run("gae", {**given, **more}, -1)[0].pow(2).sum()

        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        (x,), (y,) = (torch.autograd.grad(f(value), value) for f in (compiled, function))
        assert_close(x, y)


# What is refused.


def test_bad_arguments_get_errors_that_name_them() -> None:
    args = draw("gae", (3, 8))
    derived = {**args, "next_value": None}
    one = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="needs bootstrap_value, of shape \\(3,\\)"):
        kernels.gae(**derived, time_dim=-1)
    with pytest.raises(ValueError, match="not both"):
        kernels.gae(**args, bootstrap_value=one, time_dim=-1)
    with pytest.raises(RuntimeError, match="bootstrap_value has shape \\(8,\\), expected \\(3,\\)"):
        kernels.gae(**derived, bootstrap_value=torch.zeros(8), time_dim=-1)
    with pytest.raises(TypeError, match="bootstrap_value must be a tensor, got float"):
        kernels.gae(**derived, bootstrap_value=0.0, time_dim=-1)
    with pytest.raises(RuntimeError, match="valid of shape \\(8, 3\\) does not broadcast"):
        kernels.gae(**args, valid=torch.ones(8, 3, dtype=torch.bool), time_dim=-1)
    with pytest.raises(TypeError, match="skip must be a bool tensor, got dtype"):
        kernels.gae(**args, skip=torch.ones(3, 8), time_dim=-1)


# Triton: in its interpreter, and compiled for GPUs that are not here.

INTERPRETED = """
import sys
from tritonrl.kernels import check, launch, plan, preparation
from tritonrl.kernels.plan import Plan, ceil_div

def small(strategy, across):
    "Tiles so small that every strategy needs many of them; across: accesses take two lanes, not two steps."
    def choose(sizes, *_):
        if strategy == "lanes":
            return Plan("lanes", (ceil_div(sizes.lanes, 2), 1), 2, 1, unroll=2)
        vector = 2 if sizes.steps % 2 == 0 else 1
        rows = 2 if strategy == "rows" or across else 1
        blocks, tiles = ceil_div(sizes.lanes, rows), ceil_div(sizes.steps, 2 * vector)
        grid = (blocks * (1 if strategy == "rows" else tiles),)
        width = 2 if across and sizes.inner % 2 == 0 else 1
        return Plan(strategy, grid, rows, 1, vector, 2, width=width, stacked=across, ahead=strategy == "rows")
    return choose

wrong = []
cases = (("rows", (10, 3), False), ("rows", (6, 4), True), ("lanes", (5, 3), True), ("split", (8, 2), False))
for strategy, size, layout in cases:
    preparation.choose_plan = small(strategy, layout)
    launch.forget()
    for variant in check._variants():
        # With masks: packed in two of the cases, and in the other two not.
        masked = "valid" in variant.optional
        if masked and ("cu_seqlens" in variant.optional) != (strategy == "lanes" or size == (10, 3)):
            continue
        if variant.optional or variant.op == "gae_extended":
            result = check._check(variant, "cpu", [size], [layout])
            assert result.backend == "triton"
            print(strategy, result)
            wrong += [] if result.ok else [(strategy, result)]
            used = {prepared.plan.strategy for prepared in launch._prepared.values()}
            wrong += [] if used == {strategy} else [(strategy, used)]
sys.exit(f"{wrong}" if wrong else 0)
"""


def test_triton_kernels_in_the_interpreter_agree_with_the_twin_in_every_strategy() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "TRITONRL_BACKEND": "triton", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("ok=True") == 52


@pytest.mark.skipif(bool(int(os.environ.get("TRITON_INTERPRET", "0"))), reason="compiled code needs the real compiler")
@pytest.mark.parametrize(
    ("lanes", "steps", "lanes_contiguous"), [(8192, 2048, False), (64, 65536, True), (65536, 64, True)]
)
def test_masked_kernels_compile_without_spills_for_a_gpu_that_is_not_here(
    lanes: int, steps: int, lanes_contiguous: bool
) -> None:
    ahead_of_time = pytest.importorskip("tritonrl.kernels.ahead_of_time", exc_type=ImportError)

    def empty(dtype: torch.dtype) -> Tensor:
        x = torch.empty((steps, lanes) if lanes_contiguous else (lanes, steps), dtype=dtype)
        return x.t() if lanes_contiguous else x

    x, done, number = empty(torch.float32), empty(torch.bool), torch.tensor(0.9, dtype=torch.float64)
    args = (x, x, x, done, done, number, number, -1, True, None, done, done)
    compiled = ahead_of_time.compile_for("gae_extended", args, 90)
    assert compiled.spilled_bytes == 0 and compiled.stack_bytes == 0
    assert compiled.plan.strategy == ("rows" if not lanes_contiguous else "split" if steps > 128 else "lanes")
