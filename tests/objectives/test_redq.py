"""REDQLoss: the formula, its options, TorchRL's numbers, where they differ. The rest is in test_off_policy."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchrl.objectives as peer
from tensordict import TensorDict
from tensordict.nn import (
    CompositeDistribution,
    InteractionType,
    NormalParamExtractor,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torchrl.data import Bounded, Composite
from torchrl.modules import TanhNormal

from tritonrl.objectives.redq import REDQLoss

from .off_policy_cases import (
    ACTION,
    BATCH,
    N_ACTIONS,
    OBSERVATION,
    Concatenate,
    as_double,
    backward,
    check_parity,
    deterministic_actor,
    discrete_actor,
    make_qvalue,
    mlp,
    perturb_targets,
    run,
    tanh_normal_actor,
    transitions,
)

pytestmark = pytest.mark.filterwarnings("ignore")


def build(cls: Any = REDQLoss, actor: Callable[[], Any] = tanh_normal_actor, **kwargs: Any) -> Any:
    kwargs = {"num_qvalue_nets": 4, "target_entropy": -3.0, **kwargs}
    return cls(actor(), make_qvalue(), **kwargs)


def moved(**kwargs: Any) -> REDQLoss:
    loss = build(**kwargs)
    perturb_targets(loss)
    return loss


def normal(loc: Tensor, scale: Tensor) -> Independent:
    return Independent(Normal(loc, scale), 1)


def normal_actor(seed: int = 0) -> ProbabilisticTensorDictSequential:
    torch.manual_seed(seed)
    network = nn.Sequential(mlp(OBSERVATION, 2 * ACTION), NormalParamExtractor())
    return ProbabilisticTensorDictSequential(
        TensorDictModule(network, ["observation"], ["loc", "scale"]),
        ProbabilisticTensorDictModule(["loc", "scale"], ["action"], distribution_class=normal),
    )


def critic_by_hand(loss: REDQLoss, name: str, observation: Tensor, action: Tensor) -> Tensor:
    """Every critic on one step, ``[N]``."""
    x = torch.cat([observation, action])
    params = loss._modules[name]["module", "network"]
    hidden = (params["0", "weight"] @ x + params["0", "bias"]).tanh()
    return ((params["2", "weight"] @ hidden.unsqueeze(-1)).squeeze(-1) + params["2", "bias"]).squeeze(-1).detach()


# -- the formula --------------------------------------------------------------------------------------------------


def test_every_term_is_what_the_paper_says_step_by_step() -> None:
    loss = REDQLoss(
        normal_actor().double(),
        make_qvalue().double(),
        num_qvalue_nets=5,
        sub_sample_len=3,
        alpha_init=0.7,
        target_entropy=-1.5,
        loss_function="l2",
    ).double()
    perturb_targets(loss)
    data = as_double(transitions(n_step=True))
    torch.manual_seed(11)
    chosen = torch.randperm(5)[:3]
    noise = torch.randn(2, *BATCH, ACTION, dtype=torch.float64)
    alpha = float(loss.log_alpha.detach().exp())
    terms: dict[str, list[float]] = {"actor": [], "qvalue": [], "alpha": [], "error": [], "log_prob": []}
    policy = loss.actor_network[0]
    for t, step in enumerate(data.unbind(0)):
        actions, log_probs = [], []
        for i, observation in enumerate((step["observation"], step["next", "observation"])):
            with torch.no_grad():
                loc, scale = policy.module(observation)
            action = loc + scale * noise[i, t]
            log_prob = (-0.5 * noise[i, t] ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)).sum().item()
            actions.append(action)
            log_probs.append(log_prob)
            terms["alpha"].append(-alpha * (log_prob - 1.5))
            terms["log_prob"].append(log_prob)
        values = critic_by_hand(loss, "qvalue_network_params", step["observation"], actions[0])
        terms["actor"] += [alpha * log_probs[0] - value for value in values.tolist()]
        target = float(step["next", "reward"])
        if not step["next", "terminated"]:
            following = critic_by_hand(loss, "target_qvalue_network_params", step["next", "observation"], actions[1])
            soft = following[chosen].min().item() - alpha * log_probs[1]
            target += 0.99 ** int(step["steps_to_next_obs"]) * soft
        errors = (critic_by_hand(loss, "qvalue_network_params", step["observation"], step["action"]) - target) ** 2
        terms["qvalue"] += errors.tolist()
        terms["error"].append(errors.max().item())
    out, written, _ = run(loss, data)
    for name in ("actor", "qvalue", "alpha"):
        mean = sum(terms[name]) / len(terms[name])
        assert out[f"loss_{name}"].item() == pytest.approx(mean, rel=1e-6), name
    assert out["entropy"].item() == pytest.approx(-sum(terms["log_prob"]) / 14, rel=1e-9)
    assert written["td_error"].tolist() == pytest.approx(terms["error"], rel=1e-6)


def test_with_all_critics_the_target_is_the_minimum_over_all() -> None:
    loss = moved()
    loss.sub_sample_len = 4
    assert torch.equal(loss._select_critics(), torch.arange(4))
    data = transitions()
    out, _, _ = run(loss, data)
    torch.manual_seed(11)
    torch.randperm(4)
    inputs, sample = loss._act_here_and_next(data)
    values = loss._critic_values(inputs[1], loss.target_qvalue_network_params)
    expected = values.amin(0) - loss.alpha * sample.log_prob[1].detach()
    torch.testing.assert_close(out["next.state_value"], expected.detach())
    few = moved(sub_sample_len=2)
    assert (run(few, data)[0]["next.state_value"] >= out["next.state_value"] - 1e-6).all()


def test_each_call_draws_other_critics_and_never_one_twice() -> None:
    loss = build(num_qvalue_nets=6, sub_sample_len=3)
    torch.manual_seed(0)
    draws = {tuple(loss._select_critics().tolist()) for _ in range(300)}
    assert len(draws) == math.comb(6, 3)
    assert all(len(set(draw)) == 3 and list(draw) == sorted(draw) for draw in draws)


@pytest.mark.parametrize(("asked", "number", "got"), [(0, 4, 1), (3, 4, 3), (9, 4, 3), (2, 1, 1)])
def test_the_number_of_critics_in_a_target_is_clamped_as_in_torchrl(asked: int, number: int, got: int) -> None:
    for cls in (REDQLoss, peer.REDQLoss):
        assert build(cls, sub_sample_len=asked, num_qvalue_nets=number).sub_sample_len == got


def test_each_loss_trains_its_own_network_alone() -> None:
    loss = moved()
    grads = backward(loss, loss(transitions()))
    reached = {key: {name.split(".")[0] for name in terms} for key, terms in grads.items()}
    assert reached == {
        "loss_actor": {"actor_network_params"},
        "loss_qvalue": {"qvalue_network_params"},
        "loss_alpha": {"log_alpha"},
    }


def test_a_temperature_beyond_its_bounds_counts_as_the_bound_and_still_gets_a_gradient() -> None:
    loss = build(alpha_init=50.0, max_alpha=2.0, target_entropy=-30.0)
    before = loss.log_alpha.detach().clone()
    out = loss(transitions())
    out["loss_alpha"].backward()
    assert float(out["alpha"]) == pytest.approx(2.0)
    assert float(loss.log_alpha) == float(before)
    torch.testing.assert_close(loss.log_alpha.grad, out["loss_alpha"].detach())


def test_a_fixed_temperature_is_no_parameter() -> None:
    loss = build(fixed_alpha=True, alpha_init=0.3)
    assert "log_alpha" in dict(loss.named_buffers())
    out = loss(transitions())
    assert not out["loss_alpha"].requires_grad
    assert float(out["alpha"]) == pytest.approx(0.3)


def test_the_actor_is_told_to_give_its_log_probability() -> None:
    for cls in (REDQLoss, peer.REDQLoss):
        actor = normal_actor()
        cls(actor, make_qvalue(), target_entropy=-3.0)
        assert actor.return_log_prob is True


# -- TorchRL ------------------------------------------------------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [
    {},
    {"loss_function": "l1"},
    {"loss_function": "l2"},
    {"num_qvalue_nets": 1},
    {"num_qvalue_nets": 10, "sub_sample_len": 5},
    {"alpha_init": 0.4},
    {"alpha_init": 40.0},
    {"alpha_init": 0.01, "min_alpha": 0.02, "max_alpha": 0.5},
    {"fixed_alpha": True},
    {"delay_qvalue": False},
    {"reduction": "sum"},
    {"separate_losses": True},
    {"deactivate_vmap": True},
    {"target_entropy": "auto", "action_spec": Bounded(-1, 1, (ACTION,))},
    {"target_entropy": "auto", "action_spec": Composite(action=Bounded(-1, 1, (2, ACTION)), shape=(2,))},
]


@pytest.mark.parametrize("kwargs", OPTIONS, ids=str)
def test_every_option_gives_the_numbers_of_torchrl(kwargs: dict[str, Any]) -> None:
    for data in (transitions(), transitions(weights=True, batch=(2, 3))):
        check_parity(lambda cls: build(cls, **kwargs), REDQLoss, peer.REDQLoss, data)


@pytest.mark.parametrize("scalar_output_mode", ["exclude", "non_tensor"])
def test_without_reduction_the_numbers_are_those_of_torchrl(scalar_output_mode: str) -> None:
    outs, losses = (
        [],
        [build(cls, reduction="none", scalar_output_mode=scalar_output_mode) for cls in (REDQLoss, peer.REDQLoss)],
    )
    losses[0].load_state_dict(losses[1].state_dict())
    for loss in losses:
        perturb_targets(loss)
        out, _, _ = run(loss, transitions())
        outs.append({key: out[key].detach() for key in sorted(set(out.keys()))})
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-4, atol=1e-6)
    assert outs[0]["loss_actor"].shape == outs[0]["loss_qvalue"].shape == (4, *BATCH)
    assert outs[0]["loss_alpha"].shape == (2, *BATCH)
    assert ("alpha" in outs[0]) is (scalar_output_mode == "non_tensor")


def test_masks_give_the_numbers_of_torchrl() -> None:
    for number in (4, BATCH[0]):
        check_parity(
            lambda cls, number=number: build(cls, num_qvalue_nets=number),
            REDQLoss,
            peer.REDQLoss,
            transitions(mask=True),
            differ={"entropy"},
        )


@pytest.mark.parametrize("actor", [normal_actor, tanh_normal_actor])
def test_other_policies_give_the_numbers_of_torchrl(actor: Any) -> None:
    check_parity(lambda cls: build(cls, actor), REDQLoss, peer.REDQLoss, transitions())


class WithNoise(nn.Module):
    """An actor that adds what it is given as state-dependent noise to its location."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(mlp(OBSERVATION, 2 * ACTION), NormalParamExtractor())

    def forward(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        loc, scale = self.network(observation)
        return loc + noise.unsqueeze(-1), scale


@pytest.mark.parametrize("stored", [False, True])
def test_state_dependent_noise_is_switched_off_as_in_torchrl(stored: bool) -> None:
    def make(cls: Any) -> Any:
        torch.manual_seed(0)
        actor = ProbabilisticTensorDictSequential(
            TensorDictModule(WithNoise(), ["observation", "_eps_gSDE"], ["loc", "scale"]),
            ProbabilisticTensorDictModule(
                ["loc", "scale"], ["action"], distribution_class=TanhNormal, return_log_prob=True
            ),
        )
        return cls(actor, make_qvalue(), gSDE=True, target_entropy=-3.0)

    data = transitions()
    if stored:
        data["_eps_gSDE"] = torch.full(BATCH, 7.0)
    check_parity(make, REDQLoss, peer.REDQLoss, data)


def test_an_actor_that_cannot_be_trained_is_an_error_as_in_torchrl() -> None:
    for cls in (REDQLoss, peer.REDQLoss):
        actor = tanh_normal_actor()
        for parameter in actor.parameters():
            parameter.requires_grad_(False)
        loss = cls(actor, make_qvalue(), target_entropy=-3.0)
        with pytest.raises(RuntimeError, match="grad"):
            loss(transitions())
        with torch.no_grad():
            loss(transitions())


# -- differences --------------------------------------------------------------------------------------------------


def test_differently_the_number_of_steps_to_the_next_observation_counts() -> None:
    data = transitions(n_step=True)
    ours, theirs = moved(), build(peer.REDQLoss)
    for loss, expected in ((ours, data["steps_to_next_obs"].squeeze(-1)), (theirs, torch.ones(BATCH))):
        out, _, _ = run(loss, data)
        bootstrap = torch.where(data["next", "terminated"].squeeze(-1), 0.0, 0.99**expected * out["next.state_value"])
        torch.testing.assert_close(out["target_value"], data["next", "reward"].squeeze(-1) + bootstrap)


def test_differently_the_entropy_is_that_of_valid_steps() -> None:
    data = transitions(mask=True)
    loss = build()
    torch.manual_seed(11)
    loss._select_critics()
    _, sample = loss._act_here_and_next(data)
    entropy = -sample.log_prob[:, data["shifted_valid"]].mean()
    torch.testing.assert_close(run(loss, data)[0]["entropy"], entropy.detach())


def test_differently_without_reduction_out_keys_name_what_there_is() -> None:
    data, results = transitions(), []
    keywords = {"_".join(key) if isinstance(key, tuple) else key: value for key, value in data.items(True, True)}
    loss = build(reduction="none", scalar_output_mode="exclude")
    results = loss(**keywords)
    assert len(results) == len(loss.out_keys) == 7
    with pytest.raises(KeyError):
        build(peer.REDQLoss, reduction="none", scalar_output_mode="exclude")(**keywords)


def test_differently_the_temperature_may_have_no_bounds() -> None:
    loss = build(min_alpha=None, max_alpha=None, alpha_init=1000.0)
    assert float(loss.alpha) == pytest.approx(1000.0)
    with pytest.raises(RuntimeError, match="NoneType"):
        build(peer.REDQLoss, min_alpha=None)


@pytest.mark.parametrize(
    "kwargs", [{"min_alpha": 2.0, "max_alpha": 1.0}, {"alpha_init": 0.0}, {"scalar_output_mode": "all"}], ids=str
)
def test_differently_an_option_out_of_range_is_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"alpha|scalar_output_mode"):
        build(**kwargs)


def test_a_target_entropy_that_nothing_says_is_an_error_when_it_is_used() -> None:
    loss = build(target_entropy="auto")
    loss.state_dict()
    with pytest.raises(RuntimeError, match="action_spec"):
        loss(transitions())


def test_differently_several_actions_at_once_work() -> None:
    """A composite policy: its log-probability is the sum over its heads."""
    heads = {"move": normal, "turn": normal}

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = mlp(OBSERVATION, 6)

        def forward(self, observation: Tensor) -> tuple[Tensor, ...]:
            loc_a, scale_a, loc_b, scale_b = self.network(observation).split([2, 2, 1, 1], -1)
            return loc_a, scale_a.exp(), loc_b, scale_b.exp()

    torch.manual_seed(0)
    names = [("params", head, name) for head in heads for name in ("loc", "scale")]
    actor = ProbabilisticTensorDictSequential(
        TensorDictModule(Heads(), ["observation"], names),
        ProbabilisticTensorDictModule(
            ["params"],
            [("move",), ("turn",)],
            distribution_class=CompositeDistribution,
            distribution_kwargs={"distribution_map": heads},
            default_interaction_type=InteractionType.RANDOM,
            return_log_prob=True,
        ),
    )
    critic = TensorDictModule(
        Concatenate(mlp(OBSERVATION + 3, 1)), ["observation", "move", "turn"], ["state_action_value"]
    )
    loss = REDQLoss(actor, critic, num_qvalue_nets=3, target_entropy=-3.0)
    data = transitions()
    data["move"], data["turn"] = torch.randn(*BATCH, 2), torch.randn(*BATCH, 1)
    out, _, _ = run(loss, data.exclude("action"))
    torch.manual_seed(11)
    loss._select_critics()
    inputs, sample = loss._act_here_and_next(data)
    distribution = actor.get_dist(data.clone())
    expected = sum(head.log_prob(inputs[0][name]) for name, head in distribution.dists.items())
    torch.testing.assert_close(out["action_log_prob_actor"], expected.detach())
    assert all(backward(loss, out).values())
    assert sample.log_prob.shape == (2, *BATCH)


def test_differently_an_actor_without_a_differentiable_sample_is_refused() -> None:
    with pytest.raises(TypeError, match="probabilistic"):
        build(actor=deterministic_actor)
    critic = TensorDictModule(
        Concatenate(mlp(OBSERVATION + N_ACTIONS, 1)), ["observation", "action"], ["state_action_value"]
    )
    loss = REDQLoss(discrete_actor(), critic, target_entropy=-1.0)
    with pytest.raises(NotImplementedError, match="rsample"):
        loss(transitions("one_hot"))


# -- the rest -----------------------------------------------------------------------------------------------------


def test_scalars_that_are_left_out_are_announced() -> None:
    with pytest.warns(UserWarning, match="scalar_output_mode"):
        build(reduction="none")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(reduction="none", scalar_output_mode="exclude")


def test_observations_are_not_stacked_and_actor_intermediates_are_not_written() -> None:
    loss, data = build(), transitions()
    assert set(loss._distribution_params(data).keys()) == {"loc", "scale"}
    _, written, _ = run(loss, data)
    assert set(written) == {"td_error"}


def test_a_copy_draws_on_its_own() -> None:
    loss: REDQLoss = moved()
    copied = copy.deepcopy(loss)
    with torch.no_grad():
        copied.log_alpha.fill_(1.0)
    assert float(loss.log_alpha) == 0.0
    data: TensorDict = transitions()
    assert run(copied, data)[0]["alpha"] == pytest.approx(math.e)
