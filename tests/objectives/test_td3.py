"""TD3Loss: the formula, its options, and TorchRL's numbers. What it shares with DDPG and REDQ is in test_off_policy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchrl.objectives as peer
from torch import Tensor
from torchrl.data import Bounded, Composite

from tritonrl.objectives.ddpg import DDPGLoss
from tritonrl.objectives.td3 import TD3Loss

from .off_policy_cases import (
    ACTION,
    as_double,
    backward,
    check_parity,
    deterministic_actor,
    make_qvalue,
    perturb_targets,
    run,
    tanh_normal_actor,
    transitions,
)

pytestmark = pytest.mark.filterwarnings("ignore")


def build(cls: Any = TD3Loss, actor: Any = deterministic_actor, **kwargs: Any) -> Any:
    if "action_spec" not in kwargs:
        kwargs.setdefault("bounds", (-0.6, 0.6))
    return cls(actor(), make_qvalue(), **kwargs)


def moved(**kwargs: Any) -> TD3Loss:
    loss = build(**kwargs)
    perturb_targets(loss)
    return loss


def member(loss: TD3Loss, name: str, index: int, observation: Tensor, action: Tensor) -> float:
    """Critic ``index`` on one step, written out by hand."""
    x = torch.cat([observation, action])
    params = loss._modules[name]["module", "network"]
    hidden = (params["0", "weight"][index] @ x + params["0", "bias"][index]).tanh()
    return (params["2", "weight"][index] @ hidden + params["2", "bias"][index]).item()


def act(loss: TD3Loss, name: str, observation: Tensor) -> Tensor:
    params = loss._modules[name]["module", "0"]
    hidden = (params["0", "weight"] @ observation + params["0", "bias"]).tanh()
    return (params["2", "weight"] @ hidden + params["2", "bias"]).tanh()


# -- the formula --------------------------------------------------------------------------------------------------


def test_every_term_is_what_the_paper_says_step_by_step() -> None:
    low, high = [-0.6, -0.2, -0.6], [0.6, 0.3, 0.1]
    loss = TD3Loss(
        deterministic_actor().double(),
        make_qvalue().double(),
        bounds=(low, high),
        num_qvalue_nets=3,
        policy_noise=0.3,
        noise_clip=0.25,
        loss_function="l1",
    )
    perturb_targets(loss)
    data = as_double(transitions(n_step=True))
    torch.manual_seed(11)
    noise = torch.randn_like(data["action"])
    actor_terms, distances, errors = [], [], []
    for step, draw in zip(data.unbind(0), noise, strict=True):
        observation, following = step["observation"], step["next", "observation"]
        actor_terms.append(
            -member(loss, "qvalue_network_params", 0, observation, act(loss, "actor_network_params", observation))
        )
        action = act(loss, "target_actor_network_params", following)
        for i in range(ACTION):
            jittered = action[i] + max(-0.25, min(0.25, 0.3 * float(draw[i])))
            action[i] = min(high[i], max(low[i], float(jittered)))
        target = float(step["next", "reward"])
        if not step["next", "terminated"]:
            values = [member(loss, "target_qvalue_network_params", i, following, action) for i in range(3)]
            target += 0.99 ** int(step["steps_to_next_obs"]) * min(values)
        distance = [
            abs(member(loss, "qvalue_network_params", i, observation, step["action"]) - target) for i in range(3)
        ]
        distances.append(sum(distance))
        errors.append(max(distance) ** 2)
    out, written, _ = run(loss, data)
    # The bounds are in single precision.
    assert out["loss_actor"].item() == pytest.approx(sum(actor_terms) / 7, rel=1e-9)
    assert out["loss_qvalue"].item() == pytest.approx(sum(distances) / 7, rel=1e-6)
    assert written["td_error"].tolist() == pytest.approx(errors, rel=1e-6)


def test_the_actor_is_trained_by_the_first_critic_alone_and_trains_none() -> None:
    loss = moved()
    grads = backward(loss, loss(transitions()))
    assert {name.split(".")[0] for name in grads["loss_actor"]} == {"actor_network_params"}
    assert {name.split(".")[0] for name in grads["loss_qvalue"]} == {"qvalue_network_params"}
    before = loss(transitions())["loss_actor"]
    with torch.no_grad():
        loss.qvalue_network_params["module", "network", "2", "bias"][1].add_(5.0)
    torch.testing.assert_close(loss(transitions())["loss_actor"], before)


def test_without_noise_and_with_one_critic_it_is_ddpg() -> None:
    """The same networks, targets included: DDPG's two losses."""
    td3 = build(num_qvalue_nets=1, policy_noise=0.0, bounds=(-1.0, 1.0), loss_function="l2")
    ddpg = DDPGLoss(deterministic_actor(), make_qvalue(), delay_actor=True)
    with torch.no_grad():
        for name in ("", "target_"):
            ours, theirs = getattr(td3, f"{name}qvalue_network_params"), getattr(ddpg, f"{name}value_network_params")
            for key, value in ours.items(True, True):
                value.copy_(theirs[key].unsqueeze(0))
    for key, other in (("loss_actor", "loss_actor"), ("loss_qvalue", "loss_value"), ("target_value", "target_value")):
        torch.testing.assert_close(td3(transitions())[key], ddpg(transitions())[other])


def test_the_terms_are_available_alone_and_write_nothing() -> None:
    loss, data = moved(), transitions()
    before = set(data.keys(True, True))
    torch.manual_seed(11)
    actor_term, actor_metadata = loss.actor_loss(data)
    value_term, metadata = loss.value_loss(data)
    assert set(data.keys(True, True)) == before
    out, written, _ = run(loss, data)
    torch.testing.assert_close((actor_term, value_term), (out["loss_actor"], out["loss_qvalue"]))
    torch.testing.assert_close(metadata.pop("td_error").amax(0), written["td_error"])
    torch.testing.assert_close({**actor_metadata, **metadata}, {k: out[k] for k in (*actor_metadata, *metadata)})
    theirs = build(peer.TD3Loss)
    assert set(theirs.value_loss(data)[1].keys()) - {"td_error"} == set(metadata)
    assert set(theirs.actor_loss(data)[1].keys()) == set(actor_metadata)


def test_an_actor_that_draws_its_action_is_used_at_its_deterministic_one() -> None:
    loss = moved(actor=tanh_normal_actor, policy_noise=0.0)
    outs = [run(loss, transitions(), seed)[0] for seed in (1, 2)]
    for key in ("loss_actor", "loss_qvalue"):
        torch.testing.assert_close(outs[0][key], outs[1][key], rtol=0, atol=0)


def test_the_noise_can_be_annealed_and_is_not_part_of_the_state() -> None:
    loss = moved()
    before = loss.policy_noise
    loss.policy_noise = 0.0
    assert loss.policy_noise is before
    torch.testing.assert_close(
        run(loss, transitions())[0]["target_value"], run(moved(policy_noise=0.0), transitions())[0]["target_value"]
    )
    loss.policy_noise, loss.noise_clip = 5.0, 0.0
    torch.testing.assert_close(
        run(loss, transitions())[0]["target_value"], run(moved(policy_noise=0.0), transitions())[0]["target_value"]
    )
    assert not {"policy_noise", "noise_clip"} & set(loss.state_dict())


@pytest.mark.parametrize("name", ["policy_noise", "noise_clip"])
def test_a_negative_noise_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must not be negative, got -0.1"):
        build(**{name: -0.1})


# -- TorchRL ------------------------------------------------------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [
    {},
    {"loss_function": "l1"},
    {"loss_function": "l2"},
    {"num_qvalue_nets": 1},
    {"num_qvalue_nets": 5},
    {"policy_noise": 0.7, "noise_clip": 0.3},
    {"policy_noise": 0.0},
    {"delay_actor": False},
    {"delay_qvalue": False},
    {"delay_actor": False, "delay_qvalue": False},
    {"reduction": "none"},
    {"reduction": "sum"},
    {"separate_losses": True},
    {"deactivate_vmap": True},
    {"use_prioritized_weights": False},
    {"use_prioritized_weights": True},
    {"action_spec": Bounded(-0.4, 0.7, (ACTION,))},
    {"action_spec": Composite(action=Bounded(-0.4, 0.7, (2, ACTION)), shape=(2,))},
    {"bounds": (torch.tensor([-0.1, -0.2, -0.3]), torch.tensor([0.1, 0.9, 0.3]))},
]


@pytest.mark.parametrize("kwargs", OPTIONS, ids=str)
def test_every_option_gives_the_numbers_of_torchrl(kwargs: dict[str, Any]) -> None:
    for data in (transitions(), transitions(n_step=True, weights=True, batch=(2, 3))):
        check_parity(lambda cls: build(cls, **kwargs), TD3Loss, peer.TD3Loss, data)


@pytest.mark.parametrize("weights", [False, True])
def test_masks_give_the_numbers_of_torchrl(weights: bool) -> None:
    check_parity(build, TD3Loss, peer.TD3Loss, transitions(mask=True, weights=weights))


def test_an_actor_that_draws_its_action_gives_the_numbers_of_torchrl() -> None:
    check_parity(lambda cls: build(cls, tanh_normal_actor), TD3Loss, peer.TD3Loss, transitions())


@pytest.mark.parametrize(
    "kwargs", [{"bounds": None}, {"action_spec": Bounded(-1, 1, (3,)), "bounds": (-1, 1)}, {"bounds": (1, -1)}], ids=str
)
def test_bounds_that_are_none_are_refused_as_in_torchrl(kwargs: dict[str, Any]) -> None:
    for cls in (TD3Loss, peer.TD3Loss):
        with pytest.raises(ValueError, match="bound"):
            build(cls, **kwargs)


# -- differences --------------------------------------------------------------------------------------------------


def test_differently_whole_bounds_do_not_turn_the_action_into_whole_numbers() -> None:
    ours, theirs = build(bounds=(-1, 1)), build(peer.TD3Loss, bounds=(-1, 1))
    assert (ours.max_action.dtype, theirs.max_action.dtype) == (torch.float32, torch.int64)


def test_differently_bounds_of_another_precision_do_not_change_that_of_the_action() -> None:
    ones = torch.ones(ACTION, dtype=torch.float64)
    bounds = -ones, ones
    assert build(bounds=bounds)(transitions())["target_value"].dtype == torch.float32


def test_the_bounds_follow_the_loss_to_another_precision() -> None:
    loss = build().double()
    assert loss(as_double(transitions()))["loss_qvalue"].dtype == torch.float64
    assert loss.max_action.shape == ()
