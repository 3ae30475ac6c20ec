"""The oracle against autograd through torch loops written down here a second time, and against identities."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from perf import oracle
from perf.cases import Case
from perf.data import LAYOUTS, Problem, make_problem
from perf.gate import judge
from perf.ops import OPS, as_tuple, kernel_of, unsupported
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


RAGGED_OPS = [op for op in OPS if op != "linear_recurrence"]
_MORE = (("packed",), ("valid",), ("skip",), ("bootstrap",), ("moments",), ("valid", "skip", "bootstrap", "moments"))


def _takes(op: str, variants: tuple[str, ...]) -> bool:
    return op == "gae" or not {"skip", "bootstrap", "moments"} & set(variants)


@pytest.mark.parametrize("variants", [*_MORE, ("packed", "skip", "bootstrap", "moments"), ("packed", "one_flag")])
@pytest.mark.parametrize("layout", ["NT", "NTF"])
@pytest.mark.parametrize("op", RAGGED_OPS)
def test_the_gate_passes_our_ragged_results_and_gradients(op: str, layout: str, variants: tuple[str, ...]) -> None:
    if not _takes(op, variants) or (op == "reward_to_go" and "one_flag" in variants):
        assert unsupported(op, _problem("gae", variants=variants).arguments) or op == "reward_to_go"
        return
    problem = _problem(op, layout, variants, lanes=8, steps=37)
    assert judge(as_tuple(kernel_of(op)(**problem.arguments)), oracle.answer(problem), OPS[op].outputs, 1e-10).ok
    if {"bootstrap", "moments"} & set(variants):
        return
    leaves = problem.requiring_grad()
    results = as_tuple(kernel_of(op)(**leaves.arguments))
    incoming = tuple(torch.randn(problem.shape, dtype=torch.float64) for _ in results)
    grads = torch.autograd.grad(results, [leaves.arguments[name] for name in OPS[op].differentiated], incoming)
    assert judge(grads, oracle.gradient(problem, incoming), OPS[op].differentiated, 1e-10).ok


def test_packed_sequences_are_those_that_are_solved_one_by_one() -> None:
    problem = _problem("gae", variants=("packed", "bootstrap"), lanes=5, steps=7)
    whole, offsets = oracle.answer(problem), problem.arguments["cu_seqlens"].tolist()
    for i, (first, end) in enumerate(pairwise(offsets)):
        alone = {name: problem.arguments[name][None, first:end] for name in ("reward", "value", "done", "terminated")}
        row = problem.arguments["bootstrap_value"][i : i + 1]
        one = _problem("gae", lanes=1, steps=end - first).with_arguments(**alone, bootstrap_value=row)
        for found, wanted in zip(oracle.answer(one), whole, strict=True):
            torch.testing.assert_close(found[0], wanted[first:end])


def test_skipped_tokens_might_as_well_not_be_there() -> None:
    problem = _problem("gae", variants=("skip", "bootstrap"), lanes=1, steps=100)
    kept = ~problem.arguments["skip"][0]
    assert 0 < int(kept.sum()) < 100
    fewer = {name: problem.arguments[name][:, kept] for name in ("reward", "value", "terminated")}
    ends = problem.arguments["done"][0].clone()
    for t in range(98, -1, -1):  # a done on a skipped token cuts behind the last token before it that is not
        if not kept[t + 1] and ends[t + 1]:
            ends[t] = True
    rest = _problem("gae", lanes=1, steps=int(kept.sum())).with_arguments(
        **fewer, done=ends[None, kept], bootstrap_value=problem.arguments["bootstrap_value"]
    )
    for found, wanted in zip(oracle.answer(rest), oracle.answer(problem), strict=True):
        torch.testing.assert_close(found[0], wanted[0, kept])
        assert not wanted[0, ~kept].any()


@pytest.mark.parametrize("which", [0, 1, 2])
def test_moments_that_are_off_do_not_pass_the_gate(which: int) -> None:
    problem = _problem("gae", variants=("skip", "moments"), lanes=4, steps=50)
    exact = oracle.answer(problem)
    wrong = [x.clone() for x in exact]
    wrong[2][which] += 1e-3 * wrong[2][2]
    assert judge(exact, exact, OPS["gae"].outputs, 1e-4).ok
    verdict = judge(wrong, exact, OPS["gae"].outputs, 1e-4)
    assert not verdict.ok and "moments" in verdict.detail
