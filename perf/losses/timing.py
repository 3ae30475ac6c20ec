"""Eager and compiled calls of both libraries, timed in turns in one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from .. import runner
from ..clocks import Wall
from ..records import Spread
from .networks import BENCHMARK, Scale
from .rows import OURS, THEIRS, Library, Row
from .subjects import Subject, difference

AGREES = 1e-3  # relative; both compute in single precision


@dataclass
class Times:
    """Seconds per call of one library. ``compiling``: seconds that the first compiled call took, caches cold or not."""

    eager: Spread | None = None
    compiled: Spread | None = None
    compiling: float | None = None
    failure: str = ""


@dataclass
class Comparison:
    """Both libraries on one row.

    ``difference``: the largest relative one between their results, in eager mode. ``meant``: why there is one, where it is
    on purpose.
    """

    difference: float
    meant: str = ""
    ours: Times = field(default_factory=Times)
    theirs: Times = field(default_factory=Times)

    @property
    def agrees(self) -> bool:
        """Whether both computed the same, as far as they are meant to."""
        return self.difference <= AGREES or bool(self.meant)


def compare(row: Row, settings: runner.Settings, scale: Scale = BENCHMARK) -> Comparison:
    """Compare the results of both libraries, and time them if these agree."""
    torch._dynamo.reset()
    subjects = {library.name: Subject(row, library, scale) for library in (OURS, THEIRS)}
    # Copies of a critic are initialised at random, and not in the same order.
    subjects[OURS.name].module.load_state_dict(subjects[THEIRS.name].module.state_dict())
    comparison = Comparison(difference(*(subject.results() for subject in subjects.values())), row.differs)
    if not comparison.agrees:
        return comparison
    timed: list[tuple[Times, str, Wall]] = []
    for library, times in ((OURS, comparison.ours), (THEIRS, comparison.theirs)):
        subject = subjects[library.name]
        timed.append((times, "eager", Wall(subject.call(subject.module))))
        call = _compiled(subject, library, times)
        if call is not None:
            timed.append((times, "compiled", Wall(call)))
    for (times, mode, _), samples in zip(
        timed, runner.interleaved([clock for *_, clock in timed], settings), strict=True
    ):
        setattr(times, mode, Spread.of(samples))
    torch._dynamo.reset()
    return comparison


def _compiled(subject: Subject, library: Library, times: Times) -> Callable[[], object] | None:
    """The compiled call, compiled. None if the compiler does not manage; of ours that is an error."""
    call = subject.call(torch.compile(subject.module, fullgraph=library is OURS))
    start = time.perf_counter()
    try:
        call()
    except Exception as error:
        if library is OURS:
            raise
        times.failure = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        return None
    times.compiling = time.perf_counter() - start
    call()
    return call
