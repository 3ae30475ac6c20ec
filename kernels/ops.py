"""Registration with ``torch.library``: schema, implementation, fake, autograd and vmap of every op.

The implementation of an op is whatever :func:`.backend.backend_for` names for the device of its first tensor. First
derivatives run in the backend's own backward kernels; when the backward pass is itself being differentiated, the formulas of
:mod:`.gradients` are used instead, with the recurrence op inside them, which is differentiable to any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import forward_mode, gradients, packed
from .backend import backend_for
from .compose import knows_ends, serve
from .masked import derived_next_value, select, state_of, unmasked
from .specs import ALL_SPECS, allocate, argument_names, by_name, plain_names
from .textbook import previous_step

_library = torch.library.Library("tritonrl", "DEF")
_IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {}


def _register(op: str) -> None:
    plain = 0 if op == "gae_extended" else len(plain_names(op))

    def implementation(*args: Any) -> Any:
        backend = backend_for(next(x.device for x in args if x is not None))
        if len(args) == plain:  # the dispatcher drops what is absent: the call that every backend serves itself
            return getattr(backend, op)(*args)
        return serve(op, args, backend)

    def fake(*args: Any) -> Any:
        results = allocate(op, args)
        return results if len(results) > 1 else results[0]

    _IMPLEMENTATIONS[op] = implementation
    _library.define(op + ALL_SPECS[op].registered_schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(op, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"tritonrl::{op}", fake, lib=_library)
    torch.library.register_vmap(f"tritonrl::{op}", _vmap_rule(op), lib=_library)


def _vmap_rule(op: str) -> Callable[..., Any]:
    """Batch dimensions go to the front, where they are one more lane dimension: ``time_dim`` counts from the end."""
    spec, names = ALL_SPECS[op], argument_names(op)
    without_time = [i for i, name in enumerate(names) if name in ("carry", "bootstrap_value")]
    wanted = len(plain_names(op)) - 1

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        if names[-1] == "cu_seqlens" and len(args) == len(names) and in_dims[-1] is not None:
            in_dims, args = _with_ends_of_each(op, in_dims, args)
        ranks = [x.dim() - (d is not None) if isinstance(x, Tensor) else 0 for x, d in zip(args, in_dims, strict=True)]
        if spec.moments and args[wanted]:
            raise NotImplementedError("vmap over moments=True: take the moments of the batched advantages instead")
        rank = max(ranks[i] for i in spec.shaped_by)
        in_place_of_time = spec.optional and by_name(op, args)["cu_seqlens"] is not None
        moved = list(args)
        for i, (x, d) in enumerate(zip(args, in_dims, strict=True)):
            if isinstance(x, Tensor) and d is not None:
                x = x.movedim(d, 0)
                padding = (rank - (i in without_time and not in_place_of_time)) - ranks[i]
                moved[i] = x.reshape(x.shape[:1] + (1,) * padding + x.shape[1:]) if padding > 0 else x
        # At least one of the tensors that make the shape has to carry the batch.
        like = spec.like
        if in_dims[like] is None:
            x = args[like]
            moved[like] = x.expand((info.batch_size,) + (1,) * (rank - x.dim()) + x.shape)
        results = getattr(torch.ops.tritonrl, op)(*moved)
        if isinstance(results, Tensor):
            return results, 0
        absent = (spec.discount_outputs or int(spec.moments)) if not args[wanted] else 0
        return results, (0,) * (len(results) - absent) + (None,) * absent

    return rule


def _with_ends_of_each(op: str, in_dims: Sequence[int | None], args: Sequence[Any]) -> tuple[Any, Any]:
    """Offsets that differ over the batch become flags and values, because a kernel takes one packing.

    Returns ``in_dims, args``.
    """
    given, dims = (dict(zip(argument_names(op), x, strict=True)) for x in (args, in_dims))
    if "terminated" in given and given["terminated"] is None:
        given["terminated"], dims["terminated"] = given["done"], dims["done"]
    shaped_by = [(args[i], in_dims[i]) for i in ALL_SPECS[op].shaped_by if args[i] is not None]
    shapes = [x.shape if d is None else x.movedim(d, 0).shape[1:] for x, d in shaped_by]
    shape, time_dim = torch.broadcast_shapes(*shapes), given["time_dim"]

    def each(function: Callable[..., Tensor], *names: str) -> Tensor:
        taken = (*names, "cu_seqlens")
        return torch.func.vmap(function, tuple(dims[name] for name in taken))(*(given[name] for name in taken))

    folded = {"done": each(lambda done, offsets: packed.ended(done, offsets, shape[time_dim], time_dim), "done")}
    if given.get("bootstrap_value") is not None:
        _refuse_masks(given["valid"], given["skip"])
        folded["next_value"] = each(
            lambda value, last, offsets: packed.derived_next_value(value.expand(shape), last, offsets, time_dim),
            *("value", "bootstrap_value"),
        )
    for name in folded:
        dims[name] = 0
    for name in given.keys() & {"bootstrap_value", "cu_seqlens"}:
        given[name] = dims[name] = None
    return tuple(dims.values()), tuple((given | folded).values())


def _refuse_masks(valid: Tensor | None, skip: Tensor | None) -> None:
    """Next values that were derived past masks are known to the kernel alone.

    Raises:
        NotImplementedError: if there are masks.
    """
    if valid is not None or skip is not None:
        raise NotImplementedError(
            "tritonrl::gae_extended has neither gradient nor vmap over offsets with masks and without next_value; "
            "tritonrl.kernels.gae, which derives next_value first, has both"
        )


def _sum_to(grad: Tensor | None, like: Tensor, needed: bool) -> Tensor | None:
    """A gradient of the full shape, summed over what the input was broadcast along."""
    if grad is None or not needed:
        return None
    if grad.shape != like.shape:
        grad = grad.sum_to_size(like.shape)
    return grad if grad.dtype is like.dtype else grad.to(like.dtype)


def recurrence(a: Tensor, b: Tensor, carry: Tensor | None, time_dim: int, reverse: bool) -> Tensor:
    """The linear recurrence as a differentiable op."""
    result: Tensor = call("linear_recurrence", a, b, carry, time_dim, reverse)
    return result


def _backward_of(op: str, args: tuple[Any, ...]) -> tuple[Tensor | None, ...]:
    """Run the backward kernel of ``op``, or its differentiable twin when the gradient itself needs a graph."""
    backward = f"{op}_backward"
    if not torch.is_grad_enabled():
        grads: tuple[Tensor, ...] = _call_alone(backward, args)
        return grads
    args = packed.folded(backward, args, recurrence)
    plain, counts = list(args[: len(plain_names(backward))]), None
    if any(x is not None for x in args[len(plain) :]):
        plain, counts = unmasked(backward, args)
    filled = dict(zip(plain_names(backward), plain, strict=True))
    if "terminated" in filled and filled["terminated"] is None:
        filled["terminated"] = filled["done"]
    like = args[ALL_SPECS[backward].like]
    for name in ("grad_advantage", "grad_target"):
        if name in filled and filled[name] is None:
            filled[name] = torch.zeros_like(like)
    twin: Callable[..., tuple[Tensor | None, ...]] = getattr(gradients, backward)
    found = twin(*filled.values(), recurrence=recurrence)
    return found if counts is None else select(found, counts)


def _split_masks(op: str, inputs: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The arguments that are always there, and the optional ones: left out where they were not given, or ``None``."""
    count = len(plain_names(op))
    return inputs[:count], inputs[count:]


def _given(masks: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """No masks at all rather than absent ones, which makes the call the one that every backend knows."""
    return masks if any(x is not None for x in masks) else ()


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
    grad_carry: Tensor | None
    if torch.is_grad_enabled():
        twin = gradients.linear_recurrence_backward
        grad_a, grad_b, grad_carry = twin(grad, a, y, carry, ctx.time_dim, ctx.reverse, recurrence)
    else:
        args = grad, a, y, carry, ctx.time_dim, ctx.reverse
        grad_a, grad_b = _call_alone("linear_recurrence_backward", args)
        grad_carry = None if carry is None else gradients.carry_gradient(a, grad_b, ctx.time_dim, ctx.reverse)
    needs = ctx.needs_input_grad
    return (
        _sum_to(grad_a, a, needs[0]),
        _sum_to(grad_b, b, needs[1]),
        None if carry is None else _sum_to(grad_carry, carry, needs[2]),
        *(None, None),
    )


def _gae_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    (*tensors, ctx.time_dim), masks = _split_masks("gae", inputs)
    _save(ctx, *tensors, output[0], *masks)


def _state(
    advantage: Tensor,
    done: Tensor,
    time_dim: int,
    valid: Tensor | None = None,
    skip: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """What the gradients of the discounts see of the following step: the advantages, and what passes through skipped steps."""
    if skip is None:
        return advantage
    done = packed.ended(done, cu_seqlens, advantage.shape[time_dim], time_dim)
    return state_of(advantage, done, valid, skip, time_dim, recurrence)


def _gae_grad(ctx: Any, grad_advantage: Tensor | None, grad_target: Tensor | None) -> tuple[Tensor | None, ...]:
    reward, value, next_value, done, terminated, gamma, lmbda, advantage, *masks = ctx.saved_tensors
    if grad_advantage is None and grad_target is None:
        return (None,) * (8 + len(masks))
    needs = ctx.needs_input_grad
    masked, with_discounts = _given(tuple(masks)), needs[5] or needs[6]
    if with_discounts:
        advantage = _state(advantage, done, ctx.time_dim, *masked)
    grads = _backward_of(
        "gae",
        (
            *(grad_advantage, grad_target, next_value, advantage, done, terminated, gamma, lmbda),
            *(ctx.time_dim, with_discounts, *masked),
        ),
    )
    return (
        _sum_to(grads[0], reward, needs[0]),
        _sum_to(grads[1], value, needs[1]),
        _sum_to(grads[2], next_value, needs[2]),
        *(None, None),
        _sum_to(grads[3], gamma, needs[5]),
        _sum_to(grads[4], lmbda, needs[6]),
        *(None,) * (1 + len(masks)),
    )


def _gae_extended_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.inputs = len(inputs)
    named = by_name("gae_extended", inputs)
    ctx.time_dim = named.pop("time_dim")
    named.pop("moments")
    _save(ctx, *named.values(), output[0])
    ctx.mark_non_differentiable(output[2])


def _derived(value: Tensor, bootstrap_value: Tensor, cu_seqlens: Tensor | None, time_dim: int) -> Tensor:
    """The next values that the kernel derived."""
    if cu_seqlens is not None:
        return packed.derived_next_value(value, bootstrap_value, cu_seqlens, time_dim)
    return derived_next_value(value, bootstrap_value, None, time_dim, recurrence)


def _derived_backward(grad_next_value: Tensor, cu_seqlens: Tensor | None, time_dim: int) -> tuple[Tensor, Tensor]:
    """What reaches a derived next value, at the value and at the bootstrap value that it came from."""
    if cu_seqlens is not None:
        return packed.derived_next_value_backward(grad_next_value, cu_seqlens, time_dim)
    steps = grad_next_value.shape[time_dim]
    last = grad_next_value.select(time_dim, steps - 1) if steps else grad_next_value.sum(time_dim)
    return previous_step(grad_next_value, None, time_dim), last


def _gae_extended_grad(
    ctx: Any, grad_advantage: Tensor | None, grad_target: Tensor | None, grad_moments: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The gradient of :func:`_gae_grad`, with what reaches a derived next value passed on to the value it came from."""
    if grad_advantage is None and grad_target is None:
        return (None,) * ctx.inputs
    *inputs, bootstrap_value, valid, skip, cu_seqlens, advantage = ctx.saved_tensors
    reward, value, next_value, done, terminated, gamma, lmbda = inputs
    needs, time_dim, derived = ctx.needs_input_grad, ctx.time_dim, next_value is None
    masked, with_discounts = _given((valid, skip, cu_seqlens)), needs[5] or needs[6]
    if derived:
        _refuse_masks(valid, skip)
    if with_discounts:
        advantage = _state(advantage, done, time_dim, *masked)
    if derived and with_discounts:
        next_value = _derived(value.expand(advantage.shape), bootstrap_value, cu_seqlens, time_dim)
    grads = _backward_of(
        "gae",
        (
            # Only a gradient with respect to a discount looks at the next value.
            *(grad_advantage, grad_target, value if next_value is None else next_value, advantage),
            *(done, terminated, gamma, lmbda, time_dim, with_discounts, *masked),
        ),
    )
    grad_value, grad_next_value = grads[1], grads[2]
    grad_bootstrap = None
    if derived and grad_value is not None and grad_next_value is not None:
        passed_on, last = _derived_backward(grad_next_value, cu_seqlens, time_dim)
        grad_value = grad_value + passed_on
        grad_bootstrap = _sum_to(last, bootstrap_value, len(needs) > 9 and needs[9])
    found = (
        _sum_to(grads[0], reward, needs[0]),
        _sum_to(grad_value, value, needs[1]),
        None if derived else _sum_to(grad_next_value, next_value, needs[2]),
        *(None, None),
        _sum_to(grads[3], gamma, needs[5]),
        _sum_to(grads[4], lmbda, needs[6]),
        *(None, None, grad_bootstrap, None, None, None),
    )
    return found[: ctx.inputs]


def _td_lambda_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    (*tensors, ctx.time_dim), masks = _split_masks("td_lambda_return", inputs)
    _save(ctx, *tensors, output, *masks)


def _td_lambda_grad(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    reward, next_value, done, terminated, gamma, lmbda, returns, *masks = ctx.saved_tensors
    if grad is None:
        return (None,) * (7 + len(masks))
    needs = ctx.needs_input_grad
    grads = _backward_of(
        "td_lambda_return",
        (
            *(grad, next_value, returns, done, terminated, gamma, lmbda, ctx.time_dim, needs[4] or needs[5]),
            *_given(tuple(masks)),
        ),
    )
    return (
        _sum_to(grads[0], reward, needs[0]),
        _sum_to(grads[1], next_value, needs[1]),
        *(None, None),
        _sum_to(grads[2], gamma, needs[4]),
        _sum_to(grads[3], lmbda, needs[5]),
        *(None,) * (1 + len(masks)),
    )


def _reward_to_go_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    (*tensors, ctx.time_dim), masks = _split_masks("reward_to_go", inputs)
    _save(ctx, *tensors, output, *masks)


def _reward_to_go_grad(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    reward, done, gamma, returns, *masks = ctx.saved_tensors
    if grad is None:
        return (None,) * (4 + len(masks))
    needs = ctx.needs_input_grad
    args = (grad, returns, done, gamma, ctx.time_dim, needs[2], *_given(tuple(masks)))
    grads = _backward_of("reward_to_go", args)
    return (
        _sum_to(grads[0], reward, needs[0]),
        None,
        _sum_to(grads[1], gamma, needs[2]),
        *(None,) * (1 + len(masks)),
    )


def _vtrace_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    (*tensors, ctx.time_dim), masks = _split_masks("vtrace", inputs)
    _save(ctx, *tensors, output[1], *masks)


def _vtrace_grad(ctx: Any, grad_advantage: Tensor | None, grad_target: Tensor | None) -> tuple[Tensor | None, ...]:
    (*inputs, target), masks = ctx.saved_tensors[:11], ctx.saved_tensors[11:]
    if grad_advantage is None and grad_target is None:
        return (None,) * (11 + len(masks))
    log_pi, log_mu, reward, value, next_value, done, terminated, gamma, rho_thresh, c_thresh = inputs
    needs = ctx.needs_input_grad
    grads = _backward_of(
        "vtrace",
        (
            *(grad_advantage, grad_target, log_pi, log_mu, reward, value, next_value, target, done, terminated),
            *(gamma, rho_thresh, c_thresh, ctx.time_dim, needs[7] or needs[8] or needs[9], *_given(masks)),
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
        *(None,) * (1 + len(masks)),
    )


_GRADS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "linear_recurrence": (_linear_recurrence_setup, _linear_recurrence_grad),
    "gae": (_gae_setup, _gae_grad),
    "gae_extended": (_gae_extended_setup, _gae_extended_grad),
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


def _recorder(op: str) -> type[torch.autograd.Function]:
    """The op as an autograd function that goes to the backend straight. What ``torch.library`` makes of the same two parts
    takes five times as long for the same graph."""
    (setup, grad), implementation = _GRADS[op], _IMPLEMENTATIONS[op]

    def forward(ctx: Any, *args: Any) -> Any:
        results = implementation(*args)
        setup(ctx, args, results)
        return results

    members = {"forward": staticmethod(forward), "backward": staticmethod(grad)}
    return type(op, (torch.autograd.Function,), members)


for _op in ALL_SPECS:
    _register(_op)
for _op, (_setup, _grad) in _GRADS.items():
    torch.library.register_autograd(f"tritonrl::{_op}", _grad, setup_context=_setup, lib=_library)
_FUNCTIONS = {op: _function(op) for op in _GRADS}
_RECORDERS = {op: _recorder(op) for op in _GRADS}


def nobody_listens() -> bool:
    """Whether no transform, mode, tracer or profiler has to see the calls that are made now."""
    return not (
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._is_tracing()
        or torch.autograd._profiler_enabled()
        or forward_mode.is_on()
    )


def are_ordinary(args: Sequence[Any]) -> bool:
    """Whether every tensor is one whose memory a backend reads as it is."""
    for x in args:
        if type(x) is Tensor:
            # A negated view does not hold in memory what it says.
            if x.is_neg() or not (x.is_cpu or x.is_cuda):
                return False
        elif isinstance(x, Tensor):  # a subclass has a dispatch of its own
            return False
    return True


def _is_recorded(args: Sequence[Any]) -> bool:
    """Whether autograd records what is made of these."""
    if torch.is_grad_enabled():
        for x in args:
            if isinstance(x, Tensor) and x.requires_grad:
                return True
    return False


def needs_no_dispatcher(args: Sequence[Any]) -> bool:
    """Whether nobody but the backend has to see this call: no graph is recorded, nobody listens, and every tensor is an
    ordinary one."""
    return nobody_listens() and are_ordinary(args) and not _is_recorded(args)


def _call_alone(op: str, args: tuple[Any, ...]) -> Any:
    """Call an op of which no graph is recorded, straight where nobody else has to see the call."""
    if not torch.compiler.is_compiling() and needs_no_dispatcher(args):
        return _IMPLEMENTATIONS[op](*args)
    return getattr(torch.ops.tritonrl, op)(*args)


def wants_no_derivative(*args: Any) -> bool:
    """Whether it is certain that no transform and no graph of autograd will ask for derivatives of what comes of ``args``."""
    # What a compiler traces may be differentiated inside of the graph.
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return not (torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args))


def call(op: str, *args: Any) -> Any:
    """Call a differentiable op, under ``torch.func`` transforms too (``grad``, ``jacrev``, ``vmap`` in any order).

    ``torch.library.register_autograd`` makes functions that ``torch.func`` refuses, so those calls take another door.
    Where nobody but the backend and autograd has to see the call it goes there straight: the dispatcher, and the wrapper for
    autograd even more, cost more than a small rollout.
    """
    compiling = torch.compiler.is_compiling()
    if forward_mode.is_on() if compiling else forward_mode.is_asked_of(args):
        return forward_mode.compute(op, args)
    if not compiling:
        if packed.is_packed(op, args) and nobody_listens() and not knows_ends(op, backend_for(args[-1].device)):
            args = packed.folded(op, args, recurrence)  # once, for the backward pass too
        if torch._C._are_functorch_transforms_active():
            return _FUNCTIONS[op].apply(*args)
        if nobody_listens() and are_ordinary(args):
            return _RECORDERS[op].apply(*args) if _is_recorded(args) else _IMPLEMENTATIONS[op](*args)
    return getattr(torch.ops.tritonrl, op)(*args)
