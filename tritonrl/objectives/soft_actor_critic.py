"""What SAC for continuous and for discrete actions share: soft values, a learnt temperature, the smallest critic."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import InteractionType, TensorDictModuleBase, dispatch
from tensordict.nn.probabilistic import set_interaction_type
from tensordict.utils import expand_right
from torch import Tensor
from torch.distributions import Distribution

from tritonrl.objectives.functional_params import swap_params
from tritonrl.objectives.metrics import masked_mean
from tritonrl.objectives.off_policy import OffPolicyLoss
from tritonrl.objectives.temperature import EntropyTemperature
from tritonrl.objectives.value.estimators.keys import next_key

__all__ = ["ActorTerm", "CriticTerm", "SoftActorCriticLoss"]


class CriticTerm(NamedTuple):
    """The regression of the critics: element-wise loss and TD error, ``[*B]`` each."""

    loss: Tensor
    td_error: Tensor


class ActorTerm(NamedTuple):
    """The objective of the actor: element-wise loss and log-probability (minus the entropy), ``[*B]`` each."""

    loss: Tensor
    log_prob: Tensor


class SoftActorCriticLoss(EntropyTemperature, OffPolicyLoss):
    """Base of the soft actor-critics: a subclass says what its element-wise terms are.

    They are :meth:`_critic_term`, :meth:`_actor_term` and, if there is one, :meth:`_state_value_term`.
    """

    actor_network: Any
    target_entropy: Any
    skip_done_states: bool

    # -- construction ---------------------------------------------------------------------------------------------

    def _iter_out_keys(self) -> Iterator[str]:
        """What dispatch returns, in order."""
        yield from ("loss_actor", "loss_qvalue", "loss_alpha")
        if self.reduction != "none":
            yield from ("alpha", "entropy")

    # -- the next state -------------------------------------------------------------------------------------------

    def _following(self, data: TensorDictBase, *networks: TensorDictModuleBase) -> TensorDictBase:
        """What actor and ``networks`` read of the next step, less what the actor makes."""
        made = self._made_by_actor()
        if self.skip_done_states:
            keys = {key for network in (self.actor_network, *networks) for key in network.in_keys} - made
            data = self._without_lost_states(data, keys)
        return self._next_inputs(data, self.actor_network, *networks, without=made)

    def _without_lost_states(self, data: TensorDictBase, keys: Iterable[NestedKey]) -> TensorDictBase:
        """Where a step is done, what is not finite in the next state gives way to the entry of this step.

        What the networks make of it is not looked at where the step terminated. Rows are not removed: the shapes, and
        with them a compiled graph, would depend on the data.
        """
        ended = data.get(next_key(self.tensor_keys.terminated), None)
        done = data.get(next_key(self.tensor_keys.done), None)
        if done is not None:
            ended = done if ended is None else done | ended
        if ended is None:
            return data
        ended = ended.squeeze(-1) if ended.ndim > data.ndim else ended
        data = data.copy()
        for key in keys:
            here, there = data.get(key, None), data.get(next_key(key), None)
            if isinstance(here, Tensor) and isinstance(there, Tensor) and there.is_floating_point():
                keep = there.isfinite() | ~expand_right(ended, there.shape)
                data.set(next_key(key), torch.where(keep, there, here))
        return data

    # -- calls of the networks ------------------------------------------------------------------------------------

    def _policy(self, inputs: TensorDictBase, params: TensorDictBase | None = None) -> Distribution:
        """The policy on ``inputs``, which then also hold what the actor computes on the way."""
        params = self.actor_network_params if params is None else params
        with swap_params(params, self.actor_network), set_interaction_type(InteractionType.RANDOM):
            return self.actor_network.get_dist(inputs)

    def _checked_values(self, values: Tensor, shape: Iterable[int]) -> Tensor:
        """The values of the critics ``[N, *B]`` (or ``[N, *B, n]``), if they have that shape."""
        expected = (self.num_qvalue_nets, *shape)
        if tuple(values.shape) != expected:
            raise RuntimeError(f"the critics must give values of shape {expected}, got {tuple(values.shape)}")
        return values

    # -- the terms, element-wise ----------------------------------------------------------------------------------

    def _critic_term(self, data: TensorDictBase, alpha: Tensor) -> CriticTerm:
        """The regression of the critics on their targets."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it trains its critics.")

    def _actor_term(self, data: TensorDictBase, alpha: Tensor) -> ActorTerm:
        """The objective of the actor."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it trains its actor.")

    def _state_value_term(self, data: TensorDictBase, alpha: Tensor) -> Tensor | None:
        """The regression of a state value, where the algorithm has one."""
        return None

    def _all_critics_term(self, prediction: Tensor, target: Tensor) -> CriticTerm:
        r"""Every critic on the same target: :math:`\sum_i d(Q_i, y)` and the largest absolute error.

        Args:
            prediction: ``[N, *B]``.
            target: ``[*B]``, without gradient.
        """
        loss = self._distance(prediction, target).sum(0)
        return CriticTerm(loss, (prediction.detach() - target).abs().amax(0))

    # -- the terms, reduced ---------------------------------------------------------------------------------------

    def _reduced(self, loss: Tensor, data: TensorDictBase) -> Tensor:
        return self._reduce_loss(loss, data, weights=self._maybe_get_priority_weight(data))

    def _critic_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        data = self._prepare(tensordict, detach=False)
        term = self._critic_term(data, self._current_alpha())
        return self._reduced(term.loss, data), {"td_error": term.td_error}

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """The term of the actor alone.

        Returns:
            The reduced loss, and ``{"log_prob": ...}``, what :meth:`alpha_loss` takes.
        """
        data = self._prepare(tensordict, detach=False)
        term = self._actor_term(data, self._current_alpha())
        return self._reduced(term.loss, data), {"log_prob": term.log_prob.detach()}

    def alpha_loss(self, log_prob: Tensor) -> Tensor:
        """The term of the temperature alone, element-wise.

        Args:
            log_prob: log-probabilities of fresh actions, ``[*B]``, from :meth:`actor_loss`.
        """
        return self._alpha_term(log_prob, self.target_entropy)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The terms of the loss and the metrics; see the class for what is read, written and returned.

        Args:
            tensordict: transitions, batch size ``[*B]``. The TD error is written into it.

        Returns:
            A tensordict of batch size ``[]``; with ``reduction="none"`` of batch size ``[*B]``, without the metrics
            unless ``scalar_output_mode="non_tensor"``.

        Raises:
            KeyError: if an entry is missing.
            RuntimeError: if shapes do not match, or the target entropy is needed and not known.
            NotImplementedError: for an unknown reduction or distance, or a policy that cannot be reparameterised.
        """
        target_entropy = self.target_entropy
        data = self._prepare(tensordict, detach=False)
        alpha = self._current_alpha()
        critics = self._critic_term(data, alpha)
        value_loss = self._state_value_term(data, alpha)
        actor = self._actor_term(data, alpha)
        terms: Mapping[str, Tensor | None] = {
            "loss_actor": actor.loss,
            "loss_qvalue": critics.loss,
            "loss_value": value_loss,
            "loss_alpha": self._alpha_term(actor.log_prob, target_entropy),
        }
        losses = {key: self._reduced(term, data) for key, term in terms.items() if term is not None}
        entropy = masked_mean(-actor.log_prob, self._loss_mask(data, actor.log_prob))
        out = self._result(losses, {"alpha": alpha, "entropy": entropy}, tensordict)
        self._write_priority(tensordict, critics.td_error)
        self._clear_weakrefs(data, tensordict)
        return out
