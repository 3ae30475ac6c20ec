"""Values derived from the parameters of a loss, computed once and dropped when the module is moved or loaded."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["cache_values"]

T = TypeVar("T")


def cache_values(method: Callable[[Any], T]) -> Callable[[Any], T]:
    """Decorator for a method without arguments of a loss: keep its result in ``loss.__dict__["_cache"]``.

    Under ``torch.compile`` the result is computed anew: a tensor kept from one trace is a constant in the next.
    """

    @functools.wraps(method)
    def wrapper(self: Any) -> T:
        if torch.compiler.is_compiling():
            return method(self)
        cache = self.__dict__.setdefault("_cache", {})
        if method.__name__ not in cache:
            cache[method.__name__] = method(self)
        return cache[method.__name__]

    return wrapper
