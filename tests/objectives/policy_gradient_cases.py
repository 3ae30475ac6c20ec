"""What the tests of A2C and REINFORCE have in common: both implementations on the same networks and data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from tritonrl.objectives import LossModule

from .ppo_cases import gradients, make_critic, normal_actor


def build(cls: Any, **kwargs: Any) -> Any:
    return cls(normal_actor(), make_critic(), **kwargs)


def tensors(out: TensorDict, but: frozenset[str] = frozenset()) -> dict[Any, Tensor]:
    return {key: value for key, value in out.items(True, True) if key not in but}


def backward(out: TensorDict) -> None:
    sum(value.sum() for key, value in out.items() if key.startswith("loss_")).backward()


def check_parity(
    ours: Any,
    theirs: Any,
    data: TensorDict,
    make: Callable[[], Any] = normal_actor,
    but: frozenset[str] = frozenset(),
    prepare: Callable[[Any], None] = lambda loss: None,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """Values, gradients, entries, in_keys and out_keys are those of TorchRL; ``but`` are metrics meant to differ."""
    losses, outs, grads = [], [], []
    for cls in (ours, theirs):
        actor, critic = make(), make_critic()
        loss = cls(actor, critic, **kwargs)
        prepare(loss)
        torch.manual_seed(9)
        out = loss(data.clone())
        backward(out)
        losses.append(loss)
        outs.append(out)
        grads.append(gradients(actor, critic))
    assert list(outs[0].keys()) == list(outs[1].keys())
    torch.testing.assert_close(tensors(outs[0], but), tensors(outs[1], but), rtol=1e-5, atol=1e-6)
    flags = [{key: value.requires_grad for key, value in tensors(out).items()} for out in outs]
    assert flags[0] == flags[1]
    assert [grad is None for grad in grads[0]] == [grad is None for grad in grads[1]]
    torch.testing.assert_close(present(grads[0]), present(grads[1]), rtol=1e-4, atol=1e-6)
    assert any(grad.abs().max() > 0 for grad in present(grads[0]))
    assert set(losses[0].in_keys) == set(losses[1].in_keys)
    assert losses[0].out_keys == losses[1].out_keys
    return losses[0], losses[1]


def present(grads: list[Tensor | None]) -> list[Tensor]:
    return [grad for grad in grads if grad is not None]


def check_compiled(loss: LossModule, call: Any, data: TensorDict, networks: tuple[nn.Module, ...]) -> TensorDict:
    """Values and gradients of the compiled call are those of eager mode."""
    results = []
    for function in (loss, call):
        loss.zero_grad()
        torch.manual_seed(9)
        out = function(data)
        loss.total(out).backward()
        results.append((out.to_dict(), gradients(*networks)))
    assert all(grad is not None and grad.abs().max() > 0 for grad in results[0][1])
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)
    return out.detach()
