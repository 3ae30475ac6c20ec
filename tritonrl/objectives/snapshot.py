"""The present value of a buffer that the same call is going to change."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["snapshot"]


@torch.library.custom_op("tritonrl_objectives::snapshot", mutates_args=())
def _opaque_clone(x: Tensor) -> Tensor:
    return x.clone()


@_opaque_clone.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def snapshot(buffer: Tensor) -> Tensor:
    """A copy of ``buffer``, detached, that later in-place changes of ``buffer`` do not reach: not even in a backward
    pass.

    ``buffer.clone()`` is such a copy in eager mode only. AOTAutograd (torch 2.13, backends ``aot_eager`` and
    ``inductor``) drops the clone, keeps the buffer itself for the backward pass, and computes the gradient with the
    changed value. It cannot look into a custom operator.

    Example:
        >>> x = torch.zeros(())
        >>> before = snapshot(x)
        >>> x.add_(1)
        tensor(1.)
        >>> before
        tensor(0.)
    """
    buffer = buffer.detach()
    return _opaque_clone(buffer) if torch.compiler.is_compiling() else buffer.clone()
