"""Packed sequences: the same as each sequence alone, and as the sequences padded."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tritonrl import kernels
from tritonrl.kernels import compose
from tritonrl.kernels.specs import SPECS, allocate, argument_names, by_name

from .ragged_cases import ALL, DATA, DISCOUNTS, Args, assert_close, draw, flag, masks, run

LENGTHS = [5, 1, 0, 9, 3, 0]
TOTAL = sum(LENGTHS)
OFFSETS = torch.tensor([0, *LENGTHS]).cumsum(0)


def pieces(args: Args) -> list[Args]:
    """The arguments of each sequence that is not empty."""
    found = []
    for i, length in enumerate(LENGTHS):
        if length:
            span = slice(int(OFFSETS[i]), int(OFFSETS[i + 1]))
            one = {n: x[span] if isinstance(x, Tensor) and x.dim() and len(x) == TOTAL else x for n, x in args.items()}
            if args.get("bootstrap_value") is not None:
                one["bootstrap_value"] = args["bootstrap_value"][i]
            found.append(one)
    return found


def separately(op: str, args: Args) -> tuple[Tensor, ...]:
    """Each sequence alone, put together again."""
    return tuple(torch.cat(parts) for parts in zip(*(run(op, one, 0) for one in pieces(args)), strict=True))


@pytest.mark.parametrize("backend", [None, "torch"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("features", [(), (2,)])
@pytest.mark.parametrize("op", ALL)
def test_packed_sequences_are_each_sequence_alone(
    op: str, features: tuple[int, ...], dtype: torch.dtype, backend: str | None
) -> None:
    args = draw(op, (TOTAL, *features), discounts="step")
    with kernels.use_backend(backend):
        for x, y in zip(run(op, args, 0, cu_seqlens=OFFSETS.to(dtype)), separately(op, args), strict=True):
            assert_close(x, y)


def test_offsets_need_not_lie_without_gaps_and_moments_are_those_of_all_sequences() -> None:
    args = draw("gae", (TOTAL,))
    offsets = torch.stack([OFFSETS, OFFSETS + 7], 1)[:, 0]
    *results, moments = run("gae", args, 0, cu_seqlens=offsets, moments=True)
    for x, y in zip(results, separately("gae", args), strict=True):
        assert_close(x, y)
    assert_close(moments, torch.stack([torch.tensor(TOTAL), results[0].mean(), results[0].var(correction=0) * TOTAL]))


@pytest.mark.parametrize("op", ALL)
def test_packed_sequences_are_the_padded_batch_with_valid(op: str) -> None:
    args = draw(op, (TOTAL,))
    longest, count = max(LENGTHS), len(LENGTHS)
    valid = torch.arange(longest) < torch.tensor(LENGTHS)[:, None]

    def padded(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        room = torch.full((count, longest), True if x.dtype is torch.bool else float("nan"), dtype=x.dtype)
        return room.masked_scatter(valid, x)

    in_rows = run(op, {**{n: padded(x) for n, x in args.items()}, "valid": valid}, -1)
    for x, y in zip(run(op, args, 0, cu_seqlens=OFFSETS), in_rows, strict=True):
        assert_close(x, y[valid])


def test_the_end_of_a_sequence_is_done_but_bootstraps_unless_it_is_terminated() -> None:
    one, none = torch.ones(4), torch.zeros(4, dtype=torch.bool)
    offsets = torch.tensor([0, 2, 4])
    given = {"reward": one, "value": 0 * one, "next_value": 10 * one, "gamma": 1.0, "lmbda": 1.0, "time_dim": 0}
    # terminated=None means "as done", and the end of a sequence alone terminates nothing.
    assert kernels.gae(**given, done=none, cu_seqlens=offsets)[0].tolist() == [22.0, 11.0, 22.0, 11.0]
    at_end = torch.tensor([False, True, False, False])
    assert kernels.gae(**given, done=at_end, cu_seqlens=offsets)[0].tolist() == [12.0, 1.0, 22.0, 11.0]


@pytest.mark.parametrize("which", ["", "valid", "skip", "valid skip"])
@pytest.mark.parametrize("features", [(), (2,)])
def test_derived_next_values_stay_within_their_sequence(features: tuple[int, ...], which: str) -> None:
    args = draw("gae", (TOTAL, *features))
    args |= {"next_value": None, "bootstrap_value": torch.randn(len(LENGTHS), *features, dtype=torch.float64)}
    args |= {name: flag((TOTAL, *features), {"valid": 0.7, "skip": 0.4}[name], 5) for name in which.split()}
    for x, y in zip(run("gae", args, 0, cu_seqlens=OFFSETS), separately("gae", args), strict=True):
        assert_close(x, y)


@pytest.mark.parametrize("shape", [(), (1,), (2,), (1, 2), (6, 1)], ids=str)
def test_a_bootstrap_value_broadcasts_over_sequences_and_features(shape: tuple[int, ...]) -> None:
    args = draw("gae", (TOTAL, 2)) | {"next_value": None}
    bootstrap = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    found = []
    for x in (bootstrap, bootstrap.expand(len(LENGTHS), 2)):
        results = run("gae", args, 0, cu_seqlens=OFFSETS, bootstrap_value=x)
        found.append((*results, *torch.autograd.grad(results[0].sin().sum(), bootstrap)))
    for x, y in zip(*found, strict=True):
        assert_close(x, y)


@pytest.mark.parametrize("terminated", [True, False])
def test_the_bootstrap_value_of_a_sequence_without_steps_is_never_read(terminated: bool) -> None:
    args = draw("gae", (TOTAL,), discounts="step") | {"next_value": None}
    args |= {} if terminated else {"terminated": None}
    bootstrap = torch.randn(len(LENGTHS), dtype=torch.float64)
    poisoned = bootstrap.masked_fill(torch.tensor(LENGTHS) == 0, float("nan")).requires_grad_()
    results = run("gae", args, 0, cu_seqlens=OFFSETS, bootstrap_value=poisoned)
    for x, y in zip(results, separately("gae", args | {"bootstrap_value": bootstrap}), strict=True):
        assert_close(x, y)
    (grad,) = torch.autograd.grad(results[0].sum(), poisoned)
    assert torch.isfinite(grad).all() and (grad[torch.tensor(LENGTHS) == 0] == 0).all()


@pytest.mark.parametrize("op", ALL)
def test_gradients_of_packed_sequences_are_those_of_each_alone(op: str) -> None:
    args = draw(op, (TOTAL,), discounts="step")
    names = DATA[op] + DISCOUNTS[op]
    found = []
    for function in (lambda given: run(op, given, 0, cu_seqlens=OFFSETS), lambda given: separately(op, given)):
        leaves = [args[name].detach().requires_grad_() for name in names]
        y = function({**args, **dict(zip(names, leaves, strict=True))})
        found.append(torch.autograd.grad(sum(x.sin().sum() for x in y), leaves))
    for x, y in zip(*found, strict=True):
        assert_close(x, y)


@pytest.mark.parametrize("masked", [False, True])
def test_derivatives_through_packed_derived_next_values_pass_gradcheck(masked: bool) -> None:
    args = draw("gae", (TOTAL,), discounts="step")
    args |= {"valid": flag((TOTAL,), 0.7, 5), "skip": flag((TOTAL,), 0.3, 6)} if masked else {}
    leaves = [args[name].requires_grad_() for name in ("value", "gamma", "lmbda")]
    leaves.append(torch.randn(len(LENGTHS), dtype=torch.float64, requires_grad=True))

    def function(value: Tensor, gamma: Tensor, lmbda: Tensor, bootstrap: Tensor) -> tuple[Tensor, ...]:
        given = {**args, "value": value, "gamma": gamma, "lmbda": lmbda, "next_value": None}
        return run("gae", given, 0, cu_seqlens=OFFSETS, bootstrap_value=bootstrap)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("op", ALL)
def test_derivatives_of_packed_and_masked_sequences_pass_gradcheck(op: str) -> None:
    args = draw(op, (TOTAL,), discounts="step") | masks(op, (TOTAL,))
    names = DATA[op] + DISCOUNTS[op]

    def function(*given: Tensor) -> tuple[Tensor, ...]:
        return run(op, {**args, **dict(zip(names, given, strict=True))}, 0, cu_seqlens=OFFSETS)

    leaves = [args[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


# How a call reaches a backend.


def arguments(op: str, **given: Any) -> list[Any]:
    """Those of the op, in schema order."""
    args = draw(op.removesuffix("_backward").removesuffix("_extended"), (TOTAL,), discounts="step")
    made = {"time_dim": -1, "with_discounts": True, "moments": True, "cu_seqlens": OFFSETS} | args | given
    return [
        made[name] if name in made else None if name in ("valid", "skip") else torch.randn(TOTAL, dtype=torch.float64)
        for name in argument_names(op)
    ]


PACKED = [op for op, spec in SPECS.items() if spec.optional]


@pytest.mark.parametrize("op", PACKED)
def test_a_backend_that_knows_no_ends_gets_them_in_the_flags_and_one_that_does_gets_the_offsets(op: str) -> None:
    reached: list[dict[str, Any]] = []
    backend = SimpleNamespace(linear_recurrence=None)
    setattr(backend, op, lambda *args: reached.append(by_name(op, args)) or allocate(op, args))
    args = arguments(op, terminated=None)
    at_ends = torch.zeros(TOTAL, dtype=torch.bool)
    at_ends[[4, 5, 14, 17]] = True
    compose.serve(op, args, backend)
    backend.PACKED = backend.MASKED = {op}
    compose.serve(op, args, backend)
    folded, given = reached
    done = given["done"]
    assert given["cu_seqlens"] is OFFSETS and given.get("terminated") is None
    assert folded["cu_seqlens"] is None and torch.equal(folded["done"], done | at_ends)
    assert "terminated" not in folded or folded["terminated"] is done  # what was not said to be terminal is not


@pytest.mark.parametrize("op", [*PACKED, "gae_extended"])
def test_opcheck_passes_with_offsets(op: str) -> None:
    args = arguments(op)
    if op == "gae_extended":
        args[2], args[9] = None, torch.randn(len(LENGTHS), dtype=torch.float64)
    for x in args:
        if isinstance(x, Tensor) and x.is_floating_point() and not op.endswith("_backward"):
            x.requires_grad_()
    torch.library.opcheck(getattr(torch.ops.tritonrl, op).default, tuple(args))


def test_what_runs_is_told() -> None:
    args = draw("gae", (4096,)) | {"time_dim": 0, "cu_seqlens": torch.tensor([0, 4096], dtype=torch.int32)}
    for name in DATA["gae"]:
        args[name] = args[name].float()
    text = kernels.explain("gae", **args)
    assert "tritonrl::gae on cpu" in text and "bytes: 22 a step" in text
    assert "several kernels" not in text and "as one row" not in text
    long = {n: x.repeat(100) if isinstance(x, Tensor) and x.dim() and len(x) == 4096 else x for n, x in args.items()}
    text = kernels.explain("gae", **(long | {"cu_seqlens": torch.tensor([0, 409_600])}))
    assert "as one row" in text
    args |= {"next_value": None, "bootstrap_value": torch.zeros(1)}
    with kernels.use_backend("torch"):
        text = kernels.explain(
            "gae", **args, **({"multiprocessors": 132} if importlib.util.find_spec("triton") else {})
        )
    assert "composed of several kernels" in text
    assert "tritonrl::gae_extended on cpu" in text and text.count("tritonrl::") == 1 and "bytes: 18 a step" in text
    assert importlib.util.find_spec("triton") is None or "triton, strategy" in text


def test_compiled_packed_calls_have_no_graph_break_and_take_other_offsets() -> None:
    args = draw("gae", (TOTAL,))
    args |= {"next_value": None, "bootstrap_value": torch.randn(len(LENGTHS), dtype=torch.float64)}

    def function(offsets: Tensor) -> Tensor:
        return run("gae", args, 0, cu_seqlens=offsets)[0]

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    others = torch.tensor([0, 4, 4, 8, 11, 15, TOTAL])
    with torch._dynamo.config.patch(error_on_recompile=True):
        for offsets in (OFFSETS, others):
            assert_close(compiled(offsets), function(offsets))


def test_vmap_over_packed_data_and_offsets_is_a_loop() -> None:
    cases = [draw("td_lambda_return", (TOTAL,), seed=i) for i in range(2)]
    offsets = torch.stack([OFFSETS, torch.tensor([0, 4, 4, 8, 11, 15, TOTAL])])
    rewards = torch.stack([case["reward"] for case in cases])

    def one(reward: Tensor, cu_seqlens: Tensor) -> Tensor:
        return run("td_lambda_return", {**cases[0], "reward": reward}, 0, cu_seqlens=cu_seqlens)[0]

    results = torch.func.vmap(one)(rewards, offsets)
    for i in range(2):
        assert_close(results[i], one(rewards[i], offsets[i]))


@pytest.mark.parametrize("derived", [False, True])
@pytest.mark.parametrize("batched", ["done", "cu_seqlens", "value done", "value cu_seqlens"])
def test_vmap_and_gradients_of_each_sample_are_a_loop_whatever_is_batched(batched: str, derived: bool) -> None:
    """Flags of fewer dimensions than the data, without terminated, and a gradient of every sample under the vmap."""
    args = draw("gae", (TOTAL, 2)) | {"done": flag((TOTAL, 1), 0.2, 3)}
    del args["terminated"]
    given = {
        "value": torch.randn(3, TOTAL, 2, dtype=torch.float64),
        "done": torch.stack([flag((TOTAL, 1), 0.3, i) for i in range(3)]),
        "cu_seqlens": torch.tensor([[0, 4, 18], [0, 0, 18], [0, 17, 18]]),
    }
    names = batched.split()
    if derived:
        given["bootstrap_value"] = torch.randn(3, 2, 2, dtype=torch.float64)
        names += ["bootstrap_value"] if "value" in names else []
        args["next_value"] = None
    fixed = args | {name: x[0] for name, x in given.items()}

    def loss(value: Tensor, chosen: dict[str, Tensor]) -> Tensor:
        return run("gae", {**fixed, "value": value, **chosen}, 0)[0].pow(2).sum()

    def one(chosen: dict[str, Tensor]) -> Tensor:
        others = {name: x for name, x in chosen.items() if name != "value"}
        return torch.func.grad(loss)(chosen.get("value", fixed["value"]), others)

    results = torch.func.vmap(one)({name: given[name] for name in names})
    for i in range(3):
        assert_close(results[i], one({name: given[name][i] for name in names}))


def test_gradients_through_a_vmap_over_derived_next_values_are_those_of_a_loop() -> None:
    args = draw("gae", (TOTAL,), discounts="step") | {"next_value": None}
    leaves = [torch.randn(3, n, dtype=torch.float64, requires_grad=True) for n in (TOTAL, len(LENGTHS))]

    def one(value: Tensor, bootstrap: Tensor) -> Tensor:
        return run("gae", args | {"value": value}, 0, cu_seqlens=OFFSETS, bootstrap_value=bootstrap)[0].sin()

    alone = torch.stack([one(*(x[i] for x in leaves)) for i in range(3)])
    mapped = torch.func.vmap(one)(*leaves)
    assert_close(mapped, alone)
    grads = (torch.autograd.grad(y.sum(), leaves) for y in (mapped, alone))
    for x, y in zip(*grads, strict=True):
        assert_close(x, y)


def test_no_sequences_at_all_are_fine() -> None:
    args = draw("gae", (0,))
    for x in run("gae", args, 0, cu_seqlens=torch.tensor([0])):
        assert x.shape == (0,)


def test_bad_offsets_get_errors_that_name_them() -> None:
    args = draw("reward_to_go", (TOTAL,))
    with pytest.raises(ValueError, match=f"cu_seqlens must go from 0 to {TOTAL}"):
        run("reward_to_go", args, 0, cu_seqlens=OFFSETS[:-3])
    with pytest.raises(ValueError, match="never decrease"):
        run("reward_to_go", args, 0, cu_seqlens=torch.tensor([0, 7, 4, TOTAL]))
    with pytest.raises(ValueError, match="cu_seqlens must go from 0"):
        run("reward_to_go", args, 0, cu_seqlens=torch.tensor([1, TOTAL]))
    with pytest.raises(TypeError, match="cu_seqlens must be an int32 or int64 tensor, got dtype"):
        run("reward_to_go", args, 0, cu_seqlens=OFFSETS.float())
    with pytest.raises(TypeError, match="cu_seqlens must be an int32 or int64 tensor, got list"):
        run("reward_to_go", args, 0, cu_seqlens=OFFSETS.tolist())
    with pytest.raises(RuntimeError, match="time_dim must be 0"):
        run("reward_to_go", draw("reward_to_go", (2, TOTAL)), -1, cu_seqlens=OFFSETS)
    with pytest.raises(RuntimeError, match="expected \\[n \\+ 1\\]"):
        run("reward_to_go", args, 0, cu_seqlens=OFFSETS[None])
    gae = draw("gae", (TOTAL,)) | {"next_value": None}
    with pytest.raises(RuntimeError, match="bootstrap_value has shape \\(4,\\), expected \\(6,\\)"):
        run("gae", gae, 0, cu_seqlens=OFFSETS, bootstrap_value=torch.zeros(4))
