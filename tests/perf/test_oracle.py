"""The oracle against autograd through torch loops written down here a second time, and against identities."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from perf import oracle
from perf.cases import Case
from perf.data import LAYOUTS, Problem, make_problem
from perf.ops import OPS
from perf.peers.steps import SOLVE, log_step_scan, sequential_scan


def _problem(op: str, layout: str = "NT", variants: tuple[str, ...] = (), lanes: int = 8, steps: int = 13) -> Problem:
    return make_problem(Case(op, "classic", lanes, steps, layout, "float64", 0.3, variants), "cpu")


@pytest.mark.parametrize("scan", [sequential_scan, log_step_scan])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_values_and_gradients_agree_with_autograd_through_a_torch_loop(op: str, layout: str, scan: object) -> None:
    problem = _problem(op, layout).requiring_grad()
    results = SOLVE[op](scan, **problem.arguments)  # type: ignore[arg-type]
    for result, exact in zip(results, oracle.answer(problem), strict=True):
        torch.testing.assert_close(result, exact)
    incoming = tuple(torch.randn(problem.shape, dtype=torch.float64) for _ in results)
    leaves = [problem.arguments[name] for name in OPS[op].differentiated]
    grads = torch.autograd.grad(results, leaves, incoming)
    for grad, exact in zip(grads, oracle.gradient(problem, incoming), strict=True):
        torch.testing.assert_close(grad, exact)


@pytest.mark.parametrize("variants", [("one_flag",), ("gamma_steps", "lmbda_steps")])
def test_the_variants_of_gae_agree_too(variants: tuple[str, ...]) -> None:
    problem = _problem("gae", variants=variants)
    for result, exact in zip(SOLVE["gae"](sequential_scan, **problem.arguments), oracle.answer(problem), strict=True):
        torch.testing.assert_close(result, exact)


def _on_one_trajectory(problem: Problem) -> Problem:
    """The next value of a step that goes on is the value of the following one: only then do the sums below telescope."""
    value, next_value, done = (problem.arguments[name] for name in ("value", "next_value", "done"))
    ahead = torch.cat([value[:, 1:], next_value[:, -1:]], 1)
    return problem.with_arguments(next_value=torch.where(done, next_value, ahead))


def _td1_of(problem: Problem) -> Tensor:
    shared = {name: problem.arguments[name] for name in ("reward", "next_value", "done", "terminated")}
    (returns,) = oracle.answer(_problem("td1_return").with_arguments(**shared))
    return returns


def test_gae_at_lambda_one_is_the_td1_return_minus_the_value() -> None:
    gae = _on_one_trajectory(_problem("gae").with_arguments(lmbda=1.0))
    torch.testing.assert_close(oracle.answer(gae)[0], _td1_of(gae) - gae.arguments["value"])


def test_vtrace_on_policy_without_clipping_is_the_td1_return() -> None:
    vtrace = _on_one_trajectory(_problem("vtrace"))
    vtrace = vtrace.with_arguments(log_mu=vtrace.arguments["log_pi"])
    torch.testing.assert_close(oracle.answer(vtrace)[1], _td1_of(vtrace))


def test_discounts_are_not_rounded_to_single_precision() -> None:
    problem = _problem("reward_to_go", lanes=1, steps=2)
    going_on, ones = torch.zeros(1, 2, dtype=torch.bool), torch.ones(1, 2, dtype=torch.float64)
    (returns,) = oracle.answer(problem.with_arguments(done=going_on, reward=ones))
    assert returns[0, 0].item() == 1 + 0.99


def test_the_gradient_of_a_single_step_is_known_by_hand() -> None:
    problem = _problem("gae", lanes=1, steps=1)
    flag = torch.zeros(1, 1, dtype=torch.bool)
    problem = problem.with_arguments(done=flag, terminated=flag)
    one: Tensor = torch.ones(1, 1, dtype=torch.float64)
    reward, value, next_value = oracle.gradient(problem, (one, 2 * one))
    assert (reward.item(), value.item(), next_value.item()) == (3.0, -1.0, pytest.approx(3 * 0.99))
