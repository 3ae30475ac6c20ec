"""The gate lets nothing wrong be timed, absent peers are named, and samples are taken in turns."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch

from perf.cases import Case
from perf.clocks import clocks_for
from perf.data import Problem
from perf.gate import TOLERANCE, judge
from perf.ops import Outputs, as_tuple, kernel_of
from perf.peers import PEERS, NotServed, Peer
from perf.peers.rlox_peer import Rlox
from perf.records import ABSENT, FAILED, LEFT_OUT, TIMED, WRONG
from perf.runner import Settings, _turns, run_case

SHORT = Settings(seconds=1e-3, least=2, most=3)
CASE = Case("gae", "classic", 4, 9, done=0.2)


class _Changed(Peer):
    """Ours, with the results changed by a function."""

    name = "changed"

    def __init__(self, change: Any) -> None:
        self.change = change

    def bind(self, problem: Problem) -> Any:
        def call() -> Outputs:
            return self.change(as_tuple(kernel_of(problem.op)(**problem.arguments)))  # type: ignore[no-any-return]

        return call


def _off_in_one_place(results: Outputs) -> Outputs:
    advantage = results[0].clone()
    advantage[-1, 0] += 0.01
    return advantage, results[1]


def _nan_in_one_place(results: Outputs) -> Outputs:
    advantage = results[0].clone()
    advantage[0, 3] = math.nan
    return advantage, results[1]


@pytest.mark.parametrize(
    "change",
    [_off_in_one_place, _nan_in_one_place, lambda r: r[:1], lambda r: (r[1], r[0]), lambda r: (r[0].t(), r[1])],
    ids=["one number off", "one NaN", "an output missing", "outputs swapped", "transposed"],
)
def test_a_wrong_implementation_is_reported_and_not_timed(change: Any) -> None:
    ours, wrong = run_case(CASE, "cpu", [_Changed(change)], SHORT)
    assert ours.status == TIMED and ours.clocks and ours.clone
    assert wrong.status == WRONG and not wrong.clocks and wrong.reason


def test_a_wrong_gradient_is_caught() -> None:
    class NoGradientOfRewards(_Changed):
        def bind(self, problem: Problem) -> Any:
            detached = problem.arguments | {"reward": problem.arguments["reward"].detach()}
            shifted = problem.arguments["reward"]

            def call() -> Outputs:
                results = as_tuple(kernel_of(problem.op)(**detached))
                return tuple(x + (shifted - shifted.detach()) for x in results)

            return call

    case = Case("gae", "classic", 4, 9, done=0.2, direction="backward")
    ours, wrong = run_case(case, "cpu", [NoGradientOfRewards(None)], SHORT)
    assert ours.status == TIMED
    assert wrong.status == WRONG and "gradient of reward" in wrong.reason


def test_our_own_wrong_result_is_not_timed_either() -> None:
    (ours,) = run_case(CASE, "cpu", [], SHORT, ours=_Changed(_off_in_one_place))
    assert ours.status == WRONG and not ours.clocks


def test_a_peer_that_raises_refuses_or_is_not_installed_is_named_with_the_reason() -> None:
    class Raises(Peer):
        name = "raises"

        def bind(self, problem: Problem) -> Any:
            raise ZeroDivisionError("of course")

    class Refuses(Peer):
        name = "refuses"

        def bind(self, problem: Problem) -> Any:
            raise NotServed("not today")

    class Missing(Peer):
        name = "missing"
        package = "no_such_package_anywhere"

    class ForwardOnly(Peer):
        name = "forward only"
        differentiable = False

    case = Case("reward_to_go", "classic", 4, 9, direction="backward")
    results = {r.contender: r for r in run_case(case, "cpu", [Raises(), Refuses(), Missing(), ForwardOnly()], SHORT)}
    seen = {name: (r.status, r.reason) for name, r in results.items() if name != "tritonrl"}
    assert seen == {
        "raises": (FAILED, "ZeroDivisionError: of course"),
        "refuses": (LEFT_OUT, "not today"),
        "missing": (ABSENT, "no_such_package_anywhere is not installed"),
        "forward only": (LEFT_OUT, "has no gradient"),
    }


@pytest.mark.parametrize("layout", ["NT", "TN", "NTF"])
@pytest.mark.parametrize("op", ["gae", "td_lambda_return", "vtrace", "linear_recurrence"])
def test_no_peer_that_is_installed_is_wrong(op: str, layout: str) -> None:
    case = Case(op, "classic", 8, 12, layout, done=0.2)
    for result in run_case(case, "cpu", [peer for peer in PEERS if not peer.compiles], SHORT):
        assert result.status in (TIMED, ABSENT, LEFT_OUT), (result.contender, result.reason)


def test_a_smaller_problem_is_labelled_and_has_its_own_bytes() -> None:
    problem_of = Rlox().reduced
    from perf.data import make_problem, minimum_bytes

    problem = make_problem(CASE, "cpu")
    reduced = problem_of(problem)
    assert Rlox.smaller and "terminated" not in reduced.arguments
    assert torch.equal(reduced.arguments["next_value"][:, :-1], problem.arguments["value"][:, 1:])
    assert minimum_bytes(reduced) == minimum_bytes(problem) - problem.steps


def test_peers_have_names_of_their_own() -> None:
    names = [peer.name for peer in PEERS]
    assert len(names) == len(set(names)) and "tritonrl" not in names


def test_every_dtype_of_the_registry_has_a_tolerance() -> None:
    from perf.cases import registry

    dtypes = {case.dtype for device in ("cpu", "cuda") for case in registry(device)}
    assert {getattr(torch, name) for name in dtypes} <= set(TOLERANCE)


def test_the_gate_is_relative_to_the_largest_number() -> None:
    exact = (torch.tensor([1000.0, 1.0], dtype=torch.float64),)
    assert judge((torch.tensor([1000.0, 1.05]),), exact, ("x",), 1e-4).ok
    assert not judge((torch.tensor([1000.0, 1.2]),), exact, ("x",), 1e-4).ok


def test_turns_come_as_often_as_wanted_and_are_spread_over_the_whole_time() -> None:
    order = list(_turns([100, 5, 1]))
    assert Counter(order) == {0: 100, 1: 5, 2: 1}
    places = [i for i, turn in enumerate(order) if turn == 1]
    assert all(15 <= b - a <= 30 for a, b in pairwise(places))


def test_nobody_always_follows_the_same_one() -> None:
    order = list(_turns([50, 50, 50]))
    assert set(pairwise(order)) >= {(a, b) for a in range(3) for b in range(3) if a != b}


def test_a_slow_call_is_sampled_three_times_and_a_fast_one_as_often_as_time_allows() -> None:
    settings = Settings(seconds=0.3, least=5, most=200)
    assert [settings.samples_for(s) for s in (10.0, 0.1, 0.01, 1e-6)] == [3, 5, 30, 200]


def test_each_mode_has_clocks_on_each_device() -> None:
    assert [kind.name for kind in clocks_for("cpu", "eager")] == ["call"]
    eager = {"cold", "warm", "call", "host", "stream", "kernels"}
    for mode, expected in (("eager", eager), ("graph", {"replay", "kernels"})):
        assert {kind.name for kind in clocks_for("cuda", mode)} == expected
