"""Move target parameters towards their sources: by averaging (``SoftUpdate``) or by copying now and then
(``HardUpdate``).

Trainable parameters follow by the rule of the class. Everything else that the target holds (running statistics of a
normalisation layer, frozen parameters) is copied whenever the rule is applied: statistics that stayed at their first
values would make the target a different function of the data.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictParams
from torch import Tensor

from tritonrl.objectives.common import LossModule
from tritonrl.objectives.target_params import is_target_name, source_name

__all__ = ["HardUpdate", "SoftUpdate", "TargetNetUpdater"]

Pair = tuple[Tensor, Tensor]


def _shares_storage(a: Tensor, b: Tensor) -> bool:
    return a.is_set_to(b.detach()) if a.shape == b.shape else False


class TargetNetUpdater:
    """Base class: finds the targets of a loss, copies the sources into them, and applies :meth:`_step` to the pairs.

    Args:
        loss_module: the loss. Its warning about targets without an updater ends here.

    Raises:
        ValueError: if ``loss_module`` is not a :class:`LossModule`.
        RuntimeError: if the loss has no target parameters, one of them has no source, or all targets are their sources.
    """

    def __init__(self, loss_module: LossModule) -> None:
        if not isinstance(loss_module, LossModule):
            raise ValueError(f"The loss module must be a LossModule, got {type(loss_module).__name__}.")
        loss_module._materialize_targets()
        self.loss_module = loss_module
        self._check_pairs()
        for name in self._target_names():
            loss_module._has_update_associated[name] = True
        self.initialized = False
        self.init_()

    # -- what to update -------------------------------------------------------------------------------------------

    def _target_names(self) -> list[str]:
        modules = self.loss_module._modules
        return [
            name for name, module in modules.items() if is_target_name(name) and isinstance(module, TensorDictParams)
        ]

    def _containers(self, names: list[str]) -> TensorDictBase:
        return TensorDict({name: self.loss_module._container(name)._param_td for name in names})

    @property
    def _targets(self) -> TensorDictBase:
        """The target parameters by name. Read from the loss each time: moving a module replaces its tensordicts."""
        return self._containers(self._target_names())

    @property
    def _sources(self) -> TensorDictBase:
        """The online parameters by name."""
        return self._containers([source_name(name) for name in self._target_names()])

    def _pairs(self) -> tuple[list[Pair], list[Pair]]:
        """(target, source) of every leaf that is stored apart: the trainable ones, and the rest."""
        trainable: list[Pair] = []
        others: list[Pair] = []
        for name in self._target_names():
            sources = self.loss_module._container(source_name(name))._param_td
            targets = self.loss_module._container(name)._param_td
            for key, target in targets.items(include_nested=True, leaves_only=True):
                source = sources.get(key)
                if target.requires_grad:
                    raise RuntimeError(
                        f"the target parameter {key} of {name} requires a gradient, which a target must not."
                    )
                (trainable if source.requires_grad else others).append((target.data, source.data))
        return trainable, others

    def _check_pairs(self) -> None:
        names = self._target_names()
        if not names:
            raise RuntimeError(
                f"{type(self.loss_module).__name__} has no target parameters to update. Did you leave the delay_* "
                "arguments of the loss False?"
            )
        for name in names:
            if self.loss_module._modules.get(source_name(name)) is None:
                raise RuntimeError(f"{name} has no source: the loss has no {source_name(name)}.")
        trainable, _ = self._pairs()
        if all(_shares_storage(target, source) for target, source in trainable):
            raise RuntimeError("No trainable parameter has a target of its own: there is nothing to update.")

    # -- updating -------------------------------------------------------------------------------------------------

    def init_(self) -> None:
        """Copy every source, buffers included, into its target."""
        if self.initialized:
            warnings.warn("Updating the target parameters a second time: init_() was called already.", stacklevel=2)
        trainable, others = self._pairs()
        self._copy(trainable + others)
        self.initialized = True

    def step(self) -> None:
        """Apply the rule of the class once.

        Raises:
            RuntimeError: if the updater is not initialised, or a target requires a gradient.
        """
        if not self.initialized:
            raise RuntimeError(f"{type(self).__name__} must be initialized (init_()) before its first step.")
        self._step(*self._pairs())

    def _step(self, trainable: list[Pair], others: list[Pair]) -> None:
        raise NotImplementedError

    @staticmethod
    def _copy(pairs: list[Pair]) -> None:
        if pairs:
            targets, sources = (list(column) for column in zip(*pairs, strict=True))
            torch._foreach_copy_(targets, sources)

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """State of the updater itself; the targets are in the state dict of the loss."""
        return {"initialized": self.initialized}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state given by :meth:`state_dict`."""
        self.initialized = state_dict["initialized"]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(targets={self._target_names()})"


class SoftUpdate(TargetNetUpdater):
    """Polyak averaging: ``target = eps * target + (1 - eps) * source`` at each step (Lillicrap et al. 2016, DDPG).

    Args:
        loss_module: the loss.

    Keyword Args:
        eps: share of the old target, in [0, 1].
        tau: share of the source, ``1 - eps``. Exactly one of the two must be given.

    Raises:
        RuntimeError: if neither ``eps`` nor ``tau`` is given.
        ValueError: if both are given, or the value is outside [0, 1].

    Examples:
        >>> updater = SoftUpdate(loss, tau=0.005)  # doctest: +SKIP
        >>> updater.step()  # doctest: +SKIP
    """

    def __init__(self, loss_module: LossModule, *, eps: float | None = None, tau: float | None = None) -> None:
        if eps is None and tau is None:
            raise RuntimeError("SoftUpdate needs eps (the share of the old target) or tau = 1 - eps, got neither.")
        if eps is not None and tau is not None:
            raise ValueError(f"SoftUpdate takes eps or tau, not both; got eps={eps} and tau={tau}.")
        share = 1 - tau if tau is not None else eps
        assert share is not None
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"eps = 1 - tau must be between 0 and 1, got eps={share}.")
        if share < 0.5:
            warnings.warn(
                f"eps={share}: more than half of the target is replaced at each step. eps is the share of the *old* "
                "target (typically 0.99 or more); did you mean tau?",
                stacklevel=2,
            )
        self.eps = share
        super().__init__(loss_module)

    def _step(self, trainable: list[Pair], others: list[Pair]) -> None:
        targets, sources = (list(column) for column in zip(*trainable, strict=True))
        torch._foreach_lerp_(targets, sources, 1.0 - self.eps)
        self._copy(others)


class HardUpdate(TargetNetUpdater):
    """Copy the source into the target every now and then (Mnih et al. 2015, DQN).

    Each ``step`` first copies if the counter has reached the interval and sets it to 0, else adds 1 to it. As in
    TorchRL the period is therefore ``value_network_update_interval + 1`` steps.

    Args:
        loss_module: the loss.

    Keyword Args:
        value_network_update_interval: see above.
    """

    def __init__(self, loss_module: LossModule, *, value_network_update_interval: int = 1000) -> None:
        super().__init__(loss_module)
        self.value_network_update_interval = value_network_update_interval
        # A tensor, because a Python number would be a constant of a compiled training step, and a new one compile it
        # again. On the CPU, because reading it there waits for nobody.
        self._counter = torch.zeros((), dtype=torch.int64, device="cpu")

    @property
    def counter(self) -> int:
        """Steps since the last copy."""
        return int(self._counter)

    @counter.setter
    def counter(self, value: int) -> None:
        self._counter.fill_(value)

    def _step(self, trainable: list[Pair], others: list[Pair]) -> None:
        due = self._counter == self.value_network_update_interval
        if torch.compiler.is_compiling():
            self._copy_where(due, trainable + others)
        elif due:
            self._copy(trainable + others)
        self._counter.add_(1).mul_(~due)

    @staticmethod
    def _copy_where(due: Tensor, pairs: list[Pair]) -> None:
        """Copy or not, decided by selection: a graph has no branches."""
        for target, source in pairs:
            target.copy_(torch.where(due.to(target.device), source, target))

    def state_dict(self) -> dict[str, Any]:
        """State of the updater itself, the counter included."""
        return {**super().state_dict(), "counter": self.counter}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state given by :meth:`state_dict`."""
        super().load_state_dict(state_dict)
        self.counter = state_dict["counter"]
