"""A2CLoss: the formula, its options, TorchRL's numbers, where they differ, and torch.compile."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
import torchrl.objectives as peer
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.distributions import Categorical, Independent, Normal, OneHotCategorical
from torchrl.modules import PopArtValueNorm, ProbabilisticActor, TanhNormal

from tritonrl.objectives import A2CLoss, ClipPPOLoss

from .policy_gradient_cases import build, check_compiled, check_parity
from .ppo_cases import BATCH, composite_actor, make_critic, mlp, normal_actor, rollout

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


# -- the formula --------------------------------------------------------------------------------------------------


def test_every_term_is_what_the_textbook_says_step_by_step() -> None:
    """In Python floats, from the networks' outputs and the density of the normal."""
    loss = A2CLoss(normal_actor().double(), make_critic().double(), entropy_coeff=0.3, critic_coeff=0.5)
    data = rollout().apply(lambda x: x.double() if x.is_floating_point() else x)
    with torch.no_grad():
        policy = normal_actor().double()[0](data.select("observation"))
        value = make_critic().double()(data.select("observation"))["state_value"]
    n = data.numel()
    objective = entropy = distance = 0.0
    for step, loc_scale, v in zip(data.reshape(-1), policy.reshape(-1), value.reshape(-1).tolist(), strict=True):
        log_prob = 0.0
        for a, loc, scale in zip(step["action"].tolist(), *(loc_scale[k].tolist() for k in ("loc", "scale")), strict=1):
            log_prob -= 0.5 * ((a - loc) / scale) ** 2 + math.log(scale) + 0.5 * math.log(2 * math.pi)
            entropy += (0.5 + 0.5 * math.log(2 * math.pi) + math.log(scale)) / n
        objective -= log_prob * step["advantage"].item() / n
        x = abs(step["value_target"].item() - v)
        distance += (0.5 * x * x if x < 1 else x - 0.5) / n
    out = loss(data)
    assert out["loss_objective"].item() == pytest.approx(objective)
    assert out["entropy"].item() == pytest.approx(entropy)
    assert out["loss_entropy"].item() == pytest.approx(-0.3 * entropy, rel=1e-6)
    assert out["loss_critic"].item() == pytest.approx(0.5 * distance)


def test_on_fresh_data_the_gradient_of_the_objective_is_that_of_ppo() -> None:
    """Where the importance weight is 1 its gradient is the gradient of log pi."""
    grads = []
    for cls in (A2CLoss, ClipPPOLoss):
        actor = normal_actor()
        data = rollout(lambda seed, actor=actor: actor)
        cls(actor, make_critic())(data)["loss_objective"].backward()
        grads.append([parameter.grad for parameter in actor.parameters()])
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)


def test_one_coefficient_for_each_head_of_a_composite_action() -> None:
    data = rollout(composite_actor)
    by_head = {("agent", "move"): 0.1, ("agent", "gear"): 0.4}
    out = A2CLoss(composite_actor(), make_critic(), entropy_coeff=by_head)(data)
    heads = out["composite_entropy", "agent"]
    expected = 0.1 * heads["move_entropy"].sum(-1).mean() + 0.4 * heads["gear_entropy"].mean()
    torch.testing.assert_close(out["loss_entropy"].detach(), -expected)


@pytest.mark.parametrize("entropy_coeff", [0, 0.0, torch.zeros(()), torch.zeros(1)])
def test_a_coefficient_of_zero_leaves_the_entropy_out(entropy_coeff: Any) -> None:
    loss = build(A2CLoss, entropy_coeff=entropy_coeff)
    assert set(loss(rollout()).keys()) == {"loss_objective", "loss_critic"}
    assert loss.out_keys == ["loss_objective", "loss_critic"]


def test_coefficients_are_buffers_that_assignment_writes_in_place() -> None:
    loss = build(A2CLoss, clip_value=1, entropy_coeff=1, critic_coeff=1)
    for name in ("entropy_coeff", "critic_coeff", "clip_value"):
        buffer = getattr(loss, name)
        setattr(loss, name, 0.25)
        assert getattr(loss, name) is buffer
        assert buffer == 0.25
    torch.testing.assert_close(
        loss(rollout()).to_dict(),
        build(A2CLoss, clip_value=0.25, entropy_coeff=0.25, critic_coeff=0.25)(rollout()).to_dict(),
    )


def test_the_critic_term_is_available_alone() -> None:
    for critic_coeff, factor in ((0.5, 0.5), (None, 1.0)):
        loss = build(A2CLoss, clip_value=0.1, critic_coeff=critic_coeff)
        loss_critic, clip_fraction = loss.loss_critic(rollout())
        out = build(A2CLoss, clip_value=0.1)(rollout())
        assert loss_critic.shape == (*BATCH, 1)
        torch.testing.assert_close(loss_critic.mean(), factor * out["loss_critic"])
        torch.testing.assert_close(clip_fraction, out["value_clip_fraction"])
    assert build(A2CLoss).loss_critic(rollout())[1] is None


# -- TorchRL ------------------------------------------------------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [
    {},
    {"clip_value": 0.1},
    {"clip_value": torch.tensor(0.3), "loss_critic_type": "l2"},
    {"entropy_bonus": False},
    {"entropy_coeff": 0.3},
    {"entropy_coeff": 0},
    {"critic_coeff": 0.5},
    {"critic_coeff": None},
    {"critic_coeff": 0.0, "entropy_coeff": torch.tensor(0.2)},
    {"loss_critic_type": "l1"},
    {"reduction": "none"},
    {"reduction": "sum"},
    {"functional": False},
    {"separate_losses": True},
]


@pytest.mark.parametrize("kwargs", OPTIONS, ids=str)
@pytest.mark.parametrize("advantage", [True, False])
def test_every_option_gives_the_numbers_of_torchrl(kwargs: dict[str, Any], advantage: bool) -> None:
    ours, theirs = check_parity(A2CLoss, peer.A2CLoss, rollout(advantage=advantage), **kwargs)
    assert set(ours.state_dict()) >= set(theirs.state_dict())
    assert vars(ours.tensor_keys) == vars(theirs.tensor_keys)


def peer_actor(distribution: Any, seed: int = 0) -> ProbabilisticActor:
    torch.manual_seed(seed)
    if distribution is TanhNormal:
        names, network = ["loc", "scale"], nn.Sequential(mlp(4, 6), NormalParamExtractor())
    else:
        names, network = ["logits"], mlp(4, 3)
    module = TensorDictModule(network, in_keys=["observation"], out_keys=names)
    return ProbabilisticActor(module, in_keys=names, distribution_class=distribution, return_log_prob=True)


@pytest.mark.parametrize("distribution", [TanhNormal, Categorical, OneHotCategorical])
def test_actors_of_torchrl_give_the_same_numbers(distribution: Any) -> None:
    data = rollout(lambda seed: peer_actor(distribution, seed))
    check_parity(A2CLoss, peer.A2CLoss, data, lambda: peer_actor(distribution), samples_mc_entropy=4)


@pytest.mark.parametrize("where", [("collector", "mask"), "shifted_valid"])
def test_masks_give_the_losses_of_torchrl(where: Any) -> None:
    data = rollout()
    data[where] = torch.rand(BATCH) > 0.3
    metrics = frozenset({"entropy", "value_clip_fraction"})
    for reduction in ("mean", "sum", "none"):
        check_parity(A2CLoss, peer.A2CLoss, data, but=metrics, clip_value=0.1, reduction=reduction)


def test_a_value_norm_scales_and_learns_as_in_torchrl() -> None:
    results = []
    for cls in (peer.A2CLoss, A2CLoss):
        loss = build(cls, advantage_norm=PopArtValueNorm(shape=1, beta=0.9))
        outs = [loss(rollout(advantage=False, seed=seed))["loss_objective"] for seed in (3, 4)]
        outs.append(loss(rollout())["loss_objective"])  # an advantage from elsewhere teaches it nothing
        loss.eval()
        outs.append(loss(rollout(advantage=False, seed=5))["loss_objective"])
        outs.append(loss(rollout(advantage=False, seed=5))["loss_objective"])
        results.append(torch.stack(outs))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)
    assert results[1][-1] == results[1][-2]


def test_a_gradient_reaches_an_advantage_that_asks_for_it_as_in_torchrl() -> None:
    grads = []
    for cls in (peer.A2CLoss, A2CLoss):
        data = rollout()
        advantage = data["advantage"].requires_grad_()
        grads.append(torch.autograd.grad(build(cls)(data)["loss_objective"], advantage)[0])
    torch.testing.assert_close(grads[1], grads[0])


def test_the_parameters_of_the_constructor_are_those_of_torchrl() -> None:
    theirs = dict(inspect.signature(peer.A2CLoss).parameters)
    assert theirs.pop("kwargs").kind is inspect.Parameter.VAR_KEYWORD
    ours = inspect.signature(A2CLoss).parameters
    assert {k: (p.default, p.kind) for k, p in ours.items()} == {k: (p.default, p.kind) for k, p in theirs.items()}


# -- where we differ on purpose -----------------------------------------------------------------------------------


def test_differently_composite_actions_work() -> None:
    """TorchRL's A2C takes a list of action keys from the actor and then fails to build its in_keys."""
    data = rollout(composite_actor)
    with pytest.raises(TypeError, match="unhashable"):
        peer.A2CLoss(composite_actor(), make_critic())(data)
    for reduction in ("mean", "none"):
        networks = composite_actor(), make_critic()
        out = A2CLoss(*networks, reduction=reduction)(data)
        params = composite_actor()[:-1](data.select("observation"))["params"]
        log_prob = Independent(Normal(**params["move"]), 1).log_prob(data["agent", "move"])
        log_prob = log_prob + Categorical(**params["gear"]).log_prob(data["agent", "gear"])
        expected = -log_prob * data["advantage"].squeeze(-1)
        torch.testing.assert_close(out["loss_objective"], expected if reduction == "none" else expected.mean())
        entropy = peer.PPOLoss(composite_actor(), make_critic())(data)["loss_entropy"]
        torch.testing.assert_close(out["loss_entropy"].mean(), entropy)


def test_differently_every_token_of_an_action_shares_its_advantage() -> None:
    """TorchRL multiplies shapes [5, 7, 3, 1] and [5, 7, 1] as they are: an error, or an outer product by bad luck."""
    data = rollout(lambda seed: normal_actor(seed, Normal))
    with pytest.raises(RuntimeError):
        peer.A2CLoss(normal_actor(0, Normal), make_critic())(data)
    out = A2CLoss(normal_actor(0, Normal), make_critic(), reduction="none")(data)
    params = normal_actor(0)[0](data.select("observation"))
    log_prob = Normal(params["loc"], params["scale"]).log_prob(data["action"])
    torch.testing.assert_close(out["loss_objective"], -log_prob * data["advantage"])
    assert out["loss_entropy"].shape == (*BATCH, 3)


def test_differently_a_flat_advantage_is_an_error_and_no_outer_product() -> None:
    data = rollout(batch=(6,))
    data["advantage"] = data["advantage"].squeeze(-1)
    assert peer.A2CLoss(normal_actor(), make_critic(), reduction="none")(data)["loss_objective"].shape == (6, 6)
    with pytest.raises(ValueError, match=r"\(6,\).*log-probability.*\(6, 1\)"):
        build(A2CLoss)(data)


def test_differently_metrics_respect_masks() -> None:
    data = rollout()
    data["shifted_valid"] = mask = torch.rand(BATCH) > 0.3
    ours, theirs = (build(cls, clip_value=0.1)(data) for cls in (A2CLoss, peer.A2CLoss))
    valid, everything = build(A2CLoss, clip_value=0.1)(rollout()[mask]), build(A2CLoss, clip_value=0.1)(rollout())
    for key in ("entropy", "value_clip_fraction"):
        torch.testing.assert_close(ours[key], valid[key])
        torch.testing.assert_close(theirs[key], everything[key])
        assert not torch.isclose(valid[key], everything[key])


def test_differently_a_misspelt_keyword_is_a_type_error() -> None:
    for typo in ("entropy_coef", "normalise_advantage", "clip_epsilon", "delay_value", "value_key", "device"):
        with pytest.raises(TypeError, match=typo):
            build(A2CLoss, **{typo: 0.1})
    build(peer.A2CLoss, normalise_advantage=0.1)


def test_differently_an_integer_coefficient_can_be_scheduled() -> None:
    """TorchRL stores an integer buffer, in which 0.5 becomes 0."""
    ours, theirs = build(A2CLoss, critic_coeff=1), build(peer.A2CLoss, critic_coeff=1)
    for loss in (ours, theirs):
        loss.critic_coeff = 0.5
    assert (ours.critic_coeff.item(), theirs.critic_coeff.item()) == (0.5, 0)


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"entropy_coeff": "high"}, TypeError, "entropy_coeff"),
        ({"entropy_coeff": True}, ValueError, "entropy_coeff"),
        ({"entropy_coeff": torch.ones(2)}, ValueError, "entropy_coeff"),
        ({"critic_coeff": -0.5}, ValueError, "critic_coeff"),
        ({"critic_coeff": math.nan}, ValueError, "critic_coeff"),
        ({"critic_coeff": True}, ValueError, "critic_coeff"),
        ({"clip_value": True}, ValueError, "clip_value"),
        ({"clip_value": "x"}, ValueError, "clip_value"),
        ({"samples_mc_entropy": 0}, ValueError, "samples_mc_entropy"),
        ({"advantage_norm": 3.0}, TypeError, "update and scale"),
    ],
)
def test_an_option_out_of_range_is_refused_when_the_loss_is_built(
    kwargs: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        build(A2CLoss, **kwargs)


# -- compile ------------------------------------------------------------------------------------------------------


def test_with_the_advantage_computed_inside_there_is_one_graph_and_never_another() -> None:
    networks = normal_actor(), make_critic()
    loss = A2CLoss(*networks, clip_value=0.1)
    call = torch.compile(loss, fullgraph=True, backend="eager")
    outs = [call(rollout(advantage=False))]  # the first call of all: nothing was built or cached by an eager one
    with torch.compiler.set_stance("fail_on_recompile"):
        check_compiled(loss, call, rollout(advantage=False, seed=4), networks)
        for coefficient in (loss.value_estimator.gamma, loss.value_estimator.lmbda, loss.critic_coeff):
            coefficient.fill_(0.3)
            outs.append(check_compiled(loss, call, rollout(advantage=False), networks))
        loss.entropy_coeff = 0.3
        loss.clip_value = 0.5
        check_compiled(loss, call, rollout(advantage=False), networks)
    for before, after in pairwise(outs):
        assert not torch.isclose(before["loss_critic"], after["loss_critic"])


def masked_rollout(batch: tuple[int, int]) -> TensorDict:
    data = rollout(batch=batch)
    data["collector", "mask"] = torch.rand(batch) > 0.3
    return data


def test_with_the_advantage_in_the_data_there_is_one_graph_and_one_more_for_all_other_batch_sizes() -> None:
    networks = normal_actor(), make_critic()
    norm = PopArtValueNorm(shape=1, beta=0.9)
    loss = A2CLoss(*networks, functional=False, reduction="sum", advantage_norm=norm)
    call = torch.compile(loss, fullgraph=True, backend="eager")
    call(masked_rollout(BATCH))
    with torch.compiler.set_stance("fail_on_recompile"):
        loss.entropy_coeff = 0.3
        check_compiled(loss, call, masked_rollout(BATCH), networks)
    call(masked_rollout((6, 9)))
    with torch.compiler.set_stance("fail_on_recompile"):
        check_compiled(loss, call, masked_rollout((3, 11)), networks)
        check_compiled(loss, call, masked_rollout((8, 4)), networks)


def train(step: Callable[[TensorDict], Tensor], compile_it: bool, calls: int, **options: Any) -> list[Tensor]:
    """The totals of four training steps, of which the first ``calls`` may compile."""
    run, totals = torch.compile(step, **options) if compile_it else step, []
    for call in range(4):
        with torch.compiler.set_stance("fail_on_recompile" if compile_it and call >= calls else "default"):
            totals.append(run(rollout(seed=call)))
    return totals


def break_reasons() -> list[str]:
    """What interrupted a graph: the first line of the explanation, and what it is about."""
    return [key.split("\n")[0] + key.partition("Developer debug context")[2] for key in counters["graph_break"]]


def test_a_step_with_an_optimizer_of_torch_trains_compiled_as_in_eager_mode() -> None:
    """torch interrupts the graph itself, at backward and in its optimizers; nothing else does."""
    results = []
    for compile_it in (True, False):
        loss = A2CLoss(normal_actor(), make_critic())
        optimizer = torch.optim.RMSprop(loss.parameters(), lr=0.05)

        def step(data: TensorDict, loss: Any = loss, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            total = loss.total(loss(data))
            total.backward()
            optimizer.step()
            return total.detach()

        # The first call makes the state of the optimizer, so the second one compiles its step again.
        totals = train(step, compile_it, calls=2, backend="eager")
        results.append((totals, [parameter.detach() for parameter in loss.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)
    of_torch = ("Tensor.backward()", "Optimizer.zero_grad", "torch._dynamo.graph_break()")
    assert break_reasons()
    assert [reason for reason in break_reasons() if not any(name in reason for name in of_torch)] == []


@pytest.mark.parametrize("cls", [A2CLoss, ClipPPOLoss])
def test_loss_backward_and_update_are_one_graph(cls: Any) -> None:
    """With trace_autograd_ops, and an update without torch.optim, whose step always interrupts the graph."""
    results = []
    for compile_it in (True, False):
        networks = normal_actor(), make_critic()
        loss = cls(*networks)
        parameters = list(loss.parameters())
        momentum = [torch.zeros_like(parameter) for parameter in parameters]

        def step(data: TensorDict, loss: Any = loss, parameters: Any = parameters, momentum: Any = momentum) -> Tensor:
            total = loss.total(loss(data))
            total.backward()
            with torch.no_grad():
                torch._foreach_lerp_(momentum, [parameter.grad for parameter in parameters], 0.5)
                torch._foreach_add_(parameters, momentum, alpha=-0.1)
            for parameter in parameters:
                parameter.grad = None
            return total.detach()

        with torch._dynamo.config.patch(trace_autograd_ops=True):
            totals = train(step, compile_it, calls=1, backend="aot_eager", fullgraph=True)
        results.append((totals, [parameter.detach() for parameter in parameters]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)
    assert not torch.equal(results[0][1][0], next(normal_actor().parameters()))
