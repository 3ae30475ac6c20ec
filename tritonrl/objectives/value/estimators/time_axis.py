"""Which batch dimension of a rollout is time."""

from __future__ import annotations

from tensordict import TensorDictBase

__all__ = ["resolve_time_dim"]


def resolve_time_dim(tensordict: TensorDictBase, time_dim: int | None = None) -> int:
    """The non-negative batch dimension that is time.

    ``time_dim`` if it is given (negative counts from the last batch dimension), else the dimension named ``"time"``,
    else the last batch dimension.

    Raises:
        RuntimeError: if ``time_dim`` is not a batch dimension.

    Examples:
        >>> from tensordict import TensorDict
        >>> resolve_time_dim(TensorDict(batch_size=[4, 8]))
        1
        >>> resolve_time_dim(TensorDict(batch_size=[4, 8], names=["time", None]))
        0
    """
    ndim = tensordict.batch_dims
    if time_dim is None:
        names = tensordict.names
        return names.index("time") if "time" in names else ndim - 1
    if not -ndim <= time_dim < ndim:
        raise RuntimeError(f"time_dim={time_dim} is not a batch dimension of batch_size={tensordict.batch_size}.")
    return time_dim % ndim
