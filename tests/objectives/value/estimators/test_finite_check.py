"""The debug switch: off nothing changes; on, NaN and infinity are refused by name before anything is written."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor

from tritonrl.objectives import ClipPPOLoss
from tritonrl.objectives.value import (
    GAE,
    MultiAgentGAE,
    TD0Estimator,
    TD1Estimator,
    TDLambdaEstimator,
    ValueEstimatorBase,
    VTrace,
    check_finite,
)

from ...ppo_cases import make_critic, normal_actor, rollout

BATCH = (3, 5)
LAMBDA = (GAE, MultiAgentGAE, TDLambdaEstimator)
EVERY = pytest.mark.parametrize("cls", [GAE, TD0Estimator, TD1Estimator, TDLambdaEstimator, VTrace])


def build(cls: Any, **options: Any) -> ValueEstimatorBase:
    options = {"value_network": make_critic(), **options}
    return cls(gamma=0.9, **({"lmbda": 0.8} if cls in LAMBDA else {}), **options)


def estimator(cls: Any, **options: Any) -> ValueEstimatorBase:
    return build(cls, **({"actor_network": normal_actor()} if cls is VTrace else {}), **options)


def spoilt(key: Any, value: float = torch.nan, at: tuple[int, ...] = (1, 2, 0)) -> TensorDict:
    data = rollout(batch=BATCH, advantage=False)
    data[key][at] = value
    return data


def snapshot(data: TensorDict) -> dict[Any, tuple[Tensor, int]]:
    return {key: (value, value._version) for key, value in data.items(True, True)}


@EVERY
def test_a_nan_in_the_reward_is_refused_by_name_number_and_place_and_nothing_is_written(cls: Any) -> None:
    data = spoilt(("next", "reward"))
    data["next", "reward"][2, 4, 0] = -torch.inf
    before = snapshot(data)
    message = (
        r"^\('next', 'reward'\) of shape \(3, 5, 1\): 2 of 15 elements are not finite; the first is nan at \[1, 2, 0\]"
    )
    with check_finite(), pytest.raises(FloatingPointError, match=message):
        estimator(cls)(data)
    assert snapshot(data) == before


@EVERY
def test_it_is_off_by_default_and_off_again_after_the_block_even_when_that_raised(cls: Any) -> None:
    subject, data = estimator(cls), spoilt(("next", "reward"))
    assert subject(data)["value_target"].isnan().any()
    with pytest.raises(FloatingPointError), check_finite():
        subject(data)
    assert subject(data)["value_target"].isnan().any()
    with check_finite(), check_finite(enabled=False):
        subject(data)


@EVERY
def test_finite_data_give_the_same_with_it_and_without(cls: Any) -> None:
    subject = estimator(cls)
    expected = subject(rollout(batch=BATCH, advantage=False))
    with check_finite():
        torch.testing.assert_close(subject(rollout(batch=BATCH, advantage=False)).to_dict(), expected.to_dict())


def test_a_value_of_the_network_is_refused_by_its_name() -> None:
    with check_finite(), pytest.raises(FloatingPointError, match=r"'state_value'.*1 of 15 elements is not finite"):
        estimator(GAE)(spoilt("observation"))


def test_a_next_value_counts_unless_the_step_terminated() -> None:
    def run(terminated: bool) -> Tensor:
        data = rollout(batch=BATCH, advantage=False)
        data["state_value"] = torch.zeros(*BATCH, 1)
        data["next", "state_value"] = torch.zeros(*BATCH, 1)
        data["next", "state_value"][1, 1] = torch.inf
        data["next", "terminated"][1, 1] = data["next", "done"][1, 1] = terminated
        with check_finite():
            return estimator(GAE, value_network=None)(data)["value_target"]

    assert run(terminated=True).isfinite().all()
    with pytest.raises(FloatingPointError, match=r"\('next', 'state_value'\).*inf at \[1, 1, 0\]"):
        run(terminated=False)


@pytest.mark.parametrize("cls", [GAE, TD0Estimator, TD1Estimator, TDLambdaEstimator])
def test_padding_may_hold_anything(cls: Any) -> None:
    data = rollout(batch=BATCH, advantage=False)
    data["mask"] = torch.arange(5).expand(BATCH) < 3
    for key in ("observation", ("next", "observation"), ("next", "reward")):
        data[key][:, 3:] = torch.nan
    with check_finite():
        assert estimator(cls, valid_key="mask")(data)["value_target"].isfinite().all()


def test_a_result_that_overflows_is_refused_though_all_inputs_are_finite() -> None:
    data = spoilt(("next", "reward"), 3e38)
    data["next", "reward"][1] = 3e38
    data["next", "done"][:] = data["next", "terminated"][:] = False
    before = snapshot(data)
    with check_finite(), pytest.raises(FloatingPointError, match=r"^'(advantage|value_target)' of shape.*inf at \[1, "):
        estimator(TD1Estimator)(data)
    assert snapshot(data) == before


@pytest.mark.parametrize("cls", [GAE, TD0Estimator, TD1Estimator, TDLambdaEstimator])
def test_the_bare_value_estimate_is_checked_too(cls: Any) -> None:
    data = spoilt(("next", "reward"))
    before = snapshot(data)
    with check_finite(), pytest.raises(FloatingPointError, match="reward"):
        estimator(cls).value_estimate(data)
    assert snapshot(data) == before


def test_entries_of_agents_and_renamed_ones_are_named_as_they_are() -> None:
    critic = TensorDictModule(torch.nn.Linear(2, 1), [("agents", "obs")], [("agents", "state_value")])
    subject = build(MultiAgentGAE, value_network=critic)
    subject.set_keys(value=("agents", "state_value"), reward=("agents", "reward"))
    agents = {"obs": torch.randn(3, 5, 4, 2), "reward": torch.randn(3, 5, 4, 1)}
    agents["reward"][0, 1, 2, 0] = torch.nan
    step = {"agents": agents, "done": torch.zeros(3, 5, 1, dtype=torch.bool)}
    data = TensorDict({"agents": {"obs": torch.randn(3, 5, 4, 2)}, "next": step}, BATCH)
    with (
        check_finite(),
        pytest.raises(FloatingPointError, match=r"\('next', 'agents', 'reward'\).*\[0, 1, 2, 0\]"),
    ):
        subject(data)


def test_a_loss_that_computes_its_advantage_is_checked_with_it() -> None:
    with check_finite(), pytest.raises(FloatingPointError, match="reward"):
        ClipPPOLoss(normal_actor(), make_critic())(spoilt(("next", "reward")))


def test_compiled_it_is_one_graph_while_off_and_breaks_there_while_on() -> None:
    torch._dynamo.reset()
    subject = estimator(GAE)
    whole = torch.compile(subject, fullgraph=True, backend="eager")
    whole(rollout(batch=BATCH, advantage=False))
    with torch._dynamo.config.patch(error_on_recompile=True):
        whole(rollout(batch=BATCH, advantage=False))
    with check_finite():
        with pytest.raises(torch._dynamo.exc.Unsupported, match=r"check_finite\(\) is on"):
            whole(rollout(batch=BATCH, advantage=False))
        with pytest.raises(FloatingPointError, match="reward"):
            torch.compile(subject, backend="eager")(spoilt(("next", "reward")))
    with torch._dynamo.config.patch(error_on_recompile=True):
        whole(rollout(batch=BATCH, advantage=False))
    torch._dynamo.reset()


@pytest.mark.parametrize(("value", "on"), [("1", True), ("0", False)])
def test_the_environment_turns_it_on_for_a_whole_process(value: str, on: bool) -> None:
    code = "from tritonrl.objectives.value.estimators import finite_check; print(finite_check._on)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"TRITONRL_DEBUG_FINITE": value}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(on)
