"""One optimizer for the parameter groups of several."""

from __future__ import annotations

from collections.abc import Callable

import torch

__all__ = ["group_optimizers"]


def group_optimizers(*optimizers: torch.optim.Optimizer | None) -> torch.optim.Optimizer:
    """A new optimizer with the parameter groups of all the given ones.

    The groups are the same dict objects: learning rates and other options stay with their group.

    Args:
        *optimizers: optimizers of one class; None is skipped.

    Raises:
        ValueError: if the classes differ.
        TypeError: if nothing but None is given.

    Examples:
        >>> a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        >>> both = group_optimizers(torch.optim.SGD(a.parameters(), lr=0.1), torch.optim.SGD(b.parameters(), lr=0.2))
        >>> [group["lr"] for group in both.param_groups]
        [0.1, 0.2]
    """
    given = [optimizer for optimizer in optimizers if optimizer is not None]
    if not given:
        raise TypeError("group_optimizers: got no optimizer.")
    classes = {type(optimizer) for optimizer in given}
    if len(classes) > 1:
        raise ValueError(
            f"group_optimizers: the optimizers must be of one class, got {sorted(cls.__name__ for cls in classes)}."
        )
    groups = [group for optimizer in given for group in optimizer.param_groups]
    optimizer_class: Callable[..., torch.optim.Optimizer] = classes.pop()
    return optimizer_class(groups)
