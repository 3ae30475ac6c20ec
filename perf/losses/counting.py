"""Into how many graphs a module compiles, how often they break, and what makes it compile anew.

Counted by a backend that only counts, so a count takes as long as tracing does. Deterministic: the same versions give the
same counts on any machine, which is why a test can hold the committed ones against those counted now.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._dynamo.utils import counters

from .networks import Scale
from .rows import OURS, Library, Row
from .subjects import Subject

FAILS = "fails"
Count = int | str | None


@dataclass(frozen=True)
class Counts:
    """What was compiled. None: there is nothing of that kind to change, or it was not asked for.

    Attributes:
        graphs: by the first call.
        breaks: of the graph in the first call.
        second_call: graphs compiled anew by a second call with other data, or "fails" where the compiler raises; as are
            those that follow.
        gamma, lmbda, coefficients: after each of these had changed.
        batch: by the first batch of another size: one graph, for all other sizes, is what dynamic shapes cost.
        batches: by two batches of still other sizes.
        why: the first error of the compiler.
    """

    graphs: Count
    breaks: int
    second_call: Count = None
    gamma: Count = None
    lmbda: Count = None
    coefficients: Count = None
    batch: Count = None
    batches: Count = None
    why: str = ""

    @property
    def whole(self) -> bool:
        """One graph, compiled once, and at most once more for dynamic shapes."""
        anew = (self.second_call, self.gamma, self.lmbda, self.coefficients, self.batches)
        return self.graphs == 1 and self.breaks == 0 and not any(anew) and self.batch in (None, 0, 1)


class _Counter:
    """A backend that runs graphs as they are."""

    def __init__(self) -> None:
        self.graphs = 0
        self.why = ""

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward

    def during(self, work: Callable[[], object], may_fail: bool) -> Count:
        """How many graphs are compiled while ``work`` runs."""
        before = self.graphs
        try:
            work()
        except Exception as error:  # whatever the compiler raises is a fact of the table
            if not may_fail:
                raise
            self.why = self.why or f"{type(error).__name__}: {str(error).splitlines()[0]}"
            return FAILS
        return self.graphs - before


def count(row: Row, library: Library, scale: Scale, sizes: bool = True) -> Counts:
    """Compile the row's module and call it on data, coefficients and batch sizes that change.

    Args:
        row: what to compile.
        library: of which library. TorchRL's may break, recompile and fail; of ours an error is an error.
        scale: size of the networks.
        sizes: whether to change the batch size too, which takes a second compilation.

    Raises:
        torch._dynamo.exc.Unsupported: if a graph of ours breaks.
    """
    torch._dynamo.reset()
    counters.clear()
    subject, counter = Subject(row, library, scale), _Counter()
    compiled = torch.compile(subject.module, backend=counter, fullgraph=library is OURS)

    def run(*calls: tuple[int, int]) -> Count:
        def work() -> None:
            for index, seed in calls:
                subject.forward(compiled, row.batch(row.sizes[index], seed))

        return counter.during(work, may_fail=library is not OURS)

    def after(paths: tuple[str, ...], seed: int) -> Count:
        subject.move(paths)
        return run((0, seed)) if paths else None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graphs = run((0, 1))
        breaks = sum(counters["graph_break"].values())
        second, gamma = run((0, 2)), after(row.gamma, 3)
        lmbda, coefficients = after(row.lmbda, 4), after(row.coefficients, 5)
        batch, batches = (run((1, 6)), run((2, 7), (3, 8))) if sizes else (None, None)
    torch._dynamo.reset()
    return Counts(graphs, breaks, second, gamma, lmbda, coefficients, batch, batches, counter.why)
