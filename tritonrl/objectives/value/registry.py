"""Which value estimators there are, under which names and with which defaults, and how a loss builds one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

from tensordict import NestedKey
from torch import nn

if TYPE_CHECKING:
    from .estimators.base import ValueEstimatorBase

__all__ = [
    "ValueEstimatorEntry",
    "ValueEstimators",
    "as_value_estimator_type",
    "build_value_estimator",
    "default_value_kwargs",
    "dispatch_value_estimator",
    "get_value_estimator_entry",
    "register_value_estimator",
]

EstimatorClass = TypeVar("EstimatorClass", bound="type[ValueEstimatorBase]")


class ValueEstimators(Enum):
    """The value estimators that a loss can be given by name.

    Examples:
        >>> as_value_estimator_type("gae") is ValueEstimators.GAE
        True
    """

    TD0 = "Bootstrapped TD (1-step return)"
    TD1 = "TD(1) (infinity-step return)"
    TDLambda = "TD(lambda)"
    GAE = "Generalized advantage estimate"
    MAGAE = "Multi-agent generalized advantage estimate"
    VTrace = "V-trace"


@dataclass(frozen=True)
class ValueEstimatorEntry:
    """A registered estimator: its class, and the hyper-parameters with which a loss builds it by default."""

    cls: type[ValueEstimatorBase]
    default_kwargs: Mapping[str, Any]


_ALIASES = {member.name.lower(): member for member in ValueEstimators}
_ENTRIES: dict[ValueEstimators, ValueEstimatorEntry] = {}


def as_value_estimator_type(value_type: ValueEstimators | str) -> ValueEstimators:
    """The member of the enum that ``value_type`` (a member, or its name in any case) stands for.

    Raises:
        KeyError: for an unknown name.
        TypeError: for anything but a member or a string.
    """
    if isinstance(value_type, ValueEstimators):
        return value_type
    if not isinstance(value_type, str):
        raise TypeError(
            f"Expected a ValueEstimators member or its name, got {value_type!r} ({type(value_type).__name__})."
        )
    member = _ALIASES.get(value_type.lower())
    if member is None:
        raise KeyError(f"{value_type!r} is no value estimator; the names are {sorted(_ALIASES)}.")
    return member


def register_value_estimator(
    value_type: ValueEstimators | str, *, default_kwargs: Mapping[str, Any] | None = None
) -> Callable[[EstimatorClass], EstimatorClass]:
    """Class decorator: make the class the estimator that ``value_type`` names.

    Args:
        value_type: the name.

    Keyword Args:
        default_kwargs: hyper-parameters with which a loss builds it unless told otherwise.
    """
    member = as_value_estimator_type(value_type)

    def register(cls: EstimatorClass) -> EstimatorClass:
        _ENTRIES[member] = ValueEstimatorEntry(cls, dict(default_kwargs or {}))
        return cls

    return register


def get_value_estimator_entry(value_type: ValueEstimators | str) -> ValueEstimatorEntry:
    """The class and the default hyper-parameters of an estimator.

    Raises:
        KeyError, TypeError: see :func:`as_value_estimator_type`.
        NotImplementedError: if no class is registered under this name.
    """
    member = as_value_estimator_type(value_type)
    if member not in _ENTRIES:
        raise NotImplementedError(f"No class is registered for the value estimator {member.name}.")
    return _ENTRIES[member]


def default_value_kwargs(value_type: ValueEstimators | str) -> dict[str, Any]:
    """The hyper-parameters with which a loss builds an estimator by default, in a dict of your own.

    Raises:
        KeyError, TypeError, NotImplementedError: see :func:`get_value_estimator_entry`.

    Examples:
        >>> default_value_kwargs(ValueEstimators.GAE)
        {'gamma': 0.99, 'lmbda': 0.95, 'differentiable': True}
    """
    return dict(get_value_estimator_entry(value_type).default_kwargs)


def build_value_estimator(loss: nn.Module, value_type: ValueEstimators | str, **hyperparams: Any) -> ValueEstimatorBase:
    """The estimator of a loss: the defaults, overridden by ``hyperparams``, with the loss's value network.

    Raises:
        KeyError, TypeError, NotImplementedError: see :func:`get_value_estimator_entry`; TypeError also for a
            hyper-parameter that the estimator does not have.
    """
    entry = get_value_estimator_entry(value_type)
    return entry.cls.for_loss(loss, **{**entry.default_kwargs, **hyperparams})


def dispatch_value_estimator(
    loss: Any,
    value_type: ValueEstimators | str,
    *,
    supported: Iterable[ValueEstimators | str],
    tensor_keys: Mapping[str, NestedKey] | None = None,
    **hyperparams: Any,
) -> None:
    """Give a loss the value estimator that ``value_type`` names.

    Sets ``loss.value_type`` and ``loss._value_estimator``. A loss's own ``gamma`` is the default discount. After an
    error the loss is as it was.

    Args:
        loss: the loss module.
        value_type: which estimator.

    Keyword Args:
        supported: the estimators that this loss can use.
        tensor_keys: passed to the estimator's ``set_keys``.
        **hyperparams: passed to the estimator's constructor, over its defaults.

    Raises:
        NotImplementedError: if the loss does not support the estimator.
        KeyError, TypeError: see :func:`build_value_estimator`.
    """
    member = as_value_estimator_type(value_type)
    allowed = [as_value_estimator_type(entry) for entry in supported]
    if member not in allowed:
        names = [entry.name for entry in allowed]
        raise NotImplementedError(f"{type(loss).__name__} does not support {member.name}; it supports {names}.")
    if "gamma" not in hyperparams and hasattr(loss, "gamma"):
        hyperparams["gamma"] = loss.gamma
    estimator = build_value_estimator(loss, member, **hyperparams)
    if tensor_keys:
        estimator.set_keys(**tensor_keys)
    loss.value_type = member
    loss._value_estimator = estimator
