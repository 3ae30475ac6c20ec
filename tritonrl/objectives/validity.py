"""Keep what lies behind a validity mask out of the networks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from tritonrl.objectives.reduction import collect_validity_mask


def hide_invalid(
    tensordict: TensorDictBase, keys: Iterable[NestedKey], mask_keys: tuple[NestedKey, ...], fill: float = 0.0
) -> None:
    """Replace, in place, every NaN and infinity that a validity mask declares invalid.

    The reduction leaves invalid steps out by selection, but a NaN in the *input* of a network survives that: in the
    backward pass it meets a zero gradient inside a matrix product, and 0 * NaN is NaN in the gradient of every weight.
    Finite entries stay as they are, so that networks that look at their neighbours (recurrent, batch-normalised) see
    the same data.

    Args:
        tensordict: the data; only its entries are replaced, the tensors are not written to.
        keys: the entries that the loss is going to use; missing ones and integer ones are passed over.
        mask_keys: where the masks are. Without any of them nothing happens.
        fill: what takes its place.
    """
    masks = [key for key in mask_keys if tensordict.get(key, None) is not None]
    if not masks:
        return
    batch_size = tensordict.batch_size

    def hidden(entry: Tensor) -> Tensor:
        if not entry.is_floating_point() or entry.shape[: len(batch_size)] != batch_size:
            return entry
        mask = collect_validity_mask(tensordict, tuple(masks), entry)
        assert mask is not None
        return torch.where(mask | entry.isfinite(), entry, torch.full_like(entry, fill))

    for key in keys:
        entry = tensordict.get(key, None)
        if isinstance(entry, TensorDictBase):
            tensordict.set(key, entry.apply(hidden))
        elif isinstance(entry, Tensor):
            tensordict.set(key, hidden(entry))
