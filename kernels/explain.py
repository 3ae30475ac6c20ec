"""Which backend, strategy and block sizes given tensors get, and why, in words."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .backend import BackendUnavailable, choose, describe, import_problem, module_of
from .compose import serves_itself
from .geometry import TooScattered
from .packed import is_packed
from .plan import Plan, decide
from .specs import ALL_SPECS, allocate, by_name, step_results
from .tables import table_for

_DEFAULT_MULTIPROCESSORS = 132  # of an H100


class _Call(NamedTuple):
    op: str
    args: tuple[Any, ...]


class _Recorder(TorchDispatchMode):
    """Notes the ops of this package that are called, and computes them as usual."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = func.name().partition("::")
        if namespace == "tritonrl" and name in ALL_SPECS:
            self.calls.append(_Call(name, tuple(args)))
        return func(*args, **(kwargs or {}))


def _recorded(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[_Call]:
    """The ops that a call of ``function`` would make, found with fake tensors: nothing is computed, no device is touched."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        made: dict[int, Tensor] = {}  # one tensor given twice stays one

        def faked(x: Any) -> Any:
            if type(x) not in (Tensor, torch.nn.Parameter):
                return x
            if id(x) not in made:  # a gradient that is wanted decides what is called
                made[id(x)] = fake.from_tensor(x.detach()).requires_grad_(x.requires_grad)
            return made[id(x)]

        with _Recorder() as recorder:
            function(*(faked(x) for x in args), **{name: faked(x) for name, x in kwargs.items()})
    return recorder.calls


def explain(function: str | Callable[..., Any], *args: Any, multiprocessors: int | None = None, **kwargs: Any) -> str:
    """Tell in words what a call would run: backend, strategy, block sizes, bytes a step, and why. Nothing is computed.

    Args:
        function: one of the functions of :mod:`tritonrl.kernels` or its name, followed by its arguments; or the name of an
            op (``"gae_backward"``), followed by the op's arguments in schema order.
        multiprocessors: of the GPU to plan for. ``None``: those of the GPU where the tensors are; for tensors elsewhere
            nothing is said of GPUs, unless the Triton interpreter serves them.

    Returns:
        A few lines of text for each op that the call makes.

    Raises:
        ValueError: if there is no function and no op of that name.
        TypeError, RuntimeError: what the call itself would raise for these arguments.

    Example:
        >>> x, done = torch.zeros(4096, 128), torch.zeros(4096, 128, dtype=torch.bool)
        >>> print(explain(gae, x, x, x, done, gamma=0.99, lmbda=0.95, time_dim=-1, multiprocessors=132))  # doctest: +SKIP
        tritonrl::gae on cpu, 4096 lanes x 128 steps, float32
          backend: numba 0.68.1, 2 threads
          bytes: 21 a step, 10.5 MiB in all
          on a GPU of 132 multiprocessors: triton, strategy "rows": ...
    """
    name = function if isinstance(function, str) else getattr(function, "__name__", repr(function))
    public = getattr(importlib.import_module(".api", __package__), name, None)
    if public is not None and (name in ALL_SPECS or name == "linear_recurrence"):
        calls = _recorded(public, args, kwargs)
    elif isinstance(function, str) and name in ALL_SPECS:
        calls = [_Call(name, args)]
    else:
        known = ", ".join(ALL_SPECS)
        raise ValueError(
            f"nothing to explain about {name!r}: expected a function of tritonrl.kernels or one of {known}"
        )
    return "\n".join(_explained(call, multiprocessors) for call in calls)


def _explained(call: _Call, multiprocessors: int | None) -> str:
    outputs = step_results(call.op, allocate(call.op, call.args))
    if not outputs:
        return f"tritonrl::{call.op}: nothing to compute, the data are empty"
    device, shape = outputs[0].device, outputs[0].shape
    steps = shape[by_name(call.op, call.args)["time_dim"]]
    lanes = outputs[0].numel() // steps
    lines = [
        f"tritonrl::{call.op} on {device}, {lanes} lanes x {steps} steps, {str(outputs[0].dtype).removeprefix('torch.')}",
        f"  backend: {_backend(call, outputs[0])}",
        f"  {_bytes(call, outputs)}",
    ]
    on_gpu = device.type == "cuda" or (device.type == "cpu" and _chosen(device) == "triton")
    if on_gpu or multiprocessors is not None:
        lines.append(f"  {_plan(call, outputs, device, multiprocessors)}")
    return "\n".join(lines)


def _chosen(device: torch.device) -> str | None:
    try:
        return choose(device.type)
    except BackendUnavailable:
        return None


def _backend(call: _Call, like: Tensor) -> str:
    try:
        backend = choose(like.device.type)
    except BackendUnavailable as error:
        return f"none: {error}"
    module = module_of(backend)
    if not serves_itself(call.op, call.args, module):
        return f"{describe(backend)} (composed of several kernels: it has none for this call)"
    if is_packed(call.op, call.args) and backend == "numba" and module.is_better_as_one(call.args[-1], like):
        return f"{describe(backend)} (few long sequences: as one row, behind kernels that mark their ends in done)"
    return describe(backend)


def _touched(x: Tensor) -> int:
    """How many bytes of memory a tensor stands for: an expanded one does not repeat itself."""
    return x.element_size() * max(1, torch.Size([n for n, s in zip(x.shape, x.stride(), strict=True) if s]).numel())


def _bytes(call: _Call, outputs: list[Tensor]) -> str:
    """What has to be read and written, each tensor once."""
    read = {id(x): x for x in call.args if isinstance(x, Tensor) and x.numel() > 1}
    total = sum(_touched(x) for x in [*read.values(), *outputs])
    return f"bytes: {total / outputs[0].numel():.3g} a step, {total / 2**20:.3g} MiB in all"


def _plan(call: _Call, outputs: list[Tensor], device: torch.device, multiprocessors: int | None) -> str:
    problem = import_problem("triton")
    if problem is not None:
        return f"on a GPU: cannot say, {problem}"
    families, preparation = (importlib.import_module(f".{name}", __package__) for name in ("families", "preparation"))
    count, name = preparation.device_of(device) if device.type == "cuda" else (_DEFAULT_MULTIPROCESSORS, None)
    count = count if multiprocessors is None else multiprocessors
    recurrence = getattr(families, call.op)(*call.args)
    time_dim = by_name(call.op, call.args)["time_dim"]
    try:
        prepared = preparation.prepare(recurrence, outputs, time_dim, count, name)
        note = ""
    except TooScattered as error:
        recurrence = preparation.one_layout(recurrence, outputs[0], time_dim)
        prepared = preparation.prepare(recurrence, outputs, time_dim, count, name)
        note = f"; the inputs are first copied into one layout, because {error}"
    table = table_for(name)
    unknown = "by the default table, with the numbers of an H100: this GPU was not measured"
    origin = f"measured: {table.measured}" if table.measured else unknown
    where = f"on {name}" if name else f"on a GPU of {count} multiprocessors"
    strategy = f'triton, strategy "{prepared.plan.strategy}", because {decide(*prepared.plan_arguments)[1]}{note}'
    return f"{where}: {strategy}\n  {in_words(prepared.plan)}; {origin}"


def in_words(plan: Plan) -> str:
    """The programs of a plan, and what each of them computes."""
    programs, warps = _counted(math.prod(plan.grid), "program"), _counted(plan.warps, "warp")
    access = f", {plan.width} lanes to an access" if plan.width > 1 else ""
    if plan.strategy == "lanes":
        strip = f"a strip of {_counted(plan.lanes, 'lane')}{access}"
        return f"{programs} of {warps}, {strip}, {_counted(plan.unroll, 'step')} in flight"
    if plan.stacked:
        tile = f"{_counted(plan.lanes, 'lane')} x {_counted(plan.vectors * plan.vector, 'step')}"
    else:
        tile = f"{_counted(plan.lanes, 'lane')} x {_counted(plan.vectors, 'vector')} of {_counted(plan.vector, 'step')}"
    order = "one after the other" if plan.strategy == "rows" else "one each"
    ahead = ", the next fetched while one is computed" if plan.ahead else ""
    limit = f", in {plan.limit} registers a thread" if plan.limit < 128 else ""
    return f"{programs} of {warps}, tiles of {tile}{access}, {order}{ahead}{limit}"


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" + ("s" if n != 1 else "")
