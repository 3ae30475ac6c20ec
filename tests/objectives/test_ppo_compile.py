"""torch.compile of the PPO losses: one graph, the eager numbers, and no second compilation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator

from tritonrl.objectives.ppo import ClipPPOLoss, PPOLoss

from .ppo_cases import categorical_actor, composite_actor, gradients, make_critic, mlp, normal_actor, rollout

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(loss: PPOLoss, backend: str = "aot_eager") -> Any:
    return torch.compile(loss, fullgraph=True, backend=backend)


def check_same(
    loss: PPOLoss, call: Any, data: TensorDict, networks: tuple[nn.Module, ...], rtol: float = 1e-5, atol: float = 1e-6
) -> None:
    """Values and gradients of the compiled call are those of eager mode."""
    results = []
    for function in (call, loss):
        loss.zero_grad()
        torch.manual_seed(9)
        out = function(data)
        loss.total(out).backward()
        results.append((out.to_dict(), gradients(*networks)))
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in results[0][1])
    torch.testing.assert_close(results[0], results[1], rtol=rtol, atol=atol)


def change_coefficients(loss: ClipPPOLoss) -> None:
    loss.clip_epsilon = 0.05
    loss.entropy_coeff = 0.3
    loss.critic_coeff = 0.25


def test_with_the_advantage_in_the_data_there_is_one_graph_and_never_another() -> None:
    networks = normal_actor(), make_critic()
    loss = ClipPPOLoss(*networks)
    call = compiled(loss)
    check_same(loss, call, rollout(), networks)
    with torch.compiler.set_stance("fail_on_recompile"):
        check_same(loss, call, rollout(seed=4), networks)
        before = call(rollout())
        change_coefficients(loss)
        check_same(loss, call, rollout(), networks)
    after = call(rollout())
    for key in ("loss_objective", "loss_entropy", "loss_critic"):
        assert not torch.isclose(before[key], after[key])


@pytest.mark.parametrize("functional", [True, False])
def test_with_the_advantage_computed_inside_there_is_one_graph_and_never_another(functional: bool) -> None:
    networks = normal_actor(), make_critic()
    loss = ClipPPOLoss(*networks, functional=functional)
    call = compiled(loss)
    first = call(rollout(advantage=False))  # the first call of all: nothing was built or cached by an eager one
    check_same(loss, call, rollout(advantage=False), networks)
    with torch.compiler.set_stance("fail_on_recompile"):
        check_same(loss, call, rollout(advantage=False, seed=4), networks)
        loss.value_estimator.gamma.fill_(0.5)
        changed_gamma = call(rollout(advantage=False))
        loss.value_estimator.lmbda.fill_(0.3)
        changed_lmbda = call(rollout(advantage=False))
        change_coefficients(loss)
        check_same(loss, call, rollout(advantage=False), networks)
    assert not torch.isclose(changed_gamma["loss_critic"], first["loss_critic"])
    assert not torch.isclose(changed_lmbda["loss_critic"], changed_gamma["loss_critic"])


def test_inductor_gives_the_eager_numbers_with_the_advantage_computed_inside() -> None:
    networks = categorical_actor(), make_critic()
    loss = ClipPPOLoss(*networks, normalize_advantage=True)
    call = compiled(loss, "inductor")
    check_same(loss, call, rollout(categorical_actor, advantage=False), networks, rtol=1e-4, atol=1e-5)
    with torch.compiler.set_stance("fail_on_recompile"):
        change_coefficients(loss)
        loss.value_estimator.gamma.fill_(0.5)
        data = rollout(categorical_actor, advantage=False, seed=4)
        check_same(loss, call, data, networks, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"clip_value": 0.1, "normalize_advantage": True, "separate_losses": True, "clip_epsilon": (0.1, 0.3)},
        {"delay_actor": True, "max_importance_ratio": 1.1, "reduction": "sum", "loss_critic_type": "l2"},
    ],
    ids=str,
)
def test_options_compile_into_one_graph(kwargs: dict[str, Any]) -> None:
    networks = normal_actor(), make_critic()
    loss = ClipPPOLoss(*networks, **kwargs)
    call = compiled(loss, "eager")
    if kwargs.get("delay_actor"):
        with torch.no_grad():
            for parameter in loss.target_actor_network_params.values(True, True):
                parameter.add_(0.05)
    check_same(loss, call, rollout(), networks)
    with torch.compiler.set_stance("fail_on_recompile"):
        check_same(loss, call, rollout(seed=4), networks)


def test_composite_actions_with_a_mask_and_coefficients_by_head_compile_into_one_graph() -> None:
    networks = composite_actor(), make_critic()
    loss = PPOLoss(*networks, entropy_coeff={("agent", "move"): 0.1, ("agent", "gear"): 0.4}, normalize_advantage=True)
    call = compiled(loss, "eager")
    data = rollout(composite_actor)
    data["collector", "mask"] = torch.rand(data.shape) > 0.3
    check_same(loss, call, data, networks)
    with torch.compiler.set_stance("fail_on_recompile"):
        data["collector", "mask"] = torch.rand(data.shape) > 0.3
        check_same(loss, call, data, networks)


def test_actors_of_torchrl_with_sampled_entropy_compile_into_one_graph() -> None:
    def make(seed: int) -> ProbabilisticActor:
        torch.manual_seed(seed)
        module = TensorDictModule(nn.Sequential(mlp(4, 6), NormalParamExtractor()), ["observation"], ["loc", "scale"])
        return ProbabilisticActor(module, in_keys=["loc", "scale"], distribution_class=TanhNormal, return_log_prob=True)

    networks = make(0), ValueOperator(mlp(4, 1), in_keys=["observation"])
    loss = ClipPPOLoss(*networks, samples_mc_entropy=2)
    call = compiled(loss, "eager")
    data = rollout(make)
    check_same(loss, call, data, networks)
    with torch.compiler.set_stance("fail_on_recompile"):
        check_same(loss, call, data, networks)


def test_other_batch_sizes_compile_once_more_at_most() -> None:
    networks = normal_actor(), make_critic()
    loss = ClipPPOLoss(*networks)
    call = compiled(loss, "eager")
    for batch in ((5, 7), (6, 9)):
        call(rollout(batch=batch, advantage=False))
    with torch.compiler.set_stance("fail_on_recompile"):
        for batch in ((3, 11), (8, 4)):
            check_same(loss, call, rollout(batch=batch, advantage=False), networks)


def test_a_training_step_with_backward_and_optimizer_runs_compiled() -> None:
    losses, results = [], []
    for compile_it in (True, False):
        networks = normal_actor(), make_critic()
        loss = ClipPPOLoss(*networks, entropy_bonus=False)
        optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)

        def step(data: TensorDict, loss: Any = loss, optimizer: Any = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            total = loss.total(loss(data))
            total.backward()
            optimizer.step()
            return total.detach()

        run = torch.compile(step, backend="eager") if compile_it else step
        losses.append([run(rollout(seed=seed)) for seed in (3, 4, 5)])
        results.append([parameter.detach() for network in networks for parameter in network.parameters()])
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)
