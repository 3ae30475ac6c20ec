"""Log-probabilities of stored actions and what importance weighting makes of them."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import CompositeDistribution, set_composite_lp_aggregate
from torch.distributions import Categorical, Independent, Normal

from tritonrl.objectives.log_weight import LogWeight, behaviour_log_prob, cap_correction, log_prob_of_action

B = (5, 7)


def normal_log_density(x: float, loc: float, scale: float) -> float:
    return -0.5 * ((x - loc) / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)


def composite() -> tuple[CompositeDistribution, TensorDict]:
    params = TensorDict(
        {"move": {"loc": torch.randn(*B, 3), "scale": torch.rand(*B, 3) + 0.5}, "gear": {"logits": torch.randn(*B, 4)}},
        B,
    )
    distribution = CompositeDistribution(
        params,
        {"move": Normal, "gear": Categorical},
        name_map={"move": ("agent", "move"), "gear": ("agent", "gear")},
    )
    return distribution, distribution.sample().set("params", params)


def test_a_composite_action_has_the_sum_of_the_log_probabilities_of_its_heads() -> None:
    distribution, data = composite()
    result = log_prob_of_action(distribution, data, [("agent", "move"), ("agent", "gear")])
    assert result.shape == B
    loc, scale = data["params", "move", "loc"][1, 2].tolist(), data["params", "move", "scale"][1, 2].tolist()
    move = data["agent", "move"][1, 2].tolist()
    expected = sum(normal_log_density(x, m, s) for x, m, s in zip(move, loc, scale, strict=True))
    logits = data["params", "gear", "logits"][1, 2]
    expected += (logits - logits.logsumexp(0))[data["agent", "gear"][1, 2]].item()
    assert result[1, 2].item() == pytest.approx(expected, rel=1e-5)


def test_a_composite_log_probability_does_not_depend_on_tensordicts_aggregation_switch() -> None:
    distribution, data = composite()
    keys = [("agent", "move"), ("agent", "gear")]
    plain = log_prob_of_action(distribution, data, keys)
    with set_composite_lp_aggregate(True):
        torch.testing.assert_close(log_prob_of_action(distribution, data, keys), plain)
    assert ("agent", "move_log_prob") not in data.keys(True)


def test_stored_log_probabilities_of_the_heads_are_summed() -> None:
    log_prob = torch.randn(B)
    move, gear = torch.randn(*B, 3), torch.randn(B)
    data = TensorDict({"move_log_prob": move, "gear_log_prob": gear}, B)
    result = behaviour_log_prob(data, ["move_log_prob", "gear_log_prob"], log_prob)
    torch.testing.assert_close(result, move.sum(-1) + gear)


def test_a_distribution_over_tokens_keeps_its_token_dimension() -> None:
    data = TensorDict({"action": torch.randn(*B, 3)}, B)
    assert log_prob_of_action(Normal(torch.zeros(*B, 3), 1.0), data, "action").shape == (*B, 3)
    assert log_prob_of_action(Independent(Normal(torch.zeros(*B, 3), 1.0), 1), data, ["action"]).shape == B


@pytest.mark.parametrize("entry", ["action", "action_log_prob"])
def test_a_stored_entry_that_requires_grad_is_refused(entry: str) -> None:
    data = TensorDict({"action": torch.randn(6), "action_log_prob": torch.randn(6)}, [6])
    data[entry].requires_grad_()
    with pytest.raises(RuntimeError, match=f"'{entry}'.*requires grad"):
        log_prob = log_prob_of_action(Normal(torch.zeros(6), 1.0), data, "action")
        behaviour_log_prob(data, "action_log_prob", log_prob)


@pytest.mark.parametrize("entry", ["action", "action_log_prob"])
def test_a_missing_stored_entry_is_named(entry: str) -> None:
    data = TensorDict({"action": torch.randn(6), "action_log_prob": torch.randn(6)}, [6]).exclude(entry)
    with pytest.raises(KeyError, match=f"'{entry}' was not found"):
        log_prob = log_prob_of_action(Normal(torch.zeros(6), 1.0), data, "action")
        behaviour_log_prob(data, "action_log_prob", log_prob)


def test_several_actions_need_a_composite_distribution() -> None:
    with pytest.raises(ValueError, match=r"\['a', 'b'\].*Normal"):
        log_prob_of_action(Normal(torch.zeros(6), 1.0), TensorDict({}, [6]), ["a", "b"])


def test_a_stored_log_probability_with_a_trailing_one_is_no_outer_product() -> None:
    log_prob = torch.randn(6)
    data = TensorDict({"action_log_prob": torch.randn(6, 1)}, [6])
    assert torch.equal(behaviour_log_prob(data, "action_log_prob", log_prob), data["action_log_prob"].squeeze(-1))


def test_a_stored_log_probability_of_another_shape_is_refused_with_both_shapes() -> None:
    data = TensorDict({"action_log_prob": torch.randn(6)}, [6])
    with pytest.raises(ValueError, match=r"\(6,\).*\(6, 3\)"):
        behaviour_log_prob(data, "action_log_prob", torch.randn(6, 3))


def test_the_weight_never_exceeds_the_limit_and_keeps_its_gradient() -> None:
    ratio = (torch.randn(50, 1, dtype=torch.float64) * 2).requires_grad_()
    correction = torch.randn(50, 1, dtype=torch.float64)
    limit = torch.tensor(1.3, dtype=torch.float64)
    for given_correction in (None, correction):
        capped = LogWeight(ratio, cap_correction(ratio, given_correction, limit))
        plain = LogWeight(ratio, given_correction).total.exp()
        torch.testing.assert_close(capped.total.exp(), plain.clamp_max(1.3))
        (gradient,) = torch.autograd.grad(capped.total.sum(), ratio)
        assert (gradient == 1).all()


def test_no_limit_and_no_correction_is_the_ratio_itself() -> None:
    ratio = torch.randn(6, 1)
    assert cap_correction(ratio, None, None) is None
    weight = LogWeight(ratio, None)
    assert weight.total is ratio
    assert weight.corrected(ratio) is ratio
