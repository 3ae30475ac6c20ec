"""What must hold between the ops, whatever the formulas inside: none of this is derived from the oracle."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tritonrl import kernels

from .arguments import ALL, BOOTSTRAPPING, DATA, WITH_FLAGS, Args, assert_close, draw, run

WHERE = [("cpu", "torch"), ("cpu", None)]
if torch.cuda.is_available():
    WHERE.append(("cuda", None))
# Shape and time dimension: time contiguous, many lanes contiguous, few lanes contiguous.
SHAPES = [((3, 129), -1), ((41, 33), 0), ((3, 40, 3), 1)]


@pytest.fixture(params=WHERE, ids=lambda where: f"{where[0]}-{where[1] or 'default'}")
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device, served by the backend under test."""
    where, backend = request.param
    with kernels.use_backend(backend):
        yield where


def on(device: str, args: Args) -> Args:
    return {name: x.to(device) if isinstance(x, Tensor) else x for name, x in args.items()}


def consistent(args: Args, time_dim: int) -> Args:
    """The same with ``next_value[t] = value[t+1]`` inside every trajectory, as a critic gives them."""
    steps = args["value"].shape[time_dim]
    ahead = args["value"].narrow(time_dim, 1, steps - 1), args["next_value"].narrow(time_dim, steps - 1, 1)
    return args | {"next_value": torch.where(args["done"], args["next_value"], torch.cat(ahead, time_dim))}


def equal(actual: Tensor, expected: Tensor) -> None:
    """The same but for rounding in float64."""
    assert_close(actual, expected.double().cpu(), accumulated=1e-11)


@pytest.mark.parametrize(("shape", "time_dim"), SHAPES, ids=str)
class TestBetweenEstimators:
    """In float64, with two in ten steps done and half of those terminal."""

    def test_gae_at_lambda_one_is_the_td_one_return_minus_the_value(
        self, shape: tuple[int, ...], time_dim: int, device: str
    ) -> None:
        args = consistent(on(device, draw("gae", shape, time_dim)), time_dim) | {"lmbda": 1.0}
        advantage, target = run("gae", args, time_dim)
        (returns,) = run("td_lambda_return", {n: x for n, x in args.items() if n != "value"}, time_dim)
        equal(advantage, returns - args["value"])
        equal(target, returns)

    def test_gae_at_lambda_zero_is_the_one_step_error(self, shape: tuple[int, ...], time_dim: int, device: str) -> None:
        args = on(device, draw("gae", shape, time_dim)) | {"lmbda": 0.0}
        advantage, target = run("gae", args, time_dim)
        one_step = args["reward"] + args["gamma"] * args["next_value"].masked_fill(args["terminated"], 0.0)
        equal(advantage, one_step - args["value"])
        equal(target, one_step)

    def test_the_td_lambda_return_at_lambda_zero_is_the_one_step_return(
        self, shape: tuple[int, ...], time_dim: int, device: str
    ) -> None:
        args = on(device, draw("td_lambda_return", shape, time_dim)) | {"lmbda": 0.0}
        (returns,) = run("td_lambda_return", args, time_dim)
        equal(returns, args["reward"] + args["gamma"] * args["next_value"].masked_fill(args["terminated"], 0.0))

    def test_the_td_lambda_return_is_gae_plus_value_when_values_are_consistent(
        self, shape: tuple[int, ...], time_dim: int, device: str
    ) -> None:
        args = consistent(on(device, draw("gae", shape, time_dim)), time_dim)
        _, target = run("gae", args, time_dim)
        (returns,) = run("td_lambda_return", {n: x for n, x in args.items() if n != "value"}, time_dim)
        equal(returns, target)

    def test_on_policy_vtrace_is_the_td_one_return(self, shape: tuple[int, ...], time_dim: int, device: str) -> None:
        args = consistent(on(device, draw("vtrace", shape, time_dim)), time_dim)
        args |= {"rho_thresh": 1.0, "c_thresh": 1.0, "log_mu": args["log_pi"]}
        advantage, target = run("vtrace", args, time_dim)
        kept = {name: args[name] for name in ("reward", "next_value", "done", "terminated", "gamma")}
        (returns,) = run("td_lambda_return", kept | {"lmbda": 1.0}, time_dim)
        equal(target, returns)
        equal(advantage, returns - args["value"])

    def test_on_policy_vtrace_is_gae_at_lambda_one_whatever_the_values(
        self, shape: tuple[int, ...], time_dim: int, device: str
    ) -> None:
        args = on(device, draw("vtrace", shape, time_dim)) | {"rho_thresh": 1.0, "c_thresh": 1.0}
        args["log_mu"] = args["log_pi"]
        _, target = run("vtrace", args, time_dim)
        kept = {name: x for name, x in args.items() if name not in ("log_pi", "log_mu", "rho_thresh", "c_thresh")}
        equal(target, run("gae", kept | {"lmbda": 1.0}, time_dim)[1])

    def test_vtrace_with_the_thresholds_at_zero_corrects_nothing(
        self, shape: tuple[int, ...], time_dim: int, device: str
    ) -> None:
        args = on(device, draw("vtrace", shape, time_dim)) | {"rho_thresh": 0.0, "c_thresh": 0.0}
        advantage, target = run("vtrace", args, time_dim)
        equal(target, args["value"])
        equal(advantage, torch.zeros_like(target))

    def test_the_reward_to_go_is_the_td_one_return_of_a_worthless_future(
        self, shape: tuple[int, ...], time_dim: int, device: str
    ) -> None:
        args = on(device, draw("reward_to_go", shape, time_dim))
        (rest,) = run("reward_to_go", args, time_dim)
        worthless = args | {"next_value": torch.zeros_like(args["reward"]), "lmbda": 1.0}
        equal(rest, run("td_lambda_return", worthless, time_dim)[0])

    def test_without_discount_the_reward_to_go_is_a_reverse_cumulative_sum(
        self, shape: tuple[int, ...], time_dim: int, device: str
    ) -> None:
        reward = torch.randn(shape, dtype=torch.float64, device=device)
        done = torch.zeros(shape, dtype=torch.bool, device=device)
        rest = kernels.reward_to_go(reward, done, gamma=1.0, time_dim=time_dim)
        equal(rest, reward.flip(time_dim).cumsum(time_dim).flip(time_dim))
        nothing = torch.zeros_like(reward)
        advantage, _ = kernels.gae(reward, nothing, nothing, done, gamma=1.0, lmbda=1.0, time_dim=time_dim)
        equal(advantage, rest)

    def test_a_geometric_series_sums_as_it_should(self, shape: tuple[int, ...], time_dim: int, device: str) -> None:
        reward = torch.ones(shape, dtype=torch.float64, device=device)
        done = torch.zeros(shape, dtype=torch.bool, device=device)
        rest = kernels.reward_to_go(reward, done, gamma=0.9, time_dim=time_dim)
        left = torch.arange(shape[time_dim], 0, -1, dtype=torch.float64, device=device)
        left = left.reshape([-1] + [1] * (len(shape) - 1 - time_dim % len(shape)))
        equal(rest, ((1 - 0.9**left) / (1 - 0.9)).expand(shape))

    def test_gae_is_the_general_recurrence_on_the_one_step_error(
        self, shape: tuple[int, ...], time_dim: int, device: str
    ) -> None:
        args = on(device, draw("gae", shape, time_dim, discounts="step"))
        delta = args["reward"] + args["gamma"] * args["next_value"].masked_fill(args["terminated"], 0.0) - args["value"]
        a = (args["gamma"] * args["lmbda"]).masked_fill(args["done"], 0.0)
        equal(run("gae", args, time_dim)[0], kernels.linear_recurrence(a, delta, time_dim=time_dim))

    def test_forwards_is_backwards_in_a_mirror(self, shape: tuple[int, ...], time_dim: int, device: str) -> None:
        args = on(device, draw("linear_recurrence_forwards", shape, time_dim))
        (forwards,) = run("linear_recurrence_forwards", args, time_dim)
        mirrored = args | {name: args[name].flip(time_dim) for name in ("a", "b")}
        equal(forwards, run("linear_recurrence_carried", mirrored, time_dim)[0].flip(time_dim))


@pytest.mark.parametrize(("shape", "time_dim"), SHAPES, ids=str)
@pytest.mark.parametrize("op", ["linear_recurrence_carried", "linear_recurrence_forwards"])
def test_splitting_a_trajectory_and_passing_the_carry_is_not_splitting(
    op: str, shape: tuple[int, ...], time_dim: int, device: str
) -> None:
    args = on(device, draw(op, shape, time_dim, ends=0.05))
    (whole,) = run(op, args, time_dim)
    for at in (1, 9, shape[time_dim] - 1):
        parts = [
            {"a": a, "b": b}
            for a, b in zip(*(args[n].split([at, shape[time_dim] - at], time_dim) for n in ("a", "b")), strict=True)
        ]
        forwards = op.endswith("forwards")
        first, second = (0, 1) if forwards else (1, 0)
        done: dict[int, Tensor] = {}
        (done[first],) = run(op, parts[first] | {"carry": args["carry"]}, time_dim)
        carry = done[first].select(time_dim, -1 if forwards else 0)
        (done[second],) = run(op, parts[second] | {"carry": carry}, time_dim)
        equal(torch.cat([done[0], done[1]], time_dim), whole)


@pytest.mark.parametrize("op", [op for op in ALL if not op.startswith("linear_recurrence_")])
def test_trajectories_in_a_row_are_as_good_as_each_for_itself(op: str, device: str) -> None:
    lengths = (1, 17, 40, 8, 63)
    args = on(device, draw(op, (3, sum(lengths)), discounts="step", ends=0.05))
    ends = torch.tensor(lengths).cumsum(0) - 1
    if op == "linear_recurrence":
        args["a"][:, ends] = 0.0
    else:
        args["done"][:, ends] = True
    together = run(op, args, -1)
    each = [
        run(op, {name: x[:, end + 1 - n : end + 1] for name, x in args.items()}, -1)
        for n, end in zip(lengths, ends.tolist(), strict=True)
    ]
    for whole, parts in zip(together, zip(*each, strict=True), strict=True):
        equal(torch.cat(parts, -1), whole)


@pytest.mark.parametrize("padding", [0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("op", WITH_FLAGS)
def test_what_pads_a_trajectory_never_matters(op: str, padding: float, device: str) -> None:
    args = on(device, draw(op, (3, 30), discounts="step"))
    args["done"][:, -1] = True
    wanted = run(op, args, -1)
    padded = {
        name: torch.cat([x, torch.full((3, 13), False if x.dtype is torch.bool else padding, device=device).to(x)], -1)
        for name, x in args.items()
    }
    for actual, expected in zip(run(op, padded, -1), wanted, strict=True):
        equal(actual[:, :30], expected)


@pytest.mark.parametrize("op", ALL)
def test_lanes_know_nothing_of_each_other(op: str, device: str) -> None:
    args = on(device, draw(op, (19, 40), discounts="step"))
    together = run(op, args, -1)
    shuffled = torch.randperm(19)
    apart = run(op, {name: x[shuffled] for name, x in args.items()}, -1)
    for whole, part in zip(together, apart, strict=True):
        equal(whole[shuffled.to(device)], part)


@pytest.mark.parametrize("op", ALL)
def test_the_memory_layout_does_not_change_the_numbers(op: str, device: str) -> None:
    args = on(device, draw(op, (19, 40), discounts="step"))
    other = {name: x.t() if x.dim() == 2 else x for name, x in args.items()}
    dense = {name: x.contiguous() for name, x in other.items()}
    for here, there, copied in zip(run(op, args, 1), run(op, other, 0), run(op, dense, 0), strict=True):
        equal(here, there.t())
        equal(here, copied.t())


@pytest.mark.parametrize(
    "op", [op for op in BOOTSTRAPPING if op != "vtrace"] + ["reward_to_go", "linear_recurrence_carried"]
)
def test_results_are_linear_in_rewards_and_values(op: str, device: str) -> None:
    args = on(device, draw(op, (3, 50), discounts="step"))
    names = [name for name in (*DATA[op], "carry") if name in args and name != "a"]
    tripled = run(op, args | {name: 3 * args[name] for name in names}, -1)
    for actual, once in zip(tripled, run(op, args, -1), strict=True):
        equal(actual, 3 * once)
