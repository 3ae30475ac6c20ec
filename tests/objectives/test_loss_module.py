"""LossModule: life cycle, keys, dispatch, modes, value estimator; compared with TorchRL's on one and the same body."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchrl.modules
import torchrl.objectives as torchrl_objectives
import torchrl.objectives.value as torchrl_value
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import InteractionType, TensorDictModule, dispatch
from tensordict.nn.probabilistic import interaction_type, set_interaction_type
from torch import Tensor, nn
from torchrl.modules import LSTMModule, NormalParamExtractor, ProbabilisticActor, TanhNormal, ValueOperator

import tritonrl.objectives as tritonrl_objectives
from tritonrl.objectives.value import GAE

BASES = [torchrl_objectives.LossModule, tritonrl_objectives.LossModule]
OURS = tritonrl_objectives.LossModule


def make_net(out: int = 1) -> TensorDictModule:
    layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, out))
    return TensorDictModule(layers, in_keys=["observation"], out_keys=["state_value"])


def make_data(*batch: int) -> TensorDict:
    batch = batch or (5,)
    return TensorDict(
        {
            "observation": torch.randn(*batch, 3),
            "target": torch.randn(*batch, 1),
            "next": {"reward": torch.randn(*batch, 1)},
        },
        batch,
    )


def make_toy_class(base: Any) -> Any:
    """The loss that a user wrote on TorchRL, with the base class as the only difference."""

    class ToyLoss(base):  # type: ignore[misc]
        @dataclass
        class _AcceptedKeys:
            value: Any = "state_value"
            value_target: Any = "target"
            reward: Any = "reward"

        default_keys = _AcceptedKeys
        default_value_estimator = None
        out_keys = ["loss_value", "prediction"]  # noqa: RUF012
        _schedulable_buffers = frozenset({"coeff"})
        value_network: TensorDictModule
        value_network_params: Any
        target_value_network_params: Any

        def __init__(self, value_network: nn.Module, coeff: float = 0.5, **kwargs: Any) -> None:
            super().__init__()
            self._in_keys = None
            self.reduction = "mean"
            self.seen: list[Any] = []
            self.convert_to_functional(value_network, "value_network", **kwargs)
            self.register_coeff_buffer("coeff", coeff)

        def _set_in_keys(self) -> None:
            keys = [*self.value_network.in_keys, self.tensor_keys.value_target, ("next", self.tensor_keys.reward)]
            self._in_keys = keys

        @property
        def in_keys(self) -> list[Any]:
            if self._in_keys is None:
                self._set_in_keys()
            return self._in_keys

        @in_keys.setter
        def in_keys(self, values: list[Any]) -> None:
            self._in_keys = values

        def _forward_value_estimator_keys(self, **kwargs: Any) -> None:
            self._set_in_keys()

        @dispatch
        def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
            self.seen.append(interaction_type())
            with self.value_network_params.to_module(self.value_network):
                value = self.value_network(tensordict.copy()).get(self.tensor_keys.value)
            distance = (value - tensordict.get(self.tensor_keys.value_target)).square().squeeze(-1)
            loss = self._reduce_loss(self.coeff * distance, tensordict)
            return TensorDict({"loss_value": loss, "prediction": value.detach().mean()})

        def extra_loss(self) -> Any:
            return interaction_type()

        def loss_extra(self) -> Any:
            return interaction_type()

        def _private_loss(self) -> Any:
            return interaction_type()

        @staticmethod
        def static_loss(x: int) -> int:
            return x + 1

    return ToyLoss


def outcome(call: Any) -> Any:
    """What a call gives, or the type of its error."""
    try:
        return call()
    except Exception as error:
        return type(error)


def both(**kwargs: Any) -> list[Any]:
    """The same loss on both base classes, with the same weights."""
    losses = []
    for base in BASES:
        torch.manual_seed(3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            losses.append(make_toy_class(base)(make_net(), **kwargs))
    return losses


# -- the same subclass on both base classes --------------------------------------------------------------------------


def test_a_users_subclass_has_the_same_names_on_both_base_classes() -> None:
    reference, ours = both(create_target_params=True)
    assert ours.in_keys == reference.in_keys
    assert ours.out_keys == reference.out_keys
    assert list(ours.state_dict()) == list(reference.state_dict())
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in reference.named_parameters()]
    assert [name for name, _ in ours.named_buffers()] == [name for name, _ in reference.named_buffers()]
    assert [name for name, _ in ours.named_children()] == [name for name, _ in reference.named_children()]
    assert vars(ours.tensor_keys) == vars(reference.tensor_keys)
    assert ours.functional is reference.functional is True
    assert ours._default_device == reference._default_device


@pytest.mark.parametrize("batch", [(5,), (1,), (3, 7)])
def test_values_and_gradients_are_those_of_torchrl(batch: tuple[int, ...]) -> None:
    reference, ours = both()
    data = make_data(*batch)
    for loss in (reference, ours):
        loss(data)["loss_value"].backward()
    torch.testing.assert_close(ours(data)["loss_value"], reference(data)["loss_value"])
    for p, q in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_a_state_dict_of_torchrl_loads_strictly() -> None:
    reference, ours = both(create_target_params=True)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(1.0)
    ours.load_state_dict(reference.state_dict())
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value)


def test_dispatch_takes_keywords_and_returns_a_tuple_in_the_order_of_out_keys() -> None:
    reference, ours = both()
    data = make_data()
    keywords = {"observation": data["observation"], "target": data["target"], "next_reward": data["next", "reward"]}
    for got, expected in zip(ours(**keywords), reference(**keywords), strict=True):
        torch.testing.assert_close(got, expected)
    # What the loss does not need may be missing; what it does not know may not be there.
    del keywords["next_reward"]
    torch.testing.assert_close(ours(**keywords)[0], ours(data)["loss_value"])
    for loss in (reference, ours):
        with pytest.raises(TypeError):
            loss(**keywords, unknown=torch.zeros(5))


def test_out_keys_can_be_selected_and_reset() -> None:
    _, ours = both()
    data = make_data()
    ours.select_out_keys("loss_value")
    assert ours.out_keys == ["loss_value"]
    assert isinstance(ours(observation=data["observation"], target=data["target"]), Tensor)
    ours.reset_out_keys()
    assert ours.out_keys == ["loss_value", "prediction"]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_calls_that_fail_in_torchrl_fail_in_the_same_way() -> None:
    reference, ours = both()
    calls = {
        "unknown role": lambda loss: loss.set_keys(nonsense="x"),
        "missing attribute": lambda loss: loss.nonsense,
        "missing parameters": lambda loss: loss.nonsense_params,
        "missing target": lambda loss: loss.target_nonsense_params,
        "missing network": lambda loss: loss.get_stateful_net("nonsense"),
        "mask key": lambda loss: setattr(loss, "loss_mask_key", 3.5),
        "list as mask key": lambda loss: setattr(loss, "loss_mask_key", ["a", "b"]),
        "coefficient bool": lambda loss: loss.register_coeff_buffer("c", True),
        "coefficient string": lambda loss: loss.register_coeff_buffer("c", "a"),
        "coefficient vector": lambda loss: loss.register_coeff_buffer("c", torch.ones(2)),
        "randomness mode": lambda loss: loss.set_vmap_randomness("sometimes"),
        "randomness without ensemble": lambda loss: loss.set_vmap_randomness("same"),
        "reduction": lambda loss: loss._reduce_loss(torch.ones(3), reduction="median"),
        "tensor_keys": lambda loss: setattr(loss, "tensor_keys", 1),
        "estimator": lambda loss: loss.make_value_estimator("no such thing"),
        "no estimator": lambda loss: loss.value_estimator,
        "other parameters": lambda loss: loss.from_stateful_net("value_network", nn.Linear(3, 1)),
        "unknown keyword": lambda loss: loss.convert_to_functional(make_net(), "other", nonsense=1),
        "list without number": lambda loss: loss.convert_to_functional([make_net(), make_net()], "other"),
        "list of other length": lambda loss: loss.convert_to_functional([make_net()], "other", expand_dim=2),
        "forward of the base": lambda loss: type(loss).__mro__[1]().forward(make_data()),
        "deprecated key argument": lambda loss: loss._set_deprecated_ctor_keys(advantage_key="a"),
    }
    for what, call in calls.items():
        expected, got = outcome(lambda: call(reference)), outcome(lambda: call(ours))  # noqa: B023
        assert isinstance(expected, type), what
        assert issubclass(expected, Exception), what
        assert got is expected, what


# -- the metaclass ----------------------------------------------------------------------------------------------------


def test_forward_and_public_methods_named_loss_run_deterministically() -> None:
    for loss in both():
        with set_interaction_type(InteractionType.RANDOM):
            loss(make_data())
            assert loss.seen == [InteractionType.DETERMINISTIC]
            assert loss.extra_loss() is InteractionType.DETERMINISTIC
            assert loss.loss_extra() is InteractionType.RANDOM
            assert loss._private_loss() is InteractionType.RANDOM
            assert interaction_type() is InteractionType.RANDOM


def test_the_sampling_mode_of_a_loss_can_be_chosen() -> None:
    class Sampling(make_toy_class(OURS)):  # type: ignore[misc]
        deterministic_sampling_mode = InteractionType.MEAN

    loss = Sampling(make_net())
    loss(make_data())
    assert loss.seen == [InteractionType.MEAN]


def test_a_static_method_named_loss_stays_static() -> None:
    assert make_toy_class(OURS).static_loss(1) == 2
    assert both()[1].static_loss(1) == 2


def test_a_mixin_that_is_no_loss_module_is_wrapped_too() -> None:
    class Mixin:
        def mixed_loss(self) -> Any:
            return interaction_type()

    class Mixed(Mixin, OURS):  # type: ignore[misc]
        pass

    with set_interaction_type(InteractionType.RANDOM):
        assert Mixed().mixed_loss() is InteractionType.DETERMINISTIC


def test_a_recurrent_module_of_torchrl_sees_sequences_inside_a_loss() -> None:
    modes: list[Any] = []

    class Recurrent(OURS):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            lstm = LSTMModule(
                input_size=3,
                hidden_size=2,
                in_keys=["observation", "h", "c"],
                out_keys=["features", ("next", "h"), ("next", "c")],
            )
            self.convert_to_functional(lstm, "lstm")

        def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
            modes.append(torchrl.modules.recurrent_mode())
            with self.lstm_params.to_module(self.lstm):
                return TensorDict({"loss": self.lstm(tensordict)["features"].sum()})

    data = TensorDict(
        {
            "observation": torch.randn(4, 6, 3),
            "is_init": torch.zeros(4, 6, 1, dtype=torch.bool),
            "h": torch.zeros(4, 6, 1, 2),
            "c": torch.zeros(4, 6, 1, 2),
        },
        [4, 6],
        names=[None, "time"],
    )
    loss = Recurrent()
    loss(data)["loss"].backward()
    assert modes == [True]
    assert not torchrl.modules.recurrent_mode()
    assert all(parameter.grad is not None for parameter in loss.parameters())


# -- keys -------------------------------------------------------------------------------------------------------------


def test_set_keys_changes_what_is_read_and_none_brings_the_default_back() -> None:
    _, ours = both()
    data = make_data()
    expected = ours(data)["loss_value"]
    renamed = data.copy().rename_key_("target", "goal")
    ours.set_keys(value_target="goal")
    assert "goal" in ours.in_keys
    torch.testing.assert_close(ours(renamed)["loss_value"], expected)
    ours.set_keys(value_target=None)
    assert ours.tensor_keys.value_target == "target"
    assert "target" in ours.in_keys


def test_an_unknown_role_changes_nothing() -> None:
    _, ours = both()
    with pytest.raises(ValueError, match="nonsense"):
        ours.set_keys(value_target="goal", nonsense="x")
    assert ours.tensor_keys.value_target == "target"


def test_a_key_that_the_estimator_refuses_leaves_the_keys_of_the_loss_alone() -> None:
    loss = EstimatedLoss(make_net())
    loss.make_value_estimator()
    with pytest.raises(KeyError):
        loss.set_keys(advantage="adv", value="not_written_by_the_network")
    assert loss.tensor_keys.value == "state_value"
    assert loss.tensor_keys.advantage == "advantage"


def test_two_losses_of_one_class_do_not_share_their_keys() -> None:
    cls = make_toy_class(OURS)
    first, second = cls(make_net()), cls(make_net())
    first.set_keys(reward="r")
    assert second.tensor_keys.reward == "reward"


# -- value estimator --------------------------------------------------------------------------------------------------


class EstimatedLoss(OURS):  # type: ignore[misc]
    """A loss of ours: the base class does all about the estimator."""

    @dataclass
    class _AcceptedKeys:
        advantage: Any = "advantage"
        value_target: Any = "value_target"
        value: Any = "state_value"
        reward: Any = "reward"
        done: Any = "done"
        terminated: Any = "terminated"

    default_keys = _AcceptedKeys
    default_value_estimator = tritonrl_objectives.ValueEstimators.GAE
    SUPPORTED_VALUE_ESTIMATORS = (tritonrl_objectives.ValueEstimators.GAE,)

    def __init__(self, critic: nn.Module) -> None:
        super().__init__()
        self.convert_to_functional(critic, "critic_network")

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        data = tensordict.copy()
        params = self.critic_network_params.detach()
        self.value_estimator(data, params=params, target_params=self.target_critic_network_params)
        with self.critic_network_params.to_module(self.critic_network):
            value = self.critic_network(data)["state_value"]
        return TensorDict({"loss_value": (value - data["value_target"]).square().mean()})


def make_rollout() -> TensorDict:
    done = torch.rand(3, 7, 1) < 0.2
    return TensorDict(
        {
            "observation": torch.randn(3, 7, 3),
            "next": {
                "observation": torch.randn(3, 7, 3),
                "reward": torch.randn(3, 7, 1),
                "done": done,
                "terminated": done,
            },
        },
        [3, 7],
    )


def test_the_default_estimator_is_built_when_it_is_first_needed() -> None:
    loss = EstimatedLoss(make_net())
    assert loss._value_estimator is None
    loss(make_rollout())["loss_value"].backward()
    assert isinstance(loss.value_estimator, GAE)
    assert loss.value_type is tritonrl_objectives.ValueEstimators.GAE
    assert "_value_estimator.gamma" in loss.state_dict()


def test_keys_chosen_before_the_estimator_is_built_reach_it() -> None:
    loss = EstimatedLoss(make_net())
    loss.set_keys(advantage="adv", reward=("agent", "reward"))
    assert loss.value_estimator.tensor_keys.advantage == "adv"
    assert loss.value_estimator.tensor_keys.reward == ("agent", "reward")
    loss.set_keys(advantage="later")
    assert loss.value_estimator.tensor_keys.advantage == "later"


@pytest.mark.parametrize("value_type", [None, "gae", "GAE", tritonrl_objectives.ValueEstimators.GAE])
def test_an_estimator_can_be_named_in_several_ways(value_type: Any) -> None:
    loss = EstimatedLoss(make_net())
    assert loss.make_value_estimator(value_type, gamma=0.9) is None
    assert isinstance(loss.value_estimator, GAE)
    torch.testing.assert_close(loss.value_estimator.gamma, torch.tensor(0.9), check_dtype=False)


def test_the_discount_of_the_loss_is_the_default_discount() -> None:
    loss = EstimatedLoss(make_net())
    loss.gamma = 0.5
    assert float(loss.value_estimator.gamma) == 0.5
    loss.make_value_estimator("gae", gamma=0.25)
    assert float(loss.value_estimator.gamma) == 0.25


def test_an_estimator_instance_or_class_is_taken_as_it_is() -> None:
    loss = EstimatedLoss(make_net())
    mine = GAE(gamma=0.7, lmbda=0.6, value_network=make_net())
    assert loss.make_value_estimator(mine) is loss
    assert loss.value_estimator is mine
    assert loss.value_type is GAE
    assert loss.make_value_estimator(GAE, gamma=0.4, lmbda=0.6, value_network=None) is loss
    assert float(loss.value_estimator.gamma) == pytest.approx(0.4)


def test_an_estimator_of_torchrl_can_be_used_too() -> None:
    loss = EstimatedLoss(make_net())
    loss.make_value_estimator(torchrl_value.TD0Estimator(gamma=0.9, value_network=None))
    assert isinstance(loss.value_estimator, torchrl_value.TD0Estimator)


def test_what_is_no_estimator_is_refused() -> None:
    loss = EstimatedLoss(make_net())
    with pytest.raises(NotImplementedError, match="TD0"):
        loss.make_value_estimator("td0")
    with pytest.raises(KeyError, match="nonsense"):
        loss.make_value_estimator("nonsense")
    with pytest.raises(TypeError):
        loss.make_value_estimator(3)
    with pytest.raises(TypeError, match="no_such_option"):
        loss.make_value_estimator("gae", no_such_option=1)
    with pytest.raises(TypeError, match="gamma"):
        loss.make_value_estimator(GAE(gamma=0.7, lmbda=0.6, value_network=make_net()), gamma=0.9)
    assert loss._value_estimator is None


def test_an_estimator_that_cannot_be_built_says_why() -> None:
    class Broken(EstimatedLoss):
        def make_value_estimator(self, value_type: Any = None, **hyperparams: Any) -> None:
            raise AttributeError("the critic is missing")

    with pytest.raises(RuntimeError, match="the critic is missing"):
        Broken(make_net()).value_estimator  # noqa: B018


# -- modules of TorchRL inside our loss -------------------------------------------------------------------------------


def test_an_actor_and_a_critic_of_torchrl_give_torchrls_numbers() -> None:
    def run(base: Any) -> tuple[Tensor, list[str], dict[str, Tensor]]:
        class ActorCritic(base):  # type: ignore[misc]
            def __init__(self, actor: nn.Module, critic: nn.Module) -> None:
                super().__init__()
                self.convert_to_functional(actor, "actor_network")
                self.convert_to_functional(critic, "critic_network", create_target_params=True)

            def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
                with self.actor_network_params.to_module(self.actor_network):
                    distribution = self.actor_network.get_dist(tensordict.copy())
                with self.critic_network_params.to_module(self.critic_network):
                    value = self.critic_network(tensordict.copy())["state_value"]
                log_prob = distribution.log_prob(tensordict["action"])
                return TensorDict({"loss": (value.squeeze(-1) * log_prob).mean()})

        torch.manual_seed(0)
        params = TensorDictModule(
            nn.Sequential(nn.Linear(3, 4), NormalParamExtractor()), in_keys=["observation"], out_keys=["loc", "scale"]
        )
        actor = ProbabilisticActor(params, in_keys=["loc", "scale"], distribution_class=TanhNormal)
        loss = ActorCritic(actor, ValueOperator(nn.Linear(3, 1), in_keys=["observation"]))
        data = TensorDict({"observation": torch.randn(5, 3), "action": torch.rand(5, 2) - 0.5}, [5])
        value = loss(data)["loss"]
        value.backward()
        return value, list(loss.state_dict()), {name: p.grad for name, p in loss.named_parameters()}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, ours = run(BASES[0]), run(BASES[1])
    torch.testing.assert_close(ours[0], expected[0])
    assert ours[1] == expected[1]
    assert ours[2].keys() == expected[2].keys()
    for name, grad in expected[2].items():
        torch.testing.assert_close(ours[2][name], grad)


# -- the rest ---------------------------------------------------------------------------------------------------------


def test_total_sums_what_starts_with_loss() -> None:
    loss = OURS()
    out = TensorDict(
        loss_a=torch.tensor(1.0), loss_b=torch.tensor(2.0), entropy=torch.tensor(4.0), no_loss=torch.tensor(8.0)
    )
    assert loss.total(out) == 3.0
    assert loss.total(TensorDict(loss=torch.tensor(5.0))) == 5.0
    with pytest.raises(KeyError, match="entropy"):
        loss.total(TensorDict(entropy=torch.tensor(4.0)))
    with pytest.raises(ValueError, match="one shape"):
        loss.total(TensorDict(loss_a=torch.zeros(3), loss_b=torch.zeros(2, 3)))


def test_the_reduction_of_the_loss_is_the_default() -> None:
    _, ours = both()
    values = torch.tensor([1.0, 2.0, 6.0])
    assert ours._reduce_loss(values) == 3.0
    assert ours._reduce_loss(values, reduction="sum") == 9.0
    ours.reduction = "none"
    assert ours._reduce_loss(values).shape == (3,)


def test_priority_weights_are_found_unless_switched_off() -> None:
    class Weighted(OURS):  # type: ignore[misc]
        @dataclass
        class _AcceptedKeys:
            priority_weight: Any = "priority_weight"

    loss = Weighted()
    data = TensorDict({"priority_weight": torch.ones(3)}, [3])
    assert loss._maybe_get_priority_weight(data) is data["priority_weight"]
    assert loss._maybe_get_priority_weight(TensorDict({}, [3])) is None
    loss.use_prioritized_weights = False
    assert loss._maybe_get_priority_weight(data) is None


def test_a_loss_can_be_printed_before_it_has_keys() -> None:
    assert "LossModule" in repr(OURS())
    assert "value_network_params" in repr(both()[1])


def test_reset_does_nothing_by_default() -> None:
    _, ours = both()
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    ours.reset()
    assert all(torch.equal(before[key], value) for key, value in ours.state_dict().items())


def test_vmap_randomness_looks_for_dropout() -> None:
    assert make_toy_class(OURS)(make_net()).vmap_randomness == "error"
    noisy = TensorDictModule(
        nn.Sequential(nn.Linear(3, 1), nn.Dropout()), in_keys=["observation"], out_keys=["state_value"]
    )
    assert make_toy_class(OURS)(noisy).vmap_randomness == "different"


def test_a_refused_randomness_mode_changes_nothing() -> None:
    _, ours = both()
    with pytest.raises(NotImplementedError):
        ours.set_vmap_randomness("same")
    assert ours.vmap_randomness == "error"
    ours.deactivate_vmap = True
    with pytest.raises(ValueError, match="same"):
        ours.set_vmap_randomness("same")
