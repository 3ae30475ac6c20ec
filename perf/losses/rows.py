"""The rows of the table, as data: how a loss is built, on what batch, and which of its coefficients are moved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from types import ModuleType
from typing import Any, NamedTuple

import torchrl.objectives
import torchrl.objectives.value
from tensordict import TensorDict
from torchrl.data import Unbounded

import tritonrl.objectives
import tritonrl.objectives.value

from . import dreamer
from .batches import Shape, discrete, prepared_rollout, rollout, team_rollout, transitions
from .networks import ACTION, BENCHMARK, Networks, bounded_action


class Library(NamedTuple):
    """One of the two libraries: where its losses are, and where its estimators."""

    name: str
    objectives: ModuleType
    value: ModuleType


OURS = Library("tritonrl", tritonrl.objectives, tritonrl.objectives.value)
THEIRS = Library("torchrl", torchrl.objectives, torchrl.objectives.value)

Build = Callable[[Library, Networks], Any]  # a module, of either library


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: of the class.
        variant: what distinguishes it from other rows of the class; may be empty.
        build: makes the module with one of the libraries.
        batch: makes a batch of a shape, from a seed.
        shape: of the batch that is timed.
        gamma, lmbda, coefficients: what is moved between calls, as paths of attributes of the module.
        differs: why TorchRL's numbers are not ours, where that is so on purpose.
        steps: how many there are in every batch, where they are walked through one by one.
    """

    name: str
    variant: str
    build: Build
    batch: Callable[[Shape, int], TensorDict]
    shape: Shape
    gamma: tuple[str, ...] = ()
    lmbda: tuple[str, ...] = ()
    coefficients: tuple[str, ...] = ()
    differs: str = ""
    steps: int | None = None

    @property
    def sizes(self) -> tuple[Shape, ...]:
        """Batches of four sizes. No size is that of a layer, and rows of pairs can be split in two."""
        times = (5, 7, 9, 11) if self.steps is None else (self.steps,) * 4
        return tuple((rows, time)[: len(self.shape)] for rows, time in zip((6, 14, 22, 26), times, strict=True))

    @property
    def id(self) -> str:
        """Name and variant in one."""
        return f"{self.name}, {self.variant}" if self.variant else self.name

    @property
    def is_loss(self) -> bool:
        """Whether there is something to differentiate: losses have a backward pass, estimators are called without."""
        return self.name.endswith("Loss")


ON_POLICY_SHAPE, OFF_POLICY_SHAPE = (128, 10), (128,)
GAMMA, LMBDA = ("value_estimator.gamma",), ("value_estimator.lmbda",)


def _on_policy_pair(name: str, coefficients: tuple[str, ...] = (), **options: Any) -> tuple[Row, Row]:
    def build(library: Library, networks: Networks) -> Any:
        loss = getattr(library.objectives, name)(networks.actor(), networks.value(), **options)
        loss.make_value_estimator(library.objectives.ValueEstimators.GAE, gamma=0.99, lmbda=0.95)
        return loss

    return (
        Row(name, "advantage given", build, prepared_rollout, ON_POLICY_SHAPE, (), (), coefficients),
        Row(name, "advantage computed", build, rollout, ON_POLICY_SHAPE, GAMMA, LMBDA, coefficients),
    )


PPO_COEFFICIENTS = ("entropy_coeff", "critic_coeff")
ON_POLICY = (
    *_on_policy_pair("PPOLoss", PPO_COEFFICIENTS),
    *_on_policy_pair("ClipPPOLoss", (*PPO_COEFFICIENTS, "clip_epsilon")),
    # TorchRL's gradient is that of the beta of the next call. With these factors beta stays, and the gradients compare.
    *_on_policy_pair("KLPENPPOLoss", (*PPO_COEFFICIENTS, "beta"), increment=1, decrement=1),
    *_on_policy_pair("A2CLoss", PPO_COEFFICIENTS),
    *_on_policy_pair("ReinforceLoss", ("clip_value",), clip_value=0.2),
)


def _estimator(
    name: str, lmbda: bool = False, actor: bool = False, batch: Callable[[Shape, int], TensorDict] = rollout
) -> Row:
    def build(library: Library, networks: Networks) -> Any:
        options: dict[str, Any] = {"value_network": networks.value(), "gamma": 0.99}
        if lmbda:
            options["lmbda"] = 0.95
        if actor:
            options["actor_network"] = networks.actor()
        return getattr(library.value, name)(**options)

    thresholds = ("rho_thresh", "c_thresh") if actor else ()
    differs = (
        "TorchRL scores an action that it draws, ours the stored one: other numbers, as much work" if actor else ""
    )
    return Row(name, "", build, batch, ON_POLICY_SHAPE, ("gamma",), ("lmbda",) * lmbda, thresholds, differs)


ESTIMATORS = (
    _estimator("GAE", lmbda=True),
    _estimator("TD0Estimator"),
    _estimator("TD1Estimator"),
    _estimator("TDLambdaEstimator", lmbda=True),
    _estimator("VTrace", actor=True),
    _estimator("MultiAgentGAE", lmbda=True, batch=team_rollout),
)


def _off_policy(
    name: str,
    build: Build,
    variant: str = "",
    batch: Callable[[Shape, int], TensorDict] = transitions,
    shape: Shape = OFF_POLICY_SHAPE,
    gamma: tuple[str, ...] = GAMMA,
    coefficients: tuple[str, ...] = (),
) -> Row:
    def with_estimator(library: Library, networks: Networks) -> Any:
        loss = build(library, networks)
        if gamma == GAMMA:
            loss.make_value_estimator()
        return loss

    return Row(name, variant, with_estimator, batch, shape, gamma, (), coefficients)


def _unbounded() -> Unbounded:
    return Unbounded(ACTION)


OFF_POLICY = (
    _off_policy(
        "DQNLoss", lambda lib, net: lib.objectives.DQNLoss(net.greedy_actor(), action_space="one-hot"), batch=discrete
    ),
    _off_policy(
        "DQNLoss",
        lambda lib, net: lib.objectives.DQNLoss(net.greedy_actor(), action_space="one-hot", double_dqn=True),
        variant="double",
        batch=discrete,
    ),
    _off_policy(
        "DistributionalDQNLoss",
        lambda lib, net: lib.objectives.DistributionalDQNLoss(net.distributional_actor(lib.name), gamma=0.99),
        batch=discrete,
        gamma=("gamma",),
    ),
    _off_policy("DDPGLoss", lambda lib, net: lib.objectives.DDPGLoss(net.deterministic_actor(), net.action_value())),
    _off_policy(
        "TD3Loss",
        lambda lib, net: lib.objectives.TD3Loss(
            net.deterministic_actor(), net.action_value(), action_spec=bounded_action()
        ),
        coefficients=("policy_noise", "noise_clip"),
    ),
    _off_policy(
        "SACLoss",
        lambda lib, net: lib.objectives.SACLoss(net.actor(), net.action_value(), action_spec=_unbounded()),
        variant="v2",
    ),
    _off_policy(
        "SACLoss",
        lambda lib, net: lib.objectives.SACLoss(net.actor(), net.action_value(), net.value(), action_spec=_unbounded()),
        variant="v1",
    ),
    _off_policy(
        "DiscreteSACLoss",
        lambda lib, net: lib.objectives.DiscreteSACLoss(
            net.categorical_actor(), net.all_action_values(), num_actions=ACTION, action_space="one-hot"
        ),
        batch=discrete,
    ),
    _off_policy(
        "REDQLoss",
        lambda lib, net: lib.objectives.REDQLoss(
            net.actor(), net.action_value(), action_spec=_unbounded(), num_qvalue_nets=net.scale.critics
        ),
    ),
    _off_policy(
        "IQLLoss",
        lambda lib, net: lib.objectives.IQLLoss(net.actor(), net.action_value(), net.value()),
        shape=ON_POLICY_SHAPE,
        coefficients=("temperature", "expectile"),
    ),
    _off_policy(
        "DiscreteIQLLoss",
        lambda lib, net: lib.objectives.DiscreteIQLLoss(
            net.categorical_actor(), net.all_action_values("state_action_value"), net.value(), action_space="one-hot"
        ),
        batch=discrete,
        coefficients=("temperature", "expectile"),
    ),
)


def _dreamer_actor_loss(library: Library, networks: Networks) -> Any:
    loss = library.objectives.DreamerActorLoss(
        dreamer.actor(networks),
        dreamer.value(networks),
        dreamer.environment(library.name, networks),
        imagination_horizon=networks.scale.horizon,
    )
    loss.make_value_estimator()
    return loss


DREAMER = (
    Row(
        "DreamerModelLoss",
        "",
        lambda lib, net: lib.objectives.DreamerModelLoss(dreamer.world_model(lib.name, net)),
        dreamer.sequences,
        (32, dreamer.STEPS),
        coefficients=("lambda_kl", "lambda_reco", "lambda_reward", "free_nats"),
        steps=dreamer.STEPS,
    ),
    Row(
        "DreamerActorLoss",
        "",
        _dreamer_actor_loss,
        dreamer.starts,
        OFF_POLICY_SHAPE,
        GAMMA,
        LMBDA,
        differs="TorchRL takes the last dimension of the reward for time, so that its return looks one step ahead",
    ),
    Row(
        "DreamerValueLoss",
        "",
        lambda lib, net: lib.objectives.DreamerValueLoss(dreamer.value(net)),
        dreamer.imagined,
        (128, BENCHMARK.horizon),
        ("gamma",),
    ),
)


def registry() -> tuple[Row, ...]:
    """All rows."""
    return (*ON_POLICY, *ESTIMATORS, *OFF_POLICY, *DREAMER)


def select(patterns: list[str]) -> list[Row]:
    """The rows whose id matches one of the patterns; all if there are none."""
    return [row for row in registry() if not patterns or any(fnmatch(row.id, pattern) for pattern in patterns)]
