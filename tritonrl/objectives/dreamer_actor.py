"""The actor of Dreamer, trained in imagination."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.nn.probabilistic import InteractionType, set_interaction_type
from torch import Tensor, nn

from tritonrl.objectives.common import LossModule
from tritonrl.objectives.critic_loss import required_entry
from tritonrl.objectives.hold_out import hold_out_net
from tritonrl.objectives.horizon_weights import horizon_weights
from tritonrl.objectives.validity import hide_invalid
from tritonrl.objectives.value.estimators.keys import next_key
from tritonrl.objectives.value.registry import ValueEstimators

__all__ = ["DreamerActorLoss"]


class DreamerActorLoss(LossModule):
    r"""Actor of Dreamer, Hafner et al. 2019, https://arxiv.org/abs/1912.01603.

    From every state of the data the actor is followed for H steps through the world model, and the TD(:math:`\lambda`)
    returns :math:`G_t` of what the world model promises are maximised, by gradients through the imagined steps:

    .. math::
        L_{actor} = -\mathbb{E}\Big[\textstyle\sum_{t=0}^{H-1} \gamma^t\, G_t\Big], \qquad
        G_t = \hat r_t + \gamma \big((1 - \lambda)\, V(s_{t+1}) + \lambda\, G_{t+1}\big), \quad G_H = V(s_H)

    with gamma 0.99 and lambda 0.95 unless ``make_value_estimator`` says otherwise. Actions and states are sampled
    (reparametrised). World model and value function are constants here: gradients run through them, not to them.

    The data, of batch size ``[*B]``, hold the states to start from, ``state`` and ``belief``, which are detached; they
    are not written to. States that a validity mask (``loss_mask_key``) excludes do not count.

    Args:
        actor_model: the policy, a tensordict module that reads the state and writes the action.
        value_model: the value function, a tensordict module that writes ``state_value`` ``[*B, 1]``.
        model_based_env: the world model as an environment, with ``reset(tensordict)`` and ``rollout(max_steps=H,
            policy=..., auto_reset=False, tensordict=...)``, which gives a tensordict of batch size ``[*B, H]`` with the
            states, the actions and ``("next", reward)``. :class:`tritonrl.modules.ImaginationEnv` and TorchRL's
            ``DreamerEnv`` are such.

    Keyword Args:
        imagination_horizon: H.
        discount_loss: weigh the return of the t-th imagined step by :math:`\gamma^t`; otherwise by 1.
        gamma, lmbda: gone; they belong to the value estimator.

    Raises:
        TypeError: for ``gamma`` or ``lmbda``, or an environment without ``reset`` and ``rollout``.
        ValueError: if the horizon is less than 1.

    Example:
        >>> from tensordict.nn import TensorDictModule
        >>> class Drift:  # s' = s + a, and the reward is -s'^2
        ...     def reset(self, tensordict):
        ...         return tensordict
        ...     def rollout(self, max_steps, policy, auto_reset, tensordict):
        ...         steps = []
        ...         for _ in range(max_steps):
        ...             step = policy(tensordict.copy())
        ...             state = step["state"] + step["action"]
        ...             tensordict = tensordict.copy().set("state", state)
        ...             steps.append(step.set("next", tensordict.copy().set("reward", -state.square())))
        ...         return torch.stack(steps, -1)
        >>> actor = TensorDictModule(nn.Linear(1, 1), in_keys=["state"], out_keys=["action"])
        >>> value = TensorDictModule(nn.Linear(1, 1), in_keys=["state"], out_keys=["state_value"])
        >>> loss = DreamerActorLoss(actor, value, Drift(), imagination_horizon=4)
        >>> losses, imagined = loss(TensorDict(state=torch.randn(5, 1), belief=torch.zeros(5, 1), batch_size=[5]))
        >>> imagined["lambda_target"].shape
        torch.Size([5, 4, 1])
        >>> losses["loss_actor"].backward()
        >>> value.module.weight.grad is None
        True
    """

    @dataclass
    class _AcceptedKeys:
        """Entries by role: ``state`` and ``belief`` are read at the root, the others under ``"next"``."""

        belief: NestedKey = "belief"
        reward: NestedKey = "reward"
        value: NestedKey = "state_value"
        done: NestedKey = "done"
        terminated: NestedKey = "terminated"
        state: NestedKey = "state"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys
    default_value_estimator: ClassVar[ValueEstimators] = ValueEstimators.TDLambda
    SUPPORTED_VALUE_ESTIMATORS: ClassVar[tuple[ValueEstimators, ...]] = (
        ValueEstimators.TD0,
        ValueEstimators.TD1,
        ValueEstimators.TDLambda,
    )

    actor_model: TensorDictModuleBase
    value_model: TensorDictModuleBase
    model_based_env: Any

    def __init__(
        self,
        actor_model: TensorDictModuleBase,
        value_model: TensorDictModuleBase,
        model_based_env: Any,
        *,
        imagination_horizon: int = 15,
        discount_loss: bool = True,
        gamma: float | None = None,
        lmbda: float | None = None,
    ) -> None:
        self._refuse_gamma(gamma)
        if lmbda is not None:
            raise TypeError("lmbda is not an argument of the loss: call make_value_estimator(lmbda=...) on it")
        if not (hasattr(model_based_env, "reset") and hasattr(model_based_env, "rollout")):
            raise TypeError(
                f"model_based_env must have the methods reset and rollout, got {type(model_based_env).__name__}"
            )
        if imagination_horizon < 1:
            raise ValueError(f"imagination_horizon must be at least 1, got {imagination_horizon}")
        super().__init__()
        self.actor_model = actor_model
        self.__dict__["value_model"] = value_model  # Past nn.Module: the value loss trains and saves it.
        self.model_based_env = model_based_env
        self.imagination_horizon = imagination_horizon
        self.discount_loss = discount_loss
        self.out_keys = ["loss_actor"]
        self._build_estimator_early()

    @property
    def _estimator_can_be_built(self) -> bool:
        return True

    def make_value_estimator(self, value_type: Any = None, **hyperparams: Any) -> Any:
        if not isinstance(value_type, (type, TensorDictModuleBase)):
            # The loss values the imagined states itself, with the value function held out.
            hyperparams.setdefault("value_network", None)
        return super().make_value_estimator(value_type, **hyperparams)

    make_value_estimator.__doc__ = LossModule.make_value_estimator.__doc__

    def _iter_in_keys(self) -> Iterator[NestedKey]:
        yield from (self.tensor_keys.state, self.tensor_keys.belief)

    def forward(self, tensordict: TensorDictBase) -> tuple[TensorDictBase, TensorDictBase]:
        """The loss, and what was imagined.

        Args:
            tensordict: the states to start from, batch size ``[*B]``; not written to.

        Returns:
            A tensordict with ``loss_actor``, 0-dim, and the imagined steps, detached: batch size ``[*B, H]``, time last
            (and named so), with ``lambda_target`` ``[*B, H, 1]``, on which
            :class:`~tritonrl.objectives.dreamer_value.DreamerValueLoss` trains the value function. Validity masks of
            the data are handed on.

        Raises:
            KeyError: if an entry is missing, in the data or in what environment and value model write.
            RuntimeError: if rewards and values differ in shape.
        """
        imagined = self._imagine(self._start(tensordict))
        reward = required_entry(imagined, next_key(self.tensor_keys.reward), "the world model is to write it")
        lambda_target = self.lambda_target(reward, self._next_value(imagined))
        loss = self._reduce_loss(-self._weighted(lambda_target).sum((-2, -1)), tensordict, reduction="mean")
        imagined.set("lambda_target", lambda_target)
        self._hand_on_masks(tensordict, imagined)
        losses = TensorDict({"loss_actor": loss})
        self._clear_weakrefs(tensordict, imagined, losses)
        return losses, imagined.data

    def lambda_target(self, reward: Tensor, value: Tensor) -> Tensor:
        """The returns of imagined steps, none of which ends, from the value estimator.

        Args:
            reward: what each step brings, ``[*B, H, 1]``.
            value: the value of the state that it leads to, same shape.

        Returns:
            ``[*B, H, 1]``, with gradients to reward and value.

        Raises:
            RuntimeError: if the shapes differ.
        """
        if reward.shape != value.shape:
            raise RuntimeError(
                f"rewards and values of imagined steps must have the same shape, got {tuple(reward.shape)} and "
                f"{tuple(value.shape)}"
            )
        keys = self.tensor_keys
        never = torch.zeros_like(reward, dtype=torch.bool)
        steps = TensorDict({}, reward.shape[:-1])
        for key, entry in ((keys.reward, reward), (keys.done, never), (keys.terminated, never)):
            steps.set(next_key(key), entry)
        return self.value_estimator.value_estimate(steps, next_value=value)

    # -- imagination ----------------------------------------------------------------------------------------------

    def _start(self, tensordict: TensorDictBase) -> TensorDictBase:
        keys = (self.tensor_keys.state, self.tensor_keys.belief)
        start = tensordict.copy()
        hide_invalid(start, keys, self._loss_mask_keys())
        return start.select(*keys).data

    def _imagine(self, start: TensorDictBase) -> TensorDictBase:
        with _held_out(self.model_based_env), set_interaction_type(InteractionType.RANDOM):
            return self.model_based_env.rollout(
                max_steps=self.imagination_horizon,
                policy=self.actor_model,
                auto_reset=False,
                tensordict=self.model_based_env.reset(start),
            )

    def _next_value(self, imagined: TensorDictBase) -> Tensor:
        """The value of the state that each imagined step leads to, ``[*B, H, 1]``, with gradient to the state."""
        following = imagined.exclude("next").update(imagined.get("next"))
        inputs = following.select(*self.value_model.in_keys, strict=False)
        with hold_out_net(self.value_model):
            outputs = self.value_model(inputs)
        return required_entry(outputs, self.tensor_keys.value, "the value model is to write it (set_keys(value=...))")

    def _weighted(self, lambda_target: Tensor) -> Tensor:
        if not self.discount_loss:
            return lambda_target
        return lambda_target * horizon_weights(self.value_estimator.gamma, lambda_target)

    def _hand_on_masks(self, tensordict: TensorDictBase, imagined: TensorDictBase) -> None:
        """What starts from a state that does not count does not count either."""
        for key in self._loss_mask_keys():
            mask = tensordict.get(key, None)
            if mask is not None:
                mask = mask.reshape(tensordict.batch_size).unsqueeze(-1).expand(imagined.batch_size)
                imagined.set(key, mask.clone())


def _held_out(env: Any) -> AbstractContextManager[None]:
    return hold_out_net(env) if isinstance(env, nn.Module) else nullcontext()
