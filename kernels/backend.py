"""Which backend serves which device, and how to choose another.

The default is the fastest that is there: Triton on CUDA, Numba on the CPU, plain torch on everything else. The environment
variable ``TRITONRL_BACKEND`` or :func:`use_backend` override it for all devices at once. The choice is made when an op runs,
not when it is traced, so a compiled graph follows it without being compiled again.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import torch

BACKENDS = ("triton", "numba", "torch")
_MODULES = {"triton": ".launch", "numba": ".cpu", "torch": ".torch_backend"}
# Process-wide on purpose: autograd runs the backward pass of CUDA ops on a thread of its own, which a context variable
# of the caller would not reach.
_override: list[str | None] = [None]


class BackendUnavailable(RuntimeError):
    """The backend that was asked for cannot serve this device; the message says what is missing."""


class BackendStatus(NamedTuple):
    """Which backend serves a device, with the reason in words."""

    device: str
    backend: str
    detail: str


def interpreting() -> bool:
    """Whether Triton kernels run in its interpreter, which needs no GPU and takes CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


@functools.cache
def missing(backend: str, device_type: str) -> str | None:
    """What keeps ``backend`` from serving ``device_type``, or ``None`` when nothing does."""
    if backend == "torch":
        return None
    if backend == "numba":
        if device_type != "cpu":
            return f"numba kernels serve the cpu only, not {device_type}"
        return import_problem("numba")
    if device_type == "cuda" and torch.version.hip is None:
        return import_problem("triton")
    if device_type == "cpu" and interpreting():
        return import_problem("triton")
    if device_type == "cpu":
        return "triton kernels need a CUDA device; on the cpu they run only in the interpreter (TRITON_INTERPRET=1)"
    return f"triton kernels are built for NVIDIA GPUs, not for {device_type}"


def import_problem(name: str) -> str | None:
    """Why a package cannot be imported, or ``None`` when it can."""
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken install must not keep the package from importing
        return f"{name} cannot be imported ({type(error).__name__}: {error})"
    return None


def requested() -> str | None:
    """The backend that the user asked for, by context manager or by environment; ``None`` for the default choice."""
    choice = _override[0] or os.environ.get("TRITONRL_BACKEND") or None
    if choice is not None and choice not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {choice!r}")
    return choice


def choose(device_type: str) -> str:
    """The name of the backend that serves ``device_type`` now.

    Raises:
        BackendUnavailable: if the backend that was asked for cannot serve this device.
    """
    choice = requested()
    if choice is not None:
        problem = missing(choice, device_type)
        if problem is not None:
            raise BackendUnavailable(f"backend {choice!r} cannot serve {device_type} tensors: {problem}")
        return choice
    return _default(device_type)


@functools.cache
def _default(device_type: str) -> str:
    preferred = {"cuda": "triton", "cpu": "numba"}.get(device_type, "torch")
    return preferred if missing(preferred, device_type) is None else "torch"


@functools.cache
def module_of(backend: str) -> ModuleType:
    """The module that holds the functions of a backend."""
    return importlib.import_module(_MODULES[backend], package=__package__)


def backend_for(device: torch.device) -> ModuleType:
    """The module whose functions serve ``device``. Every backend has the same functions, named like the ops."""
    return module_of(choose(device.type))


@contextlib.contextmanager
def use_backend(backend: str | None) -> Iterator[None]:
    """Run every op inside on ``backend`` (``"triton"``, ``"numba"``, ``"torch"``; ``None`` for the default choice).

    The override is process-wide, not per thread. An op that meets a tensor on a device which the backend cannot serve
    raises :class:`BackendUnavailable`.

    Example:
        >>> import torch
        >>> from tritonrl import kernels
        >>> with kernels.use_backend("torch"):
        ...     kernels.reward_to_go(torch.ones(3), torch.zeros(3, dtype=torch.bool), gamma=1.0, time_dim=-1)
        tensor([3., 2., 1.])
    """
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)} or None, got {backend!r}")
    previous = _override[0]
    _override[0] = backend
    try:
        yield
    finally:
        _override[0] = previous


def backends() -> tuple[BackendStatus, ...]:
    """Which backend serves each device of this machine, and why."""
    kinds = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return tuple(_status(kind) for kind in kinds)


def _status(device_type: str) -> BackendStatus:
    try:
        backend = choose(device_type)
    except BackendUnavailable as error:
        return BackendStatus(device_type, "none", str(error))
    detail = describe(backend)
    preferred = {"cuda": "triton", "cpu": "numba"}[device_type]
    if requested() is not None:
        detail += " (asked for)"
    elif backend != preferred:
        detail += f" (because {missing(preferred, device_type)})"
    return BackendStatus(device_type, backend, detail)


def describe(backend: str) -> str:
    """A backend with its version."""
    if backend == "torch":
        return f"torch {torch.__version__}"
    version = importlib.import_module(backend).__version__
    if backend == "numba":
        return f"numba {version}, {torch.get_num_threads()} threads"
    return f"triton {version}" + (", interpreted" if interpreting() else "")
