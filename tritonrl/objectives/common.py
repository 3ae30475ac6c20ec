"""``LossModule``: what every loss has in common."""

from __future__ import annotations

import abc
import functools
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from tensordict.nn.probabilistic import InteractionType
from torch import Tensor, nn

from tritonrl.objectives.coefficients import CoefficientBuffers
from tritonrl.objectives.functional_networks import FunctionalNetworks
from tritonrl.objectives.loss_keys import LossKeys
from tritonrl.objectives.loss_value_estimator import LossValueEstimator
from tritonrl.objectives.random_modules import VMAP_RANDOMNESS_MODES, add_random_module, draws_random_numbers
from tritonrl.objectives.reduction import (
    AUTO_LOSS_MASK_KEYS,
    collect_validity_mask,
    loss_mask_keys,
    reduce_loss,
)
from tritonrl.objectives.sampling_mode import run_in_loss_modes
from tritonrl.objectives.target_params import warn_stale_targets
from tritonrl.objectives.type_caches import warm_type_caches

__all__ = ["AUTO_LOSS_MASK_KEYS", "LossModule", "add_random_module"]


class _LossMeta(abc.ABCMeta):
    """Makes ``forward`` and every public method whose name ends in ``loss`` run in the loss modes, and completes the
    constructor."""

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(name, bases, namespace, **kwargs)
        for attribute in {attribute for base in cls.__mro__ for attribute in vars(base)}:
            if attribute == "forward" or (attribute.endswith("loss") and not attribute.startswith("_")):
                method = getattr(cls, attribute)
                if isinstance(method, types.FunctionType) and not _is_static(cls, attribute):
                    setattr(cls, attribute, run_in_loss_modes(method))
        type.__setattr__(cls, "__init__", _then_build_in_keys(cls, cls.__init__))  # type: ignore[misc]


def _then_build_in_keys(cls: type, init: Callable[..., None]) -> Callable[..., None]:
    """Wrap a constructor: once the outermost one is through, collect the in_keys.

    Every network is there by then. Collected in the first call instead, which may be a compiled one, they would be new
    state and compile the second call again.
    """

    @functools.wraps(init)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if type(self) is cls:
            cast(LossKeys, self)._build_in_keys()

    return wrapper


def _is_static(cls: type, attribute: str) -> bool:
    owner = next(vars(base) for base in cls.__mro__ if attribute in vars(base))
    return isinstance(owner[attribute], staticmethod)


class LossModule(
    CoefficientBuffers,
    FunctionalNetworks,
    LossValueEstimator,
    LossKeys,
    TensorDictModuleBase,
    metaclass=_LossMeta,
):
    """Base class of the losses: reads a tensordict, returns a tensordict with one ``loss*`` entry for each term.

    A subclass calls ``super().__init__()`` first (no argument), hands its networks to :meth:`convert_to_functional` and
    writes ``forward``. It may define ``_AcceptedKeys`` (a dataclass of key names), ``default_keys``,
    ``default_value_estimator``, ``SUPPORTED_VALUE_ESTIMATORS``, ``in_keys``, ``out_keys`` and ``_schedulable_buffers``.

    ``forward`` and every method whose name ends in ``loss`` (and does not start with an underscore) run with the
    interaction type :attr:`deterministic_sampling_mode` and with recurrent networks in sequence mode.

    Examples:
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> from tritonrl.objectives.functional_params import swap_params
        >>> class ValueLoss(LossModule):
        ...     def __init__(self, value_network):
        ...         super().__init__()
        ...         self.reduction = "mean"
        ...         self.convert_to_functional(value_network, "value_network", create_target_params=True)
        ...     def forward(self, tensordict):
        ...         with swap_params(self.value_network_params, self.value_network):
        ...             value = self.value_network(tensordict.copy())["state_value"]
        ...         error = (value - tensordict["value_target"]).square().squeeze(-1)
        ...         return TensorDict({"loss_value": self._reduce_loss(error, tensordict)})
        >>> net = TensorDictModule(nn.Linear(3, 1), in_keys=["observation"], out_keys=["state_value"])
        >>> loss = ValueLoss(net)
        >>> loss.value_network_params["module", "weight"] is net.module.weight
        True
    """

    @dataclass
    class _AcceptedKeys:
        """The keys of a loss, by role. None here; subclasses define their own."""

    deterministic_sampling_mode: ClassVar[InteractionType] = InteractionType.DETERMINISTIC
    use_prioritized_weights: str | bool = "auto"
    _loss_mask_key: NestedKey | Literal["auto"] | None = "auto"
    _vmap_randomness: str | None = None

    def __init__(self) -> None:
        super().__init__()
        warm_type_caches()
        self._init_keys()
        self._init_value_estimator()
        self.register_forward_pre_hook(_check_target_updaters)

    @staticmethod
    def _refuse_gamma(gamma: float | None) -> None:
        if gamma is not None:
            raise TypeError(
                "gamma is not an argument of the loss: call make_value_estimator(gamma=...) on it, which takes the "
                "type of the estimator too"
            )

    @property
    def functional(self) -> bool:
        """Whether the networks are templates with their parameters outside; losses with ``functional=False`` say no."""
        return self.__dict__.get("_functional", True)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Compute the loss.

        Args:
            tensordict: the data, batch size ``[*B]``.

        Returns:
            A tensordict with the terms of the loss under keys that start with ``loss``, and metrics.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no forward.")

    def reset(self) -> None:
        """Bring the state that the loss itself adapts back to its start (nothing, unless a subclass says so)."""

    def total(self, out: TensorDictBase) -> Tensor:
        """The sum of the entries of ``out`` whose key starts with ``loss``: what to call ``backward`` on.

        It counts DQN's ``loss`` as well as PPO's ``loss_objective``, and no metric.

        Args:
            out: what the loss returned.

        Raises:
            KeyError: if there is no such entry.
            ValueError: if the terms are not reduced and differ in shape: their sum would mix up steps and ensemble
                members.

        Examples:
            >>> from tensordict import TensorDict
            >>> out = TensorDict(loss_actor=torch.ones(()), loss_critic=torch.ones(()), kl_approx=torch.ones(()))
            >>> LossModule().total(out)
            tensor(2.)
        """
        terms = [value for key, value in out.items() if isinstance(key, str) and key.startswith("loss")]
        if not terms:
            raise KeyError(f"total: no entry starts with 'loss', got the entries {sorted(map(str, out.keys()))}.")
        if len({term.shape for term in terms}) > 1:
            shapes = [tuple(term.shape) for term in terms]
            raise ValueError(f"total: the terms must have one shape, got {shapes}; reduce them first.")
        return functools.reduce(torch.add, terms)

    # -- reduction ------------------------------------------------------------------------------------------------

    @property
    def loss_mask_key(self) -> NestedKey | Literal["auto"] | None:
        """Where the validity mask is: ``"auto"`` (:data:`AUTO_LOSS_MASK_KEYS`), a NestedKey, or None for no mask."""
        return self._loss_mask_key

    @loss_mask_key.setter
    def loss_mask_key(self, value: NestedKey | Literal["auto"] | None) -> None:
        loss_mask_keys(value)
        self._loss_mask_key = value

    def _loss_mask_keys(self) -> tuple[NestedKey, ...]:
        return loss_mask_keys(self._loss_mask_key)

    def _loss_mask(self, tensordict: TensorDictBase | None, loss: Tensor, mask: Tensor | None = None) -> Tensor | None:
        """The validity mask of ``tensordict`` in the shape of ``loss``, or None. Metrics use it too."""
        return collect_validity_mask(tensordict, self._loss_mask_keys(), loss, mask)

    def _reduce_loss(
        self,
        loss: Tensor,
        tensordict: TensorDictBase | None = None,
        *,
        mask: Tensor | None = None,
        reduction: str | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Reduce an element-wise loss over the steps that count (:func:`~tritonrl.objectives.reduction.reduce_loss`).

        Args:
            loss: ``[*B]`` or ``[*B, *F]``.
            tensordict: where the validity masks are looked up.
            mask: one more mask. With reduction ``"none"`` the result then holds only the elements that count, flat.
            reduction: ``self.reduction`` if None.
            weights: priority weights.
        """
        reduction = self.reduction if reduction is None else reduction
        validity = self._loss_mask(tensordict, loss, mask)
        reduced = reduce_loss(loss, reduction, validity, weights)
        if mask is not None and reduction == "none" and validity is not None:
            return reduced[validity]
        return reduced

    def _maybe_get_priority_weight(self, tensordict: TensorDictBase) -> Tensor | None:
        """The priority weights of the data, unless the loss was told not to use them or there are none."""
        if self.use_prioritized_weights not in (True, "auto"):
            return None
        return tensordict.get(self.tensor_keys.priority_weight, None)

    # -- randomness of ensembles ----------------------------------------------------------------------------------

    @property
    def vmap_randomness(self) -> str:
        """What ``torch.vmap`` does with random operations of an ensemble: ``error``, ``same`` or ``different``.

        ``different`` if a network holds a module declared by :func:`add_random_module` (dropout is), else ``error``.
        """
        if self._vmap_randomness is None:
            networks = [*self._networks(), *self.children()]
            self._vmap_randomness = "different" if draws_random_numbers(networks) else "error"
        return self._vmap_randomness

    def set_vmap_randomness(self, value: str) -> None:
        """Choose the randomness mode of ensembles.

        Raises:
            ValueError: if ``value`` is none of ``error``, ``same``, ``different``, or ``same`` without vmap.
            NotImplementedError: if the loss has no ensemble.
        """
        if value not in VMAP_RANDOMNESS_MODES:
            raise ValueError(f"vmap randomness must be one of {VMAP_RANDOMNESS_MODES}, got {value!r}.")
        if value == "same" and getattr(self, "deactivate_vmap", False):
            raise ValueError("vmap randomness 'same' needs vmap, which deactivate_vmap=True switches off.")
        previous, self._vmap_randomness = self._vmap_randomness, value
        try:
            self._make_vmap()
        except NotImplementedError:
            self._vmap_randomness = previous
            raise

    def _make_vmap(self) -> None:
        """Build the vectorised calls of the ensembles; losses that have some override it."""
        raise NotImplementedError(f"{type(self).__name__} evaluates no ensemble: _make_vmap is not implemented.")

    # -- the rest -------------------------------------------------------------------------------------------------

    @property
    def _default_device(self) -> torch.device | None:
        first = next(self.parameters(), None)
        return None if first is None else first.device

    def _clear_weakrefs(self, *tensordicts: TensorDictBase) -> None:
        """Drop the weak references between nested tensordicts, which a compiled graph cannot return."""
        if torch.compiler.is_compiling():
            for tensordict in tensordicts:
                tensordict.clear_refs_for_compile_()

    def __repr__(self) -> str:
        lines = [f"{name}={type(module).__name__}" for name, module in self.named_children()]
        lines += [f"{name}={getattr(self, name, None)}" for name in ("in_keys", "out_keys")]
        body = ",\n    ".join(lines)
        return f"{type(self).__name__}(\n    {body})"


def _check_target_updaters(loss: nn.Module, args: Any) -> None:
    """Forward pre-hook: warn when targets exist that no updater was built for."""
    assert isinstance(loss, LossModule)
    if not all(loss._has_update_associated.values()):
        warn_stale_targets(stacklevel=3)
