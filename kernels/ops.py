"""Registration with ``torch.library``: schema, implementation, fake, autograd and vmap of every op.

The implementation of an op is whatever :func:`.backend.backend_for` names for the device of its first tensor. First
derivatives run in the backend's own backward kernels; when the backward pass is itself being differentiated, the formulas of
:mod:`.gradients` are used instead, with the recurrence op inside them, which is differentiable to any order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import gradients
from .backend import backend_for
from .specs import SPECS, allocate

_library = torch.library.Library("tritonrl", "DEF")


def _register(op: str) -> None:
    def implementation(*args: Any) -> Any:
        device = next(x.device for x in args if x is not None)
        return getattr(backend_for(device), op)(*args)

    def fake(*args: Any) -> Any:
        results = allocate(op, args)
        return results if len(results) > 1 else results[0]

    _library.define(op + SPECS[op].schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(op, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"tritonrl::{op}", fake, lib=_library)
    torch.library.register_vmap(f"tritonrl::{op}", _vmap_rule(op), lib=_library)


def _vmap_rule(op: str) -> Callable[..., Any]:
    """Batch dimensions go to the front, where they are one more lane dimension: ``time_dim`` counts from the end."""
    spec = SPECS[op]

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        ranks = [x.dim() - (d is not None) if isinstance(x, Tensor) else 0 for x, d in zip(args, in_dims, strict=True)]
        rank = max(ranks[i] for i in spec.shaped_by)
        carry = 2 if op == "linear_recurrence" else 3 if op == "linear_recurrence_backward" else None
        moved = list(args)
        for i, (x, d) in enumerate(zip(args, in_dims, strict=True)):
            if isinstance(x, Tensor) and d is not None:
                x = x.movedim(d, 0)
                padding = (rank - (i == carry)) - ranks[i]
                moved[i] = x.reshape(x.shape[:1] + (1,) * padding + x.shape[1:]) if padding > 0 else x
        # At least one of the tensors that make the shape has to carry the batch.
        like = spec.like
        if in_dims[like] is None:
            x = args[like]
            moved[like] = x.expand((info.batch_size,) + (1,) * (rank - x.dim()) + x.shape)
        results = getattr(torch.ops.tritonrl, op)(*moved)
        if isinstance(results, Tensor):
            return results, 0
        absent = spec.discount_outputs if spec.discount_outputs and not args[-1] else 0
        return results, (0,) * (len(results) - absent) + (None,) * absent

    return rule


def _sum_to(grad: Tensor | None, like: Tensor, needed: bool) -> Tensor | None:
    """A gradient of the full shape, summed over what the input was broadcast along."""
    if grad is None or not needed:
        return None
    return grad.sum_to_size(like.shape).to(like.dtype)


def _recurrence(a: Tensor, b: Tensor, carry: Tensor | None, time_dim: int, reverse: bool) -> Tensor:
    result: Tensor = call("linear_recurrence", a, b, carry, time_dim, reverse)
    return result


def _backward_of(op: str, args: tuple[Any, ...]) -> tuple[Tensor | None, ...]:
    """Run the backward kernel of ``op``, or its differentiable twin when the gradient itself needs a graph."""
    if not torch.is_grad_enabled():
        grads: tuple[Tensor, ...] = getattr(torch.ops.tritonrl, f"{op}_backward")(*args)
        return grads
    names = [argument.split()[-1] for argument in SPECS[f"{op}_backward"].schema[1:].split(")")[0].split(",")]
    filled = dict(zip(names, args, strict=True))
    if "terminated" in filled and filled["terminated"] is None:
        filled["terminated"] = filled["done"]
    like = args[SPECS[f"{op}_backward"].like]
    for name in ("grad_advantage", "grad_target"):
        if name in filled and filled[name] is None:
            filled[name] = torch.zeros_like(like)
    twin: Callable[..., tuple[Tensor | None, ...]] = getattr(gradients, f"{op}_backward")
    return twin(*filled.values(), recurrence=_recurrence)


def _save(ctx: Any, *tensors: Tensor | None) -> None:
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _linear_recurrence_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, carry, ctx.time_dim, ctx.reverse = inputs
    _save(ctx, a, b, carry, output)


def _linear_recurrence_grad(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 5
    a, b, carry, y = ctx.saved_tensors
    if torch.is_grad_enabled():
        twin = gradients.linear_recurrence_backward
        grad_a, grad_b, grad_carry = twin(grad, a, y, carry, ctx.time_dim, ctx.reverse, _recurrence)
    else:
        grad_a, grad_b = torch.ops.tritonrl.linear_recurrence_backward(grad, a, y, carry, ctx.time_dim, ctx.reverse)
        grad_carry = None if carry is None else gradients.carry_gradient(a, grad_b, ctx.time_dim, ctx.reverse)
    needs = ctx.needs_input_grad
    return (
        _sum_to(grad_a, a, needs[0]),
        _sum_to(grad_b, b, needs[1]),
        None if carry is None else _sum_to(grad_carry, carry, needs[2]),
        *(None, None),
    )


def _gae_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.time_dim = inputs
    _save(ctx, *tensors, output[0])


def _gae_grad(ctx: Any, grad_advantage: Tensor | None, grad_target: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_advantage is None and grad_target is None:
        return (None,) * 8
    reward, value, next_value, done, terminated, gamma, lmbda, advantage = ctx.saved_tensors
    needs = ctx.needs_input_grad
    grads = _backward_of(
        "gae",
        (
            *(grad_advantage, grad_target, next_value, advantage, done, terminated, gamma, lmbda),
            *(ctx.time_dim, needs[5] or needs[6]),
        ),
    )
    return (
        _sum_to(grads[0], reward, needs[0]),
        _sum_to(grads[1], value, needs[1]),
        _sum_to(grads[2], next_value, needs[2]),
        *(None, None),
        _sum_to(grads[3], gamma, needs[5]),
        _sum_to(grads[4], lmbda, needs[6]),
        None,
    )


def _td_lambda_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.time_dim = inputs
    _save(ctx, *tensors, output)


def _td_lambda_grad(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    reward, next_value, done, terminated, gamma, lmbda, returns = ctx.saved_tensors
    needs = ctx.needs_input_grad
    grads = _backward_of(
        "td_lambda_return",
        (grad, next_value, returns, done, terminated, gamma, lmbda, ctx.time_dim, needs[4] or needs[5]),
    )
    return (
        _sum_to(grads[0], reward, needs[0]),
        _sum_to(grads[1], next_value, needs[1]),
        *(None, None),
        _sum_to(grads[2], gamma, needs[4]),
        _sum_to(grads[3], lmbda, needs[5]),
        None,
    )


def _reward_to_go_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.time_dim = inputs
    _save(ctx, *tensors, output)


def _reward_to_go_grad(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 4
    reward, done, gamma, returns = ctx.saved_tensors
    needs = ctx.needs_input_grad
    grads = _backward_of("reward_to_go", (grad, returns, done, gamma, ctx.time_dim, needs[2]))
    return _sum_to(grads[0], reward, needs[0]), None, _sum_to(grads[1], gamma, needs[2]), None


def _vtrace_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.time_dim = inputs
    _save(ctx, *tensors, output[1])


def _vtrace_grad(ctx: Any, grad_advantage: Tensor | None, grad_target: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_advantage is None and grad_target is None:
        return (None,) * 11
    *inputs, target = ctx.saved_tensors
    log_pi, log_mu, reward, value, next_value, done, terminated, gamma, rho_thresh, c_thresh = inputs
    needs = ctx.needs_input_grad
    grads = _backward_of(
        "vtrace",
        (
            *(grad_advantage, grad_target, log_pi, log_mu, reward, value, next_value, target, done, terminated),
            *(gamma, rho_thresh, c_thresh, ctx.time_dim, needs[7] or needs[8] or needs[9]),
        ),
    )
    grad_log_pi = grads[0]
    return (
        _sum_to(grad_log_pi, log_pi, needs[0]),
        _sum_to(None if grad_log_pi is None else -grad_log_pi, log_mu, needs[1]),
        _sum_to(grads[1], reward, needs[2]),
        _sum_to(grads[2], value, needs[3]),
        _sum_to(grads[3], next_value, needs[4]),
        *(None, None),
        _sum_to(grads[4], gamma, needs[7]),
        _sum_to(grads[5], rho_thresh, needs[8]),
        _sum_to(grads[6], c_thresh, needs[9]),
        None,
    )


_GRADS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "linear_recurrence": (_linear_recurrence_setup, _linear_recurrence_grad),
    "gae": (_gae_setup, _gae_grad),
    "td_lambda_return": (_td_lambda_setup, _td_lambda_grad),
    "reward_to_go": (_reward_to_go_setup, _reward_to_go_grad),
    "vtrace": (_vtrace_setup, _vtrace_grad),
}


def _function(op: str) -> type[torch.autograd.Function]:
    """The op as an autograd function with a separate ``setup_context``, the form that ``torch.func`` can transform."""
    setup, grad = _GRADS[op]
    call: Callable[..., Any] = getattr(torch.ops.tritonrl, op)
    members = {
        "forward": staticmethod(lambda *args: call(*args)),
        "setup_context": staticmethod(setup),
        "backward": staticmethod(grad),
        "vmap": staticmethod(_vmap_rule(op)),
    }
    return type(op, (torch.autograd.Function,), members)


for _op in SPECS:
    _register(_op)
for _op, (_setup, _grad) in _GRADS.items():
    torch.library.register_autograd(f"tritonrl::{_op}", _grad, setup_context=_setup, lib=_library)
_FUNCTIONS = {op: _function(op) for op in _GRADS}


def call(op: str, *args: Any) -> Any:
    """Call a differentiable op, under ``torch.func`` transforms too (``grad``, ``jacrev``, ``vmap`` in any order).

    ``torch.library.register_autograd`` makes functions that ``torch.func`` refuses, so those calls take another door.
    """
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return _FUNCTIONS[op].apply(*args)
    return getattr(torch.ops.tritonrl, op)(*args)
