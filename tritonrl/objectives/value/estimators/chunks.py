"""Splitting the inputs of the value network, for rollouts too large to be evaluated at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tensordict import TensorDictBase

__all__ = ["Chunking"]


@dataclass(frozen=True)
class Chunking:
    """How the value network's inputs are cut: by size or by number of chunks, along one batch dimension.

    Args:
        size: length of a chunk (the last may be shorter).
        number: number of chunks, of nearly equal length, at most one per element.
        dim: batch dimension to cut along, negative or not.
    """

    size: int | None = None
    number: int | None = None
    dim: int = 0

    @classmethod
    def checked(cls, size: Any, num_chunks: Any, num_chunk: Any, dim: Any) -> Chunking:
        """The chunking that the constructor arguments of an estimator ask for.

        Raises:
            TypeError: if an argument is not an integer.
            ValueError: if a count is below 1, or two arguments contradict each other.
        """
        for name, value in (("value_chunk_size", size), ("num_chunks", num_chunks), ("num_chunk", num_chunk)):
            if value is not None:
                _check_integer(name, value)
                if value < 1:
                    raise ValueError(f"{name} must be at least 1, got {value}.")
        _check_integer("value_chunk_dim", dim)
        if num_chunks is not None and num_chunk is not None and num_chunks != num_chunk:
            raise ValueError(f"num_chunks={num_chunks} and its alias num_chunk={num_chunk} differ.")
        number = num_chunk if num_chunks is None else num_chunks
        if size is not None and number is not None:
            raise ValueError(f"Give value_chunk_size or num_chunks, not both (got {size} and {number}).")
        return cls(size, number, dim)

    @property
    def active(self) -> bool:
        """Whether anything is to be cut."""
        return self.size is not None or self.number is not None

    def dim_of(self, inputs: TensorDictBase) -> int:
        """The non-negative batch dimension of ``inputs`` to cut along.

        Raises:
            ValueError: if ``inputs`` has no such batch dimension.
        """
        if not -inputs.batch_dims <= self.dim < inputs.batch_dims:
            raise ValueError(f"value_chunk_dim={self.dim} is not a batch dimension of batch_size={inputs.batch_size}.")
        return self.dim % inputs.batch_dims

    def split(self, inputs: TensorDictBase) -> list[TensorDictBase]:
        """``inputs`` in pieces, which share its memory."""
        dim = self.dim_of(inputs)
        return list(inputs.split(self._lengths(inputs.batch_size[dim]), dim))

    def _lengths(self, total: int) -> list[int]:
        if self.size is not None:
            return [min(self.size, total - start) for start in range(0, total, self.size)] or [total]
        number = max(min(self.number or 1, total), 1)
        return [total // number + (index < total % number) for index in range(number)]


def _check_integer(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r} ({type(value).__name__}).")
