"""Soft actor-critic for discrete actions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Number
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor

from tritonrl.modules.action_space import action_space_name, action_space_sizes
from tritonrl.objectives.actor_keys import check_policy
from tritonrl.objectives.chosen_action_value import chosen_action_value
from tritonrl.objectives.critic_loss import required_entry
from tritonrl.objectives.off_policy import OffPolicyLoss
from tritonrl.objectives.soft_actor_critic import ActorTerm, CriticTerm, SoftActorCriticLoss

__all__ = ["DiscreteSACLoss"]

_SMALLEST_PROBABILITY = 1e-8


class DiscreteSACLoss(SoftActorCriticLoss):
    r"""Soft actor-critic for discrete actions, Christodoulou 2019, https://arxiv.org/abs/1910.07207.

    The expectations over actions that :class:`~tritonrl.objectives.sac.SACLoss` samples are sums here: with N critics
    that value every action, and delayed copies :math:`\bar Q_i`,

    .. math::
        L_Q &= \mathbb{E}\Big[\sum_i d(Q_i(o, a), y)\Big], \quad
        y = r + \gamma^n (1 - z) \sum_{a'} \pi(a'|o') \big[\min_i \bar Q_i(o', a') - \alpha \log \pi(a'|o')\big] \\
        L_\pi &= \mathbb{E}\Big[\sum_a \pi(a|o) \big[\alpha \log \pi(a|o) - \min_i Q_i(o, a)\big]\Big] \\
        L_\alpha &= -\mathbb{E}\Big[\log\alpha\, \Big(\sum_a \pi(a|o) \log \pi(a|o) + \bar H\Big)\Big]

    with z the terminated flag, n = ``steps_to_next_obs`` and the target entropy :math:`\bar H`, positive here. An action
    of probability 0 counts in no sum, whatever its value is.

    The data, of batch size ``[*B]``, hold what the networks read, at the root and under ``"next"``; ``action``;
    ``("next", reward | done | terminated)``, ``[*B, 1]``; optionally ``steps_to_next_obs`` and ``priority_weight``,
    ``[*B]``. ``td_error``, ``[*B]``, is written into them: :math:`\max_i |Q_i - y|`. ``set_keys`` renames them.

    The result has ``loss_actor``, ``loss_qvalue`` and ``loss_alpha``, to be added up (``loss.total(out)``), and the
    metrics ``alpha`` and ``entropy``. Each term has a gradient to its own network only.

    Args:
        actor_network: the policy, a probabilistic tensordict module whose distribution has ``probs``, ``[*B, n]``.
        qvalue_network: the critic, writing ``action_value`` ``[*B, n]``: one module, of which ``num_qvalue_nets``
            independently initialised copies are made, or a list of that many.

    Keyword Args:
        action_space: how the stored action is encoded: a name (``"one-hot"``, ``"categorical"``) or a spec. None warns
            and means one-hot.
        num_actions: n, needed for ``target_entropy="auto"``.
        num_qvalue_nets: N.
        loss_function: the distance d, ``"l1"``, ``"l2"`` or ``"smooth_l1"``.
        alpha_init: the first alpha.
        min_alpha, max_alpha: bounds of alpha; None for none.
        fixed_alpha: keep alpha as it is.
        target_entropy_weight: see ``target_entropy``.
        target_entropy: a number, or ``"auto"`` for ``target_entropy_weight * log(num_actions)``, that share of the
            largest entropy possible.
        delay_qvalue: keep delayed copies of the critics, for a target updater to move.
        priority_key: gone; use ``set_keys``.
        separate_losses: keep the gradient of the critics away from parameters that they share with the actor.
        reduction: ``"mean"`` (default), ``"sum"`` or ``"none"``.
        skip_done_states: keep next states that are not finite away from every network where the step is done.
        deactivate_vmap: evaluate the critics one after the other.
        use_prioritized_weights: whether ``priority_weight`` weighs every term; ``"auto"``: if it is there.
        scalar_output_mode: what becomes of the metrics where nothing is reduced, ``"exclude"`` or ``"non_tensor"``.

    Raises:
        TypeError: for an actor without ``get_dist``.
        ValueError: for options out of range, ``num_actions`` missing, an unknown action space, or a critic that is
            listed twice.
        RuntimeError: for a key in the constructor.

    Example:
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import ProbabilisticTensorDictModule
        >>> actor = ProbabilisticTensorDictSequential(
        ...     TensorDictModule(torch.nn.Linear(3, 4), ["observation"], ["logits"]),
        ...     ProbabilisticTensorDictModule(["logits"], ["action"], distribution_class=torch.distributions.Categorical),
        ... )
        >>> critic = TensorDictModule(torch.nn.Linear(3, 4), ["observation"], ["action_value"])
        >>> loss = DiscreteSACLoss(actor, critic, action_space="categorical", num_actions=4, delay_qvalue=False)
        >>> data = TensorDict({"observation": torch.randn(6, 3), "action": torch.randint(4, (6,))}, [6])
        >>> data["next"] = {"observation": torch.randn(6, 3), "reward": torch.randn(6, 1)}
        >>> _ = data["next"].update({key: torch.zeros(6, 1, dtype=torch.bool) for key in ("done", "terminated")})
        >>> out = loss(data)
        >>> loss.total(out).backward()
        >>> data["td_error"].shape
        torch.Size([6])
    """

    @dataclass
    class _AcceptedKeys(OffPolicyLoss._AcceptedKeys):
        """Entries by role. ``log_prob`` is not read."""

        value: NestedKey = "state_value"
        action_value: NestedKey = "action_value"
        log_prob: NestedKey = "log_prob"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys
    delay_actor = False
    target_entropy: Tensor

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        qvalue_network: TensorDictModule | list[TensorDictModule],
        *,
        action_space: Any = None,
        num_actions: int | None = None,
        num_qvalue_nets: int = 2,
        loss_function: str = "smooth_l1",
        alpha_init: float = 1.0,
        min_alpha: float | None = None,
        max_alpha: float | None = None,
        fixed_alpha: bool = False,
        target_entropy_weight: float = 0.98,
        target_entropy: str | float = "auto",
        delay_qvalue: bool = True,
        priority_key: str | None = None,
        separate_losses: bool = False,
        reduction: str | None = None,
        skip_done_states: bool = False,
        deactivate_vmap: bool = False,
        use_prioritized_weights: str | bool = "auto",
        scalar_output_mode: str | None = None,
    ) -> None:
        check_policy(actor_network)
        target_entropy = _entropy_to_aim_at(target_entropy, target_entropy_weight, num_actions)
        super().__init__()
        self._set_deprecated_ctor_keys(priority_key=priority_key)
        self._register_reduction(reduction, scalar_output_mode)
        self._register_action_space(action_space)
        self.loss_function = loss_function
        self.separate_losses = separate_losses
        self.skip_done_states = skip_done_states
        self.use_prioritized_weights = use_prioritized_weights
        self.convert_to_functional(actor_network, "actor_network")
        self._register_critics(
            qvalue_network,
            num_qvalue_nets,
            delay=delay_qvalue,
            compare_against=list(actor_network.parameters()) if separate_losses else None,
            deactivate_vmap=deactivate_vmap,
        )
        self._register_temperature(alpha_init, min_alpha, max_alpha, fixed_alpha, self._default_device)
        self.register_buffer("target_entropy", torch.tensor(float(target_entropy), device=self._default_device))
        self.out_keys = list(self._iter_out_keys())

    def _register_action_space(self, action_space: Any) -> None:
        if action_space is None:
            warnings.warn(
                "action_space was not given: the stored actions are taken for one-hot encoded ones. Pass 'one-hot', "
                "'categorical' or the spec of the action.",
                category=UserWarning,
                stacklevel=4,
            )
            action_space = "one_hot"
        self.action_space = action_space_name(action_space, self.tensor_keys.action)
        self._action_sizes = action_space_sizes(action_space, self.tensor_keys.action)

    def _iter_in_keys(self) -> Iterator[NestedKey]:
        yield from self._input_keys(self.qvalue_network)
        yield from self._transition_keys()

    # -- parts of the terms ---------------------------------------------------------------------------------------

    def _probabilities(self, inputs: TensorDictBase) -> Tensor:
        """pi(.|o), ``[*B, n]``."""
        distribution = self._policy(inputs)
        probabilities = getattr(distribution, "probs", None)
        if probabilities is None:
            raise TypeError(
                "the policy must be a distribution over discrete actions, with probs, got "
                f"{type(distribution).__name__}"
            )
        return probabilities

    def _smallest_values(self, inputs: TensorDictBase, params: TensorDictBase, shape: torch.Size) -> Tensor:
        """min_i Q_i of every action, ``[*B, n]``."""
        values = self._critic_values(inputs, params, self.tensor_keys.action_value)
        return self._checked_values(values, shape).amin(0)

    @torch.no_grad()
    def _next_soft_value(self, data: TensorDictBase, alpha: Tensor) -> Tensor:
        """The soft value of the next state under the delayed critics and the actor as it is, ``[*B]``."""
        inputs = self._following(data, self.qvalue_network)
        probabilities = self._probabilities(inputs)
        value = self._smallest_values(inputs, self.target_qvalue_network_params, probabilities.shape)
        return expected(probabilities, value - alpha * safe_log(probabilities))

    # -- the terms ------------------------------------------------------------------------------------------------

    def _critic_term(self, data: TensorDictBase, alpha: Tensor) -> CriticTerm:
        target = self._td_target(data, self._next_soft_value(data, alpha))
        values = self._critic_values(data, key=self.tensor_keys.action_value)
        action = required_entry(data, self.tensor_keys.action, "it says which value is trained (set_keys(action=...))")
        prediction = torch.stack(
            [chosen_action_value(value, action, self.action_space, self._action_sizes) for value in values.unbind(0)]
        )
        return self._all_critics_term(prediction, target)

    def _actor_term(self, data: TensorDictBase, alpha: Tensor) -> ActorTerm:
        inputs = data.copy()
        probabilities = self._probabilities(inputs)
        value = self._smallest_values(inputs, self.qvalue_network_params.data, probabilities.shape)
        log_probabilities = safe_log(probabilities)
        loss = expected(probabilities, alpha * log_probabilities - value)
        return ActorTerm(loss, expected(probabilities, log_probabilities))

    # -- the term alone -------------------------------------------------------------------------------------------

    def qvalue_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The term of the critics alone.

        Returns:
            The reduced loss, and ``{"td_error": ...}``. Nothing is written.
        """
        return self._critic_loss(tensordict)


def _entropy_to_aim_at(target_entropy: str | float, weight: float, num_actions: int | None) -> float:
    """The number that ``target_entropy`` stands for."""
    if isinstance(target_entropy, (Number, Tensor)):
        return float(target_entropy)
    if target_entropy != "auto":
        raise ValueError(f"target_entropy must be a number or 'auto', got {target_entropy!r}")
    if num_actions is None:
        raise ValueError("num_actions must be given for target_entropy='auto', which is derived from it")
    return weight * math.log(num_actions)


def safe_log(probabilities: Tensor) -> Tensor:
    """Logarithm, with 1e-8 in the place of 0."""
    return torch.where(probabilities > 0, probabilities, _SMALLEST_PROBABILITY).log()


def expected(probabilities: Tensor, values: Tensor) -> Tensor:
    """Sum over the actions of probability times value, ``[*B]``; impossible actions are left out by selection."""
    possible = probabilities > 0
    return (probabilities * torch.where(possible, values, torch.zeros_like(values))).sum(-1)
