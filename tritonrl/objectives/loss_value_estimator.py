"""The value estimator of a loss: chosen by name, class or instance, built when it is first needed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from tensordict.nn import TensorDictModuleBase
from torch import nn

from tritonrl.objectives.value.registry import (
    ValueEstimators,
    as_value_estimator_type,
    dispatch_value_estimator,
    get_value_estimator_entry,
)

__all__ = ["LossValueEstimator"]

_CHILD = "_value_estimator"
_METADATA = "value_type"


class LossValueEstimator(nn.Module):
    """Mix-in: ``make_value_estimator`` and the lazy ``value_estimator``."""

    default_value_estimator: ClassVar[Any] = None
    SUPPORTED_VALUE_ESTIMATORS: ClassVar[Iterable[Any] | None] = None
    _value_estimator_default_keys: ClassVar[tuple[str, ...]] = (
        "advantage",
        "value_target",
        "value",
        "reward",
        "done",
        "terminated",
    )

    tensor_keys: Any
    _set_in_keys: Any

    def _init_value_estimator(self) -> None:
        self._value_estimator: nn.Module | None = None
        self._estimator_was_chosen = False
        self.value_type = self.default_value_estimator

    # -- choosing -------------------------------------------------------------------------------------------------

    def make_value_estimator(self, value_type: Any = None, **hyperparams: Any) -> LossValueEstimator | None:
        """Choose how values, targets and advantages are estimated.

        Args:
            value_type: a ``ValueEstimators`` member or its alias (``"gae"``), None for the default of the loss, an
                estimator class, or an estimator.
            **hyperparams: go to the constructor of the estimator and win over the registry's defaults and over
                ``loss.gamma``. For a class they are all it gets, apart from the device.

        Returns:
            The loss itself if given a class or an estimator, else None (as in TorchRL). A class or an estimator keeps
            its own keys; call :meth:`set_keys` to change them.

        Raises:
            NotImplementedError: if the loss does not support that estimator.
            KeyError: if there is no such alias.
            TypeError: for an unknown hyper-parameter, a ``value_type`` of another type, or hyper-parameters next to an
                estimator that is already built.
        """
        self._estimator_was_chosen = True
        if value_type is None:
            value_type = self.default_value_estimator
        if isinstance(value_type, TensorDictModuleBase):
            if hyperparams:
                raise TypeError(
                    f"make_value_estimator: {type(value_type).__name__} is built already and takes no "
                    f"hyper-parameters, got {sorted(hyperparams)}."
                )
            return self._adopt_value_estimator(value_type)
        if isinstance(value_type, type) and issubclass(value_type, TensorDictModuleBase):
            return self._adopt_value_estimator(value_type(**self._with_device(hyperparams)))
        self._dispatch_value_estimator(value_type, **hyperparams)
        return None

    def _adopt_value_estimator(self, estimator: nn.Module) -> LossValueEstimator:
        self._value_estimator = estimator
        self.value_type = type(estimator)
        return self

    def _dispatch_value_estimator(self, value_type: Any, **hyperparams: Any) -> None:
        if value_type is None or self.SUPPORTED_VALUE_ESTIMATORS is None:
            raise NotImplementedError(
                f"Value type {value_type} is not implemented for loss {type(self).__name__}: set "
                "default_value_estimator and SUPPORTED_VALUE_ESTIMATORS, or override make_value_estimator."
            )
        dispatch_value_estimator(
            self,
            value_type,
            supported=self.SUPPORTED_VALUE_ESTIMATORS,
            tensor_keys=self._value_estimator_keys(get_value_estimator_entry(value_type).cls),
            **self._with_device(hyperparams),
        )

    def _with_device(self, hyperparams: dict[str, Any]) -> dict[str, Any]:
        device = getattr(self, "_default_device", None)
        return hyperparams if device is None else {"device": device, **hyperparams}

    def _default_value_estimator(self) -> None:
        """Build the estimator with the defaults of the loss."""
        self.make_value_estimator(self.default_value_estimator, **self._with_device({}))

    @property
    def _estimator_can_be_built(self) -> bool:
        """Whether what the default estimator needs is known. Losses that build it in their constructor say so."""
        return False

    def _build_estimator_early(self) -> None:
        """Build the default estimator as soon as it can be: the first call may be a compiled one, inside which no
        module can be built."""
        if self._value_estimator is None and self._estimator_can_be_built:
            self._default_value_estimator()
            self._estimator_was_chosen = False

    # -- using ----------------------------------------------------------------------------------------------------

    @property
    def value_estimator(self) -> Any:
        """The value estimator, built with the defaults of the loss if none was made yet."""
        estimator = self._value_estimator
        if estimator is None:
            try:
                self._default_value_estimator()
            except AttributeError as error:
                # An AttributeError that leaves a property turns into "no attribute 'value_estimator'".
                raise RuntimeError(
                    f"the default value estimator of {type(self).__name__} could not be built: {error}"
                ) from error
            estimator = self._value_estimator
        return estimator

    @value_estimator.setter
    def value_estimator(self, value: nn.Module | None) -> None:
        self._value_estimator = value

    def _value_estimator_keys(self, estimator: Any) -> dict[str, Any]:
        """The keys of the loss that ``estimator`` (an estimator or its class) shares."""
        keys = vars(self.tensor_keys)
        names = (*self._value_estimator_default_keys, *getattr(estimator, "keys_from_loss", ()))
        return {name: keys[name] for name in names if name in keys}

    def _forward_value_estimator_keys(self, **kwargs: Any) -> None:
        """After :meth:`set_keys`: hand the keys to the estimator if there is one, and build ``in_keys`` anew."""
        estimator: Any = self._value_estimator
        if estimator is not None:
            estimator.set_keys(**self._value_estimator_keys(estimator))
        self._set_in_keys()
        self._build_estimator_early()

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", None)
        if metadata is not None and self._value_estimator is not None and isinstance(self.value_type, ValueEstimators):
            # Beside the entries, not among them: the keys stay TorchRL's.
            metadata[prefix[:-1]][_METADATA] = self.value_type.name

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """A used loss has an estimator and a fresh one may not: both load into each other."""
        saved_type = local_metadata.get(_METADATA)
        if (
            saved_type is not None
            and not self._estimator_was_chosen
            and saved_type != getattr(self.value_type, "name", None)
        ):
            self._value_estimator = None  # Nobody asked for the default one: the saved one takes its place.
        own_prefix = f"{prefix}{_CHILD}."
        saved = any(key.startswith(own_prefix) for key in state_dict)
        if saved and self._value_estimator is None:
            self._build_saved_value_estimator(saved_type)
        elif not saved and self._value_estimator is not None:
            own = self._value_estimator.state_dict()
            state_dict.update({f"{own_prefix}{key}": value for key, value in own.items()})
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _build_saved_value_estimator(self, saved_type: str | None) -> None:
        value_type = self.default_value_estimator if saved_type is None else as_value_estimator_type(saved_type)
        if value_type is not None:
            self.make_value_estimator(value_type, **self._with_device({}))
