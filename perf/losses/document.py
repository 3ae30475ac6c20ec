"""A record -> ``docs/compile.md``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..records import Spread
from ..table import duration, ratio
from .counting import Count, Counts
from .record import Line, LossRecord
from .timing import Times

DOCUMENT = Path(__file__).parents[2] / "docs" / "compile.md"

INTRO = """# torch.compile

<!-- Made by `python -m perf losses --write-docs` from a record in perf/results/losses/; do not edit. -->

Every loss and every value estimator compiles with `torch.compile(module, fullgraph=True)`: forward and backward, with the
advantage in the data or computed inside. The first call compiles one graph. Other data, another gamma or lambda, other
coefficients, a second call: nothing is compiled again. The first batch of another size compiles one more graph, with
dynamic shapes, which then serves all sizes.

```python
loss = ClipPPOLoss(actor, critic)
compiled = torch.compile(loss, fullgraph=True)
loss.value_estimator.gamma = 0.95  # no recompilation; nor for loss.clip_epsilon, loss.entropy_coeff, ...
```

Change coefficients like this, by assignment, or in place: they are buffers, and an assigned number is copied into its buffer.

The debug switch `tritonrl.objectives.value.check_finite()` (or `TRITONRL_DEBUG_FINITE=1`) looks at numbers on the host. While
it is on, a compiled estimator breaks its graph there, and `fullgraph=True` raises an error that says so; while it is off
it leaves no trace in the graph.
"""

COUNTED = """## Graphs

Each cell is ours / TorchRL's, on the same networks: those that are timed, with smaller layers, fewer critics of REDQ, a
shorter horizon of Dreamer. *graphs* and *breaks*: in the first call. The columns behind them: graphs compiled anew by a
second call with other data; after gamma, lambda or the coefficients of the module had changed (in place where they are
tensors); by the first batch of another size; by two more. A dash: there is nothing to change. *fails*: the compiler raises
an error.

These counts do not depend on the machine. `tests/objectives/compile/` counts ours again in every run of the test suite and
compares, but for the last two columns of losses whose own tests give batches of other sizes.
"""

TIMED = """## Time

One call: forward, and of a loss the gradients of all parameters. Medians of calls in turns in one process; ± is half the
distance between the quartiles. The networks, the batch sizes and the shared trunk are those of TorchRL's own benchmark
(`[128, 10]` steps, or `[128]` transitions; three hidden layers of 128 in the trunk, two in each head); it has none for
Dreamer, whose sizes are in `perf/losses/dreamer.py`. *speed-up* is TorchRL's time over ours: **below 1 we are slower**.
*compiling*: seconds that the first compiled call took; who comes second finds some kernels in the compiler's cache. Before
anything is timed, the terms of the loss and the norm of its gradient (of an estimator, advantage and target) must agree;
exceptions are listed below the table.
"""


def render(record: LossRecord) -> str:
    """The whole document."""
    parts = [INTRO, COUNTED, *_counts(record.lines), "", TIMED, *_about(record), "", *_times(record.lines), ""]
    notes = list(_notes(record.lines))
    if notes:
        parts += ["Where TorchRL does not compile, or does not give the same numbers:", "", *notes, ""]
    return "\n".join(parts)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + " --- |" * len(header)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def _counts(lines: Sequence[Line]) -> Iterator[str]:
    header = (
        "module",
        "graphs",
        "breaks",
        "second call",
        "gamma",
        "lambda",
        "coefficients",
        "other batch size",
        "two more",
    )
    yield from _table(header, [(line.id, *_pairs(line.ours, line.theirs)) for line in lines])


def _pairs(ours: Counts, theirs: Counts) -> Iterator[str]:
    names = ("graphs", "breaks", "second_call", "gamma", "lmbda", "coefficients", "batch", "batches")
    for name in names:
        one, other = getattr(ours, name), getattr(theirs, name)
        yield "-" if one is None and other is None else f"{_shown(one)} / {_shown(other)}"


def _shown(count: Count) -> str:
    return "-" if count is None else str(count)


def _about(record: LossRecord) -> Iterator[str]:
    about = record.machine
    versions = ", ".join(
        f"{name} {about['versions'][name]}"
        for name in ("python", "torch", "tensordict", "torchrl")
        if name in about["versions"]
    )
    threads = "1 thread" if about["threads"] == 1 else f"{about['threads']} threads"
    yield f"{about['name']}, {threads}, {about['date']}, commit `{about['commit']}`, {versions}."
    if "how" in about:
        yield f"{about['how'].capitalize()}."
    elif record.disturbed:
        yield f"**The machine was not quiet ({record.disturbed}): these times are no result.**"


def _times(lines: Sequence[Line]) -> Iterator[str]:
    header = (
        "module",
        "batch",
        "eager",
        "TorchRL",
        "speed-up",
        "compiled",
        "TorchRL",
        "speed-up",
        "compiling",
        "TorchRL",
    )
    rows = []
    for line in lines:
        ours, theirs = line.times.ours, line.times.theirs
        cells = [line.id, "x".join(map(str, line.shape))]
        for mode in ("eager", "compiled"):
            one, other = getattr(ours, mode), getattr(theirs, mode)
            faster = other.median / one.median if one is not None and other is not None else None
            cells += [_spread(one), _spread(other), ratio(faster)]
        rows.append((*cells, _seconds(ours), _seconds(theirs)))
    yield from _table(header, rows)


def _spread(spread: Spread | None) -> str:
    return "-" if spread is None else f"{duration(spread.median)} ±{100 * spread.noise:.0f} %"


def _seconds(times: Times) -> str:
    return "-" if times.compiling is None else duration(times.compiling)


def _notes(lines: Sequence[Line]) -> Iterator[str]:
    for line in lines:
        said = [line.theirs.why, line.times.theirs.failure]
        if line.times.meant:
            said.append(line.times.meant)
        if not line.times.agrees:
            said.append(f"its results differ from ours by {line.times.difference:.2g}, and nothing was timed")
        for words in dict.fromkeys(word for word in said if word):
            yield f"- {line.id}: {words}"
