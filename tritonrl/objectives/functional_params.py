"""The parameters of a network, taken out of it as a tensordict that can be swapped back in for a call.

Extraction shares, expansion makes new: the entries of :func:`extract_params` are the network's own ``nn.Parameter``
objects, those of :func:`expand_params` and :func:`stack_params` are new parameters with a leading ensemble dimension.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictParams
from torch import Tensor, nn
from torch.nn.parameter import Buffer, is_lazy

__all__ = [
    "FunctionalParams",
    "expand_params",
    "extract_params",
    "holds_uninitialized",
    "initialize_member",
    "replace_leaf",
    "reset_layers",
    "stack_params",
    "swap_params",
]

LeafKey = tuple[str, ...]


@dataclass
class FunctionalParams:
    """What came out of a network.

    Attributes:
        params: the container, of batch size ``[]``, or ``[N]`` for an ensemble.
        ties: the entries that are detached views of a parameter that another network trains, by key. A view stops
            following its parameter when the module is moved, copied or unpickled, hence the record.
    """

    params: TensorDictParams
    ties: dict[LeafKey, nn.Parameter] = field(default_factory=dict)


def _as_key(key: str | LeafKey) -> LeafKey:
    return (key,) if isinstance(key, str) else key


def _leaves(params: TensorDictBase) -> Iterable[tuple[LeafKey, Tensor]]:
    for key, leaf in params.items(include_nested=True, leaves_only=True):
        yield _as_key(key), leaf


def holds_uninitialized(params: TensorDictBase) -> bool:
    """Whether a lazy module has not yet seen the data that gives its parameters their shapes."""
    return any(is_lazy(leaf) for _, leaf in _leaves(params))


def _check_names(params: TensorDictBase, module_name: str) -> None:
    for key, _ in _leaves(params):
        if any("." in part for part in key):
            raise KeyError(
                f"The parameter {key} of {module_name} has a '.' in its name, which state-dict keys cannot hold."
            )


def _build(source: TensorDictBase, leaves: dict[LeafKey, Tensor], batch_size: Sequence[int]) -> TensorDictParams:
    """A container with the nesting of ``source``, parameterless sub-modules included, and the given leaves."""

    def nest(level: TensorDictBase, prefix: LeafKey) -> dict[str, Any]:
        return {
            name: nest(entry, (*prefix, name)) if isinstance(entry, TensorDictBase) else leaves[(*prefix, name)]
            for name, entry in level.items()
        }

    return TensorDictParams(TensorDict(nest(source, ()), batch_size=torch.Size(batch_size)), no_convert=True)


def extract_params(
    module: nn.Module, module_name: str = "module", compare_against: Iterable[Tensor] = ()
) -> FunctionalParams:
    """The parameters and buffers of ``module``, nested along its attribute paths.

    Args:
        module: any ``nn.Module``.
        module_name: for error messages.
        compare_against: parameters that another network trains. Those found here become detached views (same storage,
            no gradient).

    Raises:
        KeyError: if the name of a parameter contains a dot.
    """
    source = TensorDict.from_module(module)
    _check_names(source, module_name)
    foreign = {id(parameter) for parameter in compare_against}
    leaves: dict[LeafKey, Tensor] = {}
    ties: dict[LeafKey, nn.Parameter] = {}
    for key, leaf in _leaves(source):
        if isinstance(leaf, nn.Parameter) and id(leaf) in foreign:
            ties[key] = leaf
            leaves[key] = Buffer(leaf.data)
        else:
            leaves[key] = leaf
    return FunctionalParams(_build(source, leaves, []), ties)


def initialize_member(module: nn.Module) -> nn.Module:
    """An independently initialised copy of ``module``: one member of an ensemble.

    Every layer runs its own ``reset_parameters``, so that each member starts from the distribution the layer's author
    meant (the bound of a linear layer is ``1/sqrt(fan_in)``), with these exceptions:

    * a frozen parameter (``requires_grad=False``) keeps its values: a pretrained encoder is not thrown away;
    * a parameter with more than one entry that is constant (a bias set to zero, a LayerNorm) keeps its value;
    * a parameter that no ``reset_parameters`` touches is drawn from U(min, max) of its present entries.
    """
    member = copy.deepcopy(module)
    parameters = {id(parameter): parameter for parameter in member.parameters()}
    before = {key: (parameter.detach().clone(), parameter._version) for key, parameter in parameters.items()}
    reset_layers(member)
    with torch.no_grad():
        for key, parameter in parameters.items():
            original, version = before[key]
            constant = original.numel() > 1 and bool((original == original.flatten()[0]).all())
            if constant or not parameter.requires_grad:
                parameter.copy_(original)
            elif parameter._version == version and torch.equal(parameter, original) and original.numel() > 0:
                parameter.copy_(torch.empty_like(original).uniform_(float(original.min()), float(original.max())))
    return member


def reset_layers(module: nn.Module) -> nn.Module:
    """Run every layer's own ``reset_parameters``, children first, and return the module."""
    return module.apply(_reset_layer)


def _reset_layer(layer: nn.Module) -> None:
    reset = getattr(layer, "reset_parameters", None)
    if callable(reset):
        reset()


def expand_params(
    module: nn.Module, expand_dim: int, module_name: str = "module", compare_against: Iterable[Tensor] = ()
) -> FunctionalParams:
    """Parameters of an ensemble of ``expand_dim`` members, from one prototype, each with a leading dim of that size.

    Members are initialised one by one (:func:`initialize_member`); the prototype's own parameters are no member.
    Buffers are expanded and cloned. What is in ``compare_against`` is expanded to a detached view.

    Raises:
        RuntimeError: if the prototype is lazy and uninitialised.
        ValueError: if ``expand_dim`` is smaller than 1.
    """
    if expand_dim < 1:
        raise ValueError(f"expand_dim must be at least 1, got {expand_dim} for {module_name}.")
    source = TensorDict.from_module(module)
    if holds_uninitialized(source):
        raise RuntimeError(
            f"{module_name} holds uninitialized (lazy) parameters and cannot be expanded to {expand_dim} members: "
            "run it once on data first."
        )
    foreign = {id(parameter): parameter for parameter in compare_against}
    members = [initialize_member(module) for _ in range(expand_dim)]
    return _stack(module, members, module_name, lambda leaf: id(leaf) in foreign)


def stack_params(
    modules: Sequence[nn.Module], module_name: str = "module", compare_against: Iterable[Tensor] = ()
) -> FunctionalParams:
    """Parameters of an ensemble given as a list of networks of one architecture, stacked along a new leading dim.

    The stacked parameters are new: training them does not change the networks in the list.

    Raises:
        ValueError: if a module is listed twice or two of them share a parameter that is not in ``compare_against``. The
            stack would cut the sharing without a word.
        RuntimeError: if the networks differ in their parameters, or one of them is lazy and uninitialised.
    """
    foreign = {id(parameter) for parameter in compare_against}
    _check_members(modules, module_name, foreign)
    return _stack(modules[0], modules, module_name, lambda leaf: id(leaf) in foreign)


def _check_members(modules: Sequence[nn.Module], module_name: str, foreign: set[int]) -> None:
    for index, module in enumerate(modules):
        if holds_uninitialized(TensorDict.from_module(module)):
            raise RuntimeError(
                f"{module_name}[{index}] holds uninitialized (lazy) parameters: run it once on data first."
            )
    owner: dict[int, int] = {}
    reference = {key: leaf.shape for key, leaf in _leaves(TensorDict.from_module(modules[0]))}
    for index, module in enumerate(modules):
        for name, parameter in module.named_parameters():
            first = owner.setdefault(id(parameter), index)
            if first != index and id(parameter) not in foreign:
                what = "are the same module" if module is modules[first] else f"share the parameter {name!r}"
                raise ValueError(
                    f"{module_name}[{first}] and {module_name}[{index}] {what}. Each member of an ensemble is "
                    "trained on its own copy of the parameters, which cuts the sharing: pass separate modules "
                    "(copy.deepcopy), or one module and a number of members."
                )
        shapes = {key: leaf.shape for key, leaf in _leaves(TensorDict.from_module(module))}
        if shapes != reference:
            raise RuntimeError(
                f"{module_name}[{index}] and {module_name}[0] must have the same parameters, got shapes {shapes} and "
                f"{reference}."
            )


def _stack(
    template: nn.Module, members: Sequence[nn.Module], module_name: str, is_foreign: Callable[[Tensor], bool]
) -> FunctionalParams:
    source = TensorDict.from_module(template)
    _check_names(source, module_name)
    columns = [dict(_leaves(TensorDict.from_module(member))) for member in members]
    stacked: dict[int, Tensor] = {}
    leaves: dict[LeafKey, Tensor] = {}
    ties: dict[LeafKey, nn.Parameter] = {}
    for key, leaf in _leaves(source):
        if isinstance(leaf, nn.Parameter) and is_foreign(leaf):
            ties[key] = leaf
            leaves[key] = Buffer(leaf.data.expand(len(members), *leaf.shape))
            continue
        if id(leaf) not in stacked:
            # One stack for each distinct tensor: weights tied inside the prototype stay tied in every member.
            data = torch.stack([column[key].detach() for column in columns])
            is_parameter = isinstance(leaf, nn.Parameter)
            stacked[id(leaf)] = nn.Parameter(data, leaf.requires_grad) if is_parameter else Buffer(data)
        leaves[key] = stacked[id(leaf)]
    return FunctionalParams(_build(source, leaves, [len(members)]), ties)


def swap_params(params: TensorDictBase, network: nn.Module) -> AbstractContextManager[Any]:
    """Inside the block ``network`` runs on ``params``; afterwards its own parameters are back.

    Use it wherever a loss calls a template. ``params.to_module(network)`` alone wraps detached and target tensors in
    new ``nn.Parameter`` objects that require a gradient (tensordict 0.14's default for ``preserve_module_state``): the
    output then drags a graph along, and in a compiled loss that evaluates one template with several sets of parameters
    the true parameters silently got no gradient at all.

    Examples:
        >>> net = nn.Linear(2, 1)
        >>> params = extract_params(net).params
        >>> with swap_params(params.data, net):
        ...     net(torch.ones(2)).requires_grad
        False
    """
    return params.to_module(network, preserve_module_state=False)


def replace_leaf(params: TensorDictParams, key: LeafKey, value: Tensor) -> None:
    """Put ``value`` in the place of the buffer ``key``: in the tensordict and in the module's registry alike."""
    buffer = Buffer(value)
    with params._param_td.unlock_():
        params._param_td.set(key, buffer)
    params._buffers[".".join(key)] = buffer
