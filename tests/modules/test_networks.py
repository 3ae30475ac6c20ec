"""Perceptrons, networks of several agents, convolutions: parameters and numbers are those of TorchRL."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchrl.modules as theirs
from torch import Tensor, nn

import tritonrl.modules as ours
from tritonrl.modules.multi_agent import AgentLinear


def check_parity(mine: nn.Module, reference: nn.Module, *inputs: Tensor) -> None:
    """The same parameter names and, with the same parameters, the same outputs and gradients."""
    reference.load_state_dict(mine.state_dict())
    results = []
    for network in (mine.double(), reference.double()):
        torch.manual_seed(5)
        out = network(*(value.double() for value in inputs))
        outs = out if isinstance(out, tuple) else (out,)
        sum(part.square().sum() for part in outs).backward()
        results.append((outs, [parameter.grad for _, parameter in sorted(network.named_parameters())]))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize(
    "options",
    [
        {"in_features": 3, "out_features": 2},
        {"in_features": 3, "out_features": 2, "depth": 2},
        {"in_features": 3, "out_features": 2, "num_cells": [4, 5], "activation_class": nn.ReLU},
        {"in_features": 3, "out_features": (2, 3), "num_cells": 7, "depth": 1, "bias_last_layer": False},
        {"in_features": 3, "out_features": 2, "num_cells": [4], "activate_last_layer": True},
        {
            "in_features": 3,
            "out_features": 2,
            "num_cells": 4,
            "depth": 2,
            "norm_class": nn.LayerNorm,
            "norm_kwargs": {"normalized_shape": 4},
            "dropout": 0.5,
        },
        {
            "in_features": 3,
            "out_features": 2,
            "num_cells": [4],
            "activation_class": nn.ELU,
            "activation_kwargs": {"alpha": 2.0},
        },
    ],
)
def test_perceptrons(options: dict[str, Any]) -> None:
    check_parity(ours.MLP(**options), theirs.MLP(**options), torch.randn(6, 5, 3))


def test_a_perceptron_concatenates_its_inputs_and_infers_their_size() -> None:
    network = ours.MLP(out_features=2, num_cells=[4])
    assert network(torch.zeros(3, 2), torch.zeros(3, 5)).shape == (3, 2)
    assert network[0].in_features == 7


def test_bad_arguments_of_a_perceptron_are_named() -> None:
    with pytest.raises(ValueError, match="out_features"):
        ours.MLP(in_features=3)
    with pytest.raises(RuntimeError, match="depth 2 contradicts"):
        ours.MLP(3, 2, depth=2, num_cells=[4])
    with pytest.raises(ValueError, match="activation_kwargs"):
        ours.MLP(3, 2, num_cells=[4], activation_kwargs=[{}, {}])


@pytest.mark.parametrize("centralized", [True, False])
@pytest.mark.parametrize("share_params", [True, False])
def test_networks_of_several_agents(centralized: bool, share_params: bool) -> None:
    options = {"centralized": centralized, "share_params": share_params, "num_cells": [8], "activation_class": nn.ReLU}
    mine = ours.MultiAgentMLP(3, 2, 4, **options)
    check_parity(mine, theirs.MultiAgentMLP(3, 2, 4, **options), torch.randn(5, 7, 4, 3))
    mine.float()
    x = torch.randn(5, 4, 3)
    moved = x.clone()
    moved[:, 1] += 1
    changed = [bool((a != b).any()) for a, b in zip(mine(x).unbind(-2), mine(moved).unbind(-2), strict=True)]
    assert changed == ([True] * 4 if centralized else [False, True, False, False])
    same = torch.zeros(5, 4, 3)
    outs = mine(same).unbind(-2)
    assert torch.equal(outs[0], outs[1]) == share_params
    with pytest.raises(ValueError, match=r"4 agents, 3 features\], got \(5, 3, 3\)"):
        mine(torch.zeros(5, 3, 3))


def test_each_agents_layer_is_drawn_like_a_layer_of_its_own() -> None:
    torch.manual_seed(0)
    layer = AgentLinear(64, 50, n_agents=3)
    bound = 1 / 8
    assert layer.weight.abs().max() <= bound
    torch.testing.assert_close(layer.weight.std((1, 2)), torch.full((3,), bound / 3**0.5), rtol=0.05, atol=0)
    assert not torch.equal(layer.weight[0], layer.weight[1])


def test_image_encoders_and_decoders() -> None:
    images = torch.rand(2, 5, 3, 64, 64)
    check_parity(ours.ObsEncoder(2, in_channels=3), theirs.ObsEncoder(2, in_channels=3), images)
    small = torch.rand(2, 1, 32, 32)
    check_parity(ours.ObsEncoder(2, 3, in_channels=1), theirs.ObsEncoder(2, 3, in_channels=1), small)
    latent = (torch.randn(2, 5, 3), torch.randn(2, 5, 7))
    check_parity(ours.ObsDecoder(2, latent_dim=10), theirs.ObsDecoder(2, latent_dim=10), *latent)
    options: dict[str, Any] = {"num_layers": 3, "kernel_sizes": [5, 5, 6], "latent_dim": 10, "out_channels": 1}
    check_parity(ours.ObsDecoder(2, **options), theirs.ObsDecoder(2, **options), *latent)


def test_bad_arguments_of_image_networks_are_named() -> None:
    with pytest.raises(ValueError, match="num_layers"):
        ours.ObsEncoder(num_layers=0)
    with pytest.raises(ValueError, match=r"\[\*B, C, H, W\], got \(32, 32\)"):
        ours.ObsEncoder(in_channels=3)(torch.zeros(32, 32))
    with pytest.raises(ValueError, match="kernel_sizes"):
        ours.ObsDecoder(num_layers=3, kernel_sizes=[5, 5])


def test_the_actor_of_dreamer() -> None:
    inputs = (torch.randn(5, 3), torch.randn(5, 8))
    reference = theirs.DreamerActor(2, depth=2, num_cells=8)
    reference(*inputs)
    check_parity(ours.DreamerActor(2, depth=2, num_cells=8, in_features=11), reference, *inputs)
