"""From a case to tensors: layouts, variants, and a problem that knows its bytes."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .cases import Case
from .ops import OPS, Arguments


class Layout(NamedTuple):
    """How ``lanes`` and ``steps`` lie in memory: dimensions in order (``N``, ``T``, ``F``), and the shape of the flags."""

    dims: str
    features: int = 1
    flag_dims: str = ""

    def shape(self, lanes: int, steps: int) -> tuple[int, ...]:
        """The full shape. ``lanes`` counts all lanes, features included."""
        sizes = {"N": lanes // self.features, "T": steps, "F": self.features}
        return tuple(sizes[d] for d in self.dims)

    def flag_shape(self, lanes: int, steps: int) -> tuple[int, ...]:
        """The shape of ``done``: one where a dimension is not among ``flag_dims``."""
        kept = self.flag_dims or self.dims
        return tuple(n if d in kept else 1 for d, n in zip(self.dims, self.shape(lanes, steps), strict=True))

    @property
    def time_dim(self) -> int:
        """The dimension that is time, counted from the end."""
        return self.dims.index("T") - len(self.dims)


LAYOUTS: dict[str, Layout] = {
    "NT": Layout("NT"),
    "TN": Layout("TN"),
    # Several value heads share one flag, which is read as it is: [N, T, 1] over [N, T, F].
    "NTF": Layout("NTF", features=4, flag_dims="NT"),
}


@dataclass(frozen=True)
class Problem:
    """A case with its tensors. ``arguments`` are those of our function, by name."""

    case: Case
    arguments: Arguments
    shape: tuple[int, ...]

    @property
    def op(self) -> str:
        """The name of the operator."""
        return self.case.op

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.full_tensors()[0].device

    @property
    def time_dim(self) -> int:
        """The dimension that is time, counted from the end."""
        return int(self.arguments["time_dim"])

    @property
    def steps(self) -> int:
        """Steps over all lanes."""
        return math.prod(self.shape)

    def full_tensors(self) -> list[Tensor]:
        """The floating inputs of full shape."""
        return [self.arguments[name] for name in OPS[self.op].tensors if self.arguments[name] is not None]

    def with_arguments(self, **changed: object) -> Problem:
        """The same problem with some arguments changed; ``None`` takes an argument away."""
        taken = {name for name, x in changed.items() if x is None}
        return replace(self, arguments={n: x for n, x in (self.arguments | changed).items() if n not in taken})

    def requiring_grad(self) -> Problem:
        """The same problem with leaves that gradients reach."""
        op = OPS[self.op]
        leaves = {name: self.arguments[name].detach().requires_grad_() for name in op.differentiated}
        return self.with_arguments(**leaves)


Variant = Callable[[Problem, torch.Generator], Problem]


def _one_flag(problem: Problem, generator: torch.Generator) -> Problem:
    return problem.with_arguments(terminated=None)


def _per_step(name: str, low: float) -> Variant:
    def vary(problem: Problem, generator: torch.Generator) -> Problem:
        like = problem.full_tensors()[0]
        drawn = torch.rand(problem.shape, generator=generator, device=like.device)
        return problem.with_arguments(**{name: (low + (1 - low) * drawn).to(like.dtype)})

    return vary


def _hidden(problem: Problem, counts: Tensor) -> dict[str, Tensor]:
    """The data with NaN wherever a step does not count: whoever reads it there does not pass the gate."""
    given = problem.arguments
    return {
        name: given[name].masked_fill(~counts, math.nan) for name in OPS[problem.op].tensors if given[name] is not None
    }


def _valid(problem: Problem, generator: torch.Generator) -> Problem:
    """Padding behind trajectories of any length, as a batch of responses has it."""
    done = problem.arguments["done"]
    time = problem.time_dim % len(problem.shape)
    shape = [1 if d == time else n for d, n in enumerate(done.shape)]
    steps = problem.shape[time]
    lengths = 1 + (torch.rand(shape, generator=generator, device=done.device) * steps).long()
    places = torch.arange(steps, device=done.device).view([-1 if d == time else 1 for d in range(done.dim())])
    valid = places < lengths
    return problem.with_arguments(valid=valid, **_hidden(problem, valid))


SKIPPED_RUN = 16  # tokens


def _skip(problem: Problem, generator: torch.Generator) -> Problem:
    """Runs of tokens that nobody chose: what a tool or an environment said. Three in ten."""
    done = problem.arguments["done"]
    time = problem.time_dim % len(problem.shape)
    runs = [-(-n // SKIPPED_RUN) if d == time else n for d, n in enumerate(done.shape)]
    drawn = torch.rand(runs, generator=generator, device=done.device) < 0.3
    skip = drawn.repeat_interleave(SKIPPED_RUN, time).narrow(time, 0, problem.shape[time]).contiguous()
    return problem.with_arguments(skip=skip, **_hidden(problem, ~skip))


def _packed(problem: Problem, generator: torch.Generator) -> Problem:
    """As many sequences as there were lanes, of any lengths, behind one another. (Only where time follows the lanes.)"""
    given = problem.arguments
    lanes, steps, *features = problem.shape
    inner = torch.randperm(lanes * steps - 1, generator=generator, device=problem.device)[: lanes - 1] + 1
    edges = torch.tensor([0, lanes * steps], device=problem.device)
    flat = {name: x.flatten(0, 1) for name, x in given.items() if isinstance(x, Tensor) and x.dim() > 1}
    changed = replace(problem, shape=(lanes * steps, *features))
    return changed.with_arguments(**flat, cu_seqlens=torch.cat([edges, inner]).sort().values, time_dim=0)


def _bootstrap(problem: Problem, generator: torch.Generator) -> Problem:
    """Next values are not given but derived: the value of the following step, and at the end one more row."""
    time = problem.time_dim % len(problem.shape)
    shape = [n for d, n in enumerate(problem.shape) if d != time]
    if "cu_seqlens" in problem.arguments:
        shape = [len(problem.arguments["cu_seqlens"]) - 1, *shape]
    value = problem.arguments["value"]
    row = torch.randn(shape, generator=generator, device=value.device).to(value.dtype)
    return replace(problem, arguments=problem.arguments | {"next_value": None, "bootstrap_value": row})


def _moments(problem: Problem, generator: torch.Generator) -> Problem:
    return problem.with_arguments(moments=True)


# What is not in the plain problem of [N, T] that everybody knows; peers that do not say so do not take it.
RAGGED: dict[str, Variant] = {
    "packed": _packed,
    "valid": _valid,
    "skip": _skip,
    "bootstrap": _bootstrap,
    "moments": _moments,
}

# A function that changes the arguments. A case with an argument that our function does not take is listed as absent.
VARIANTS: dict[str, Variant] = {
    "one_flag": _one_flag,
    "gamma_steps": _per_step("gamma", 0.9),
    "lmbda_steps": _per_step("lmbda", 0.5),
    **RAGGED,
}


def _draw(name: str, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    x = torch.randn(shape, generator=generator, device=generator.device)
    if name == "a":
        x = 0.9 + 0.1 * torch.sigmoid(x)
    elif name.startswith("log_"):
        x = 0.3 * x
    return x.to(dtype)


def make_problem(case: Case, device: str | torch.device) -> Problem:
    """Draw the tensors of a case; the same case gets the same numbers on the same device."""
    generator = torch.Generator(device).manual_seed(zlib.crc32(case.id.encode()))
    layout, op = LAYOUTS[case.layout], OPS[case.op]
    shape = layout.shape(case.lanes, case.steps)
    dtype: torch.dtype = getattr(torch, case.dtype)
    arguments: Arguments = {name: _draw(name, shape, dtype, generator) for name in op.tensors}
    drawn = torch.rand(layout.flag_shape(case.lanes, case.steps), generator=generator, device=generator.device)
    flags = {"done": drawn < case.done, "terminated": drawn < case.done / 2}
    arguments |= {name: flags[name] for name in op.flags}
    if case.op == "linear_recurrence":
        # Forwards in time: the direction that the peers have.
        arguments["a"] = torch.where(flags["done"], 0.0, arguments["a"])
        arguments["reverse"] = False
    arguments |= {**op.discounts, "time_dim": layout.time_dim}
    problem = Problem(case, arguments, shape)
    for name in case.variants:
        problem = VARIANTS[name](problem, generator)
    return problem


def stored_bytes(x: Tensor) -> int:
    """The bytes of the distinct elements: a dimension of stride zero counts once."""
    distinct = math.prod(n for n, s in zip(x.shape, x.stride(), strict=True) if s != 0)
    return distinct * x.element_size() if x.numel() else 0


def minimum_bytes(problem: Problem) -> int:
    """What has to move at least: each input read once, each output written once, in the direction of the case."""
    op, given = OPS[problem.op], problem.arguments
    one_output = problem.steps * problem.full_tensors()[0].element_size()
    small = [x for name, x in given.items() if isinstance(x, Tensor) and name not in op.tensors]
    beside = sum(stored_bytes(x) for x in small)  # flags, masks, offsets, discounts per step
    if problem.case.direction == "forward":
        return beside + sum(stored_bytes(x) for x in problem.full_tensors()) + one_output * len(op.outputs)
    incoming, outgoing = len(op.outputs), len(op.differentiated)
    return beside + one_output * (incoming + len(op.saved) + outgoing)
