"""Networks of several agents at once: parameters shared or not, each agent's own input or everybody's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tritonrl.modules.mlp import MLP

__all__ = ["AgentLinear", "MultiAgentMLP"]


class AgentLinear(nn.Module):
    r"""One linear layer for each agent, evaluated together: :math:`y_n = W_n x_n + b_n`.

    Args:
        in_features: size of an agent's input.
        out_features: size of an agent's output.
        n_agents: number of agents.
        bias: whether there are biases.

    Shapes: input ``[*B, n_agents, in_features]``, output ``[*B, n_agents, out_features]``; weight
    ``[n_agents, out_features, in_features]``, bias ``[n_agents, out_features]``.

    Example:
        >>> AgentLinear(4, 2, n_agents=3)(torch.zeros(5, 3, 4)).shape
        torch.Size([5, 3, 2])
    """

    def __init__(self, in_features: int, out_features: int, n_agents: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_agents, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(n_agents, out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw each agent's weights as :class:`torch.nn.Linear` draws its own: U(-1/sqrt(in), 1/sqrt(in))."""
        bound = 1 / math.sqrt(self.weight.shape[-1]) if self.weight.shape[-1] else 0.0
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.einsum("...ni,noi->...no", x, self.weight)
        return out if self.bias is None else out + self.bias


class MultiAgentMLP(nn.Module):
    """A perceptron for each of several agents.

    ================  ============================================  =================================
    ..                ``share_params=True``                         ``share_params=False``
    ================  ============================================  =================================
    ``centralized``   one network, sees all inputs; its output is   n networks, each sees all inputs
                      the same for all agents
    not               one network, sees one agent at a time         n networks, each sees its agent
    ================  ============================================  =================================

    Args:
        n_agent_inputs: size of one agent's input.
        n_agent_outputs: size of one agent's output.
        n_agents: number of agents.
        centralized: whether the input of a network is that of all agents, concatenated (MAPPO's critic), or that of
            one (IPPO).
        share_params: whether agents have one set of parameters in common.
        device: of the parameters.
        depth: number of hidden layers, see :class:`MLP`.
        num_cells: their sizes, see :class:`MLP`.
        activation_class: makes the activations.
        **kwargs: further arguments of :class:`MLP`.

    Shapes: inputs ``[*B, n_agents, n_agent_inputs]`` (several are concatenated along the last dimension), output
    ``[*B, n_agents, n_agent_outputs]``.

    Raises:
        ValueError: at the call, if the input has another number of agents or features.

    Example:
        >>> critic = MultiAgentMLP(4, 1, n_agents=3, centralized=True, share_params=True, num_cells=[16])
        >>> critic(torch.zeros(5, 3, 4)).shape
        torch.Size([5, 3, 1])
    """

    def __init__(
        self,
        n_agent_inputs: int,
        n_agent_outputs: int,
        n_agents: int,
        *,
        centralized: bool,
        share_params: bool,
        device: torch.device | str | None = None,
        depth: int | None = None,
        num_cells: int | Sequence[int] | None = None,
        activation_class: Callable[..., nn.Module] = nn.Tanh,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.n_agents = n_agents
        self.n_agent_inputs = n_agent_inputs
        self.centralized = centralized
        self.share_params = share_params
        if not share_params:
            kwargs = {"layer_class": partial(AgentLinear, n_agents=n_agents), **kwargs}
        # The name that TorchRL's state dicts have.
        self.params = MLP(
            n_agent_inputs * n_agents if centralized else n_agent_inputs,
            n_agent_outputs,
            depth=depth,
            num_cells=num_cells,
            activation_class=activation_class,
            device=device,
            **kwargs,
        )

    def forward(self, *inputs: Tensor) -> Tensor:
        """Output of all agents, ``[*B, n_agents, n_agent_outputs]``."""
        x = inputs[0] if len(inputs) == 1 else torch.cat(inputs, -1)
        if x.shape[-2:] != (self.n_agents, self.n_agent_inputs):
            raise ValueError(
                f"the input must have the shape [*B, {self.n_agents} agents, {self.n_agent_inputs} features], got "
                f"{tuple(x.shape)}"
            )
        if not self.centralized:
            return self.params(x)
        everything = x.flatten(-2).unsqueeze(-2)
        if not self.share_params:
            return self.params(everything.expand(*x.shape[:-1], everything.shape[-1]))
        out = self.params(everything)
        return out.expand(*out.shape[:-2], self.n_agents, out.shape[-1])
