"""The networks of a loss: how a loss takes them over, names them, copies them and finds their targets."""

from __future__ import annotations

import copy as copy_module
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictParams
from torch import Tensor, nn

from tritonrl.objectives.functional_params import (
    FunctionalParams,
    LeafKey,
    expand_params,
    extract_params,
    holds_uninitialized,
    replace_leaf,
    reset_layers,
    stack_params,
)
from tritonrl.objectives.target_params import (
    is_target_name,
    make_target_params,
    source_name,
    target_name,
    warn_stale_targets,
)

__all__ = ["FunctionalNetworks"]


def _flat(params: TensorDictBase) -> dict[LeafKey, Tensor]:
    items = params.items(include_nested=True, leaves_only=True)
    return {(key,) if isinstance(key, str) else tuple(key): leaf for key, leaf in items}


class FunctionalNetworks(nn.Module):
    """Mix-in: networks as templates whose parameters live in ``<name>_params`` containers.

    The template (``loss.<name>``) sits outside the module registry, so that each parameter is registered once, under
    its container. A call swaps a container in
    (:func:`~tritonrl.objectives.functional_params.swap_params`).
    """

    _ties: dict[str, dict[LeafKey, nn.Parameter]]
    _pending_targets: set[str]
    _has_update_associated: dict[str, bool]

    def __init__(self) -> None:
        super().__init__()
        self._ties = {}
        self._pending_targets = set()
        self._has_update_associated = {}
        self.register_load_state_dict_post_hook(_retie_after_load)

    # -- taking a network over ------------------------------------------------------------------------------------

    def convert_to_functional(
        self,
        module: nn.Module | Sequence[nn.Module],
        module_name: str,
        expand_dim: int | None = None,
        create_target_params: bool = False,
        compare_against: Iterable[Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take a network over: its parameters become the child ``<module_name>_params``, the module is the template.

        Without ``expand_dim`` the entries are the module's own ``nn.Parameter`` objects, so an optimizer or another
        loss that holds them sees the same training.

        Args:
            module: the network, or a list of networks of one architecture for an ensemble.
            module_name: name of the template; ``<module_name>_params`` is the container and
                ``target_<module_name>_params`` the target.
            expand_dim: number of members of an ensemble. Each parameter gets a leading dimension of that size, every
                member initialised by its layers' own initialisers
                (:func:`~tritonrl.objectives.functional_params.initialize_member`).
            create_target_params: also register a target, a detached clone. Otherwise ``target_<module_name>_params``
                reads the detached online parameters.
            compare_against: parameters that another network of the loss trains; those found here are detached, so that
                this network's loss does not reach them.

        Raises:
            TypeError: for an unknown keyword.
            RuntimeError: if ``expand_dim`` does not fit the list, or a lazy network is expanded.
            ValueError: if two members of a list share parameters.
            KeyError: if the name of a parameter contains a dot.
        """
        if kwargs:
            raise TypeError(f"convert_to_functional: unrecognised keyword arguments {sorted(kwargs)}.")
        functional = _functional_params(module, module_name, expand_dim, list(compare_against or ()))
        params_name = f"{module_name}_params"
        self.__dict__[module_name] = module[0] if isinstance(module, (list, tuple)) else module
        self.__dict__.pop(params_name, None)
        self.add_module(params_name, functional.params)
        self._ties[params_name] = functional.ties
        self._erase_cache()
        if create_target_params:
            target = target_name(params_name)
            self._has_update_associated[target] = False
            self._pending_targets.add(target)
            self._materialize_target(target)

    def _networks(self) -> Iterator[nn.Module]:
        """The templates."""
        yield from (value for value in tuple(self.__dict__.values()) if isinstance(value, nn.Module))

    # -- targets --------------------------------------------------------------------------------------------------

    def _materialize_target(self, target: str) -> bool:
        """Register a pending target if its source has its values by now. A lazy source gets them in its first call."""
        source = self._modules.get(source_name(target))
        if source is None or holds_uninitialized(source):
            return False
        self._pending_targets.discard(target)
        # add_module() asks hasattr() first, which for this name comes back here.
        self._modules[target] = make_target_params(source)
        return True

    def _materialize_targets(self) -> None:
        for target in tuple(self._pending_targets):
            self._materialize_target(target)

    def _target_params(self, name: str) -> TensorDictBase:
        """What the attribute ``target_<network>_params`` reads."""
        if name in self._pending_targets and not self._materialize_target(name):
            raise RuntimeError(
                f"{name} is not there yet: {source_name(name)} holds uninitialized (lazy) parameters. Run the "
                "network once on data first."
            )
        target = self._modules.get(name)
        if target is not None:
            if not self._has_update_associated.get(name, True):
                warn_stale_targets(stacklevel=4)
            return target
        source = self._modules.get(source_name(name))
        if source is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {source_name(name)!r}")
        return source.data

    def __getattr__(self, item: str) -> Any:
        if is_target_name(item):
            return self._target_params(item)
        return super().__getattr__(item)

    # -- stateful copies ------------------------------------------------------------------------------------------

    def _params_of(self, network_name: str) -> tuple[nn.Module, TensorDictParams]:
        network = getattr(self, network_name)
        return network, getattr(self, f"{network_name}_params")

    def get_stateful_net(self, network_name: str, copy: bool | None = None) -> nn.Module:
        """An ordinary module with the loss's own parameters in it: it follows the training.

        Args:
            network_name: name of the network, without ``_params``.
            copy: functional loss: install the parameters in a copy of the template (default) or, if False, in the
                template itself. Non-functional loss: the sub-module is returned and True is an error.

        Raises:
            AttributeError: if there is no such network.
            RuntimeError: if ``copy=True`` and the loss is not functional.
        """
        if f"{network_name}_params" not in self._modules:
            if copy:
                raise RuntimeError("get_stateful_net: copy=True needs a functional loss (functional=True).")
            return getattr(self, network_name)
        network, params = self._params_of(network_name)
        if copy is None or copy:
            network = copy_module.deepcopy(network)
        live = params._param_td.copy()
        if not params.batch_size:
            live.update(dict(self._ties[f"{network_name}_params"]))
        live.to_module(network, preserve_module_state=False)
        return network

    def from_stateful_net(self, network_name: str, stateful_net: nn.Module) -> None:
        """Copy the values of ``stateful_net`` into the loss's parameters (targets are left alone).

        Raises:
            RuntimeError: if the names or the shapes of the parameters differ. Nothing is written then.
        """
        if f"{network_name}_params" not in self._modules:
            getattr(self, network_name).load_state_dict(stateful_net.state_dict())
            return
        _, params = self._params_of(network_name)
        own, given = _flat(params), _flat(TensorDict.from_module(stateful_net))
        if own.keys() != given.keys():
            raise RuntimeError(
                f"from_stateful_net: the parameters of {network_name} and of the module differ: "
                f"{sorted(own.keys() - given.keys())} are only in the loss, {sorted(given.keys() - own.keys())} are "
                "only in the module."
            )
        for key, leaf in own.items():
            if leaf.shape != given[key].shape:
                raise RuntimeError(
                    f"from_stateful_net: {network_name}.{'.'.join(key)} has shape {tuple(leaf.shape)} in the loss and "
                    f"{tuple(given[key].shape)} in the module."
                )
        with torch.no_grad():
            for key, leaf in own.items():
                leaf.copy_(given[key])

    def reset_parameters_recursive(self, parameters: TensorDictBase | None = None) -> TensorDictBase | None:
        """Initialise every network anew, member by member, and copy the result to its target.

        Args:
            parameters: not supported by a loss, which holds several networks.

        Raises:
            TypeError: if ``parameters`` is given.
        """
        if parameters is not None:
            raise TypeError("reset_parameters_recursive: a loss resets its own networks and takes no parameters.")
        for name, params in self._functional_containers():
            network = getattr(self, name.removesuffix("_params"))
            _reset_params_(params, network, skip=self._ties[name])
            target = self._modules.get(target_name(name))
            if target is not None:
                _copy_leaves_(target, params)
        for child_name, child in self.named_children():
            if not isinstance(child, TensorDictParams) and child_name != "_value_estimator":
                reset_layers(child)
        return None

    def _container(self, name: str) -> TensorDictParams:
        """The registered parameters of that name, without the warning that the attribute may give."""
        params = self._modules[name]
        assert isinstance(params, TensorDictParams)
        return params

    def _functional_containers(self) -> list[tuple[str, TensorDictParams]]:
        return [(name, self._container(name)) for name in self._ties]

    # -- parameters -----------------------------------------------------------------------------------------------

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Like ``nn.Module.named_parameters``; names that start with ``_target`` are left out."""
        for name, parameter in super().named_parameters(prefix, recurse, remove_duplicate):
            if not name.removeprefix(f"{prefix}." if prefix else "").startswith("_target"):
                yield name, parameter

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The parameters to train, each once however many networks share it."""
        for _, parameter in self.named_parameters(recurse=recurse):
            yield parameter

    # -- moves, copies, checkpoints -------------------------------------------------------------------------------

    def _erase_cache(self) -> None:
        self.__dict__.pop("_cache", None)

    def _retie(self) -> None:
        """Make every tied entry a view of its parameter again."""
        own = {id(parameter) for parameter in self.parameters()}
        for name, ties in self._ties.items():
            for key, parameter in ties.items():
                if id(parameter) in own:
                    params = self._container(name)
                    replace_leaf(params, key, parameter.data.expand(*params.batch_size, *parameter.shape))
        self._erase_cache()

    def _untie(self) -> None:
        """Give every expanded tied entry a storage of its own: nothing can be copied into a stride-0 view."""
        for name, ties in self._ties.items():
            params = self._container(name)
            for key in ties if params.batch_size else ():
                replace_leaf(params, key, params.get(key).clone())

    def _apply(self, fn: Any, recurse: bool = True) -> FunctionalNetworks:
        result = super()._apply(fn, recurse)
        self._retie()
        return result

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        state.pop("_cache", None)
        return state

    def __deepcopy__(self, memo: dict[int, Any]) -> FunctionalNetworks:
        # A TensorDictParams copies itself without looking at the memo: its parameters would no longer be the ones that
        # the copied template, the copied estimator and the ties hold.
        result = type(self).__new__(type(self))
        memo[id(self)] = result
        for child in self.children():
            if isinstance(child, TensorDictParams):
                memo[id(child)] = _deepcopy_params(child, memo)
        result.__setstate__(copy_module.deepcopy(self.__getstate__(), memo))
        return result

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._retie()

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
        self._untie()
        self._materialize_targets()
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        for name, child in self._modules.items():
            if isinstance(child, TensorDictParams):
                _check_entries(state_dict, child, f"{prefix}{name}.", missing_keys, unexpected_keys, error_msgs)


def _functional_params(
    module: nn.Module | Sequence[nn.Module], module_name: str, expand_dim: int | None, compare_against: list[Tensor]
) -> FunctionalParams:
    if isinstance(module, (list, tuple)):
        if expand_dim != len(module):
            raise RuntimeError(
                f"convert_to_functional: expand_dim must be the number of modules in the list for {module_name}, got "
                f"expand_dim={expand_dim} and {len(module)} modules."
            )
        return stack_params(module, module_name, compare_against)
    assert isinstance(module, nn.Module)
    if expand_dim is None:
        return extract_params(module, module_name, compare_against)
    return expand_params(module, expand_dim, module_name, compare_against)


def _deepcopy_params(params: TensorDictParams, memo: dict[int, Any]) -> TensorDictParams:
    def copy_leaf(leaf: Tensor) -> Tensor:
        return copy_module.deepcopy(leaf, memo)

    return TensorDictParams(params._param_td.apply(copy_leaf, filter_empty=False), no_convert=True)


def _reset_params_(params: TensorDictParams, network: nn.Module, skip: Iterable[LeafKey]) -> None:
    own, skipped = _flat(params), set(skip)
    members = [
        _flat(TensorDict.from_module(reset_layers(copy_module.deepcopy(network)))) for _ in range(params.numel())
    ]
    with torch.no_grad():
        for key, leaf in own.items():
            if key not in skipped:
                fresh = [member[key].to(leaf.device) for member in members]
                leaf.copy_(torch.stack(fresh) if params.batch_size else fresh[0])


def _copy_leaves_(target: TensorDictBase, source: TensorDictBase) -> None:
    fresh = _flat(source)
    with torch.no_grad():
        for key, leaf in _flat(target).items():
            leaf.copy_(fresh[key])


def _check_entries(
    state_dict: dict[str, Any],
    params: TensorDictParams,
    prefix: str,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """What ``TensorDictParams`` does not report when it loads: entries that are missing, unknown or of another "
    "shape."""
    given = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    own = {".".join(key): leaf for key, leaf in _flat(params).items()}
    if not given:
        return  # nn.Module reports these itself
    missing_keys.extend(prefix + key for key in own if key not in given)
    for key, value in given.items():
        if key not in own:
            unexpected_keys.append(prefix + key)
            state_dict.pop(prefix + key)
        elif isinstance(value, Tensor) and value.shape != own[key].shape:
            error_msgs.append(
                f"size mismatch for {prefix}{key}: copying a param with shape {value.shape} from checkpoint, the "
                f"shape in current model is {own[key].shape}."
            )
            state_dict[prefix + key] = own[key].detach()


def _retie_after_load(module: nn.Module, incompatible_keys: Any) -> None:
    assert isinstance(module, FunctionalNetworks)
    module._retie()
