"""Every loss and every estimator is one graph, compiled once, and once more for all other batch sizes: counted anew.

The rows are those of ``docs/compile.md``, with smaller layers. A graph of ours that breaks is an error of the compiler.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import tritonrl.objectives
import tritonrl.objectives.value
from perf.losses.command import newest_record
from perf.losses.counting import FAILS, Counts, count
from perf.losses.networks import SMALL
from perf.losses.record import load
from perf.losses.rows import OURS, THEIRS, Row, registry
from perf.losses.subjects import Subject, difference
from perf.losses.timing import AGREES
from tritonrl.objectives import LossModule
from tritonrl.objectives.value import TD0Estimator, ValueEstimatorBase

pytestmark = pytest.mark.filterwarnings("ignore")
ROWS = {row.id: row for row in registry()}


# Tests of their own give these batches of other sizes, and compare numbers and gradients as well.
SIZES_ELSEWHERE = {"ClipPPOLoss", "DiscreteSACLoss", "IQLLoss", "SACLoss", "TD3Loss"}


def sizes_too(row: Row) -> bool:
    """Compiling once more takes long; what is a part or a variant of another row need not do it, nor what does elsewhere."""
    return row.variant not in ("advantage given", "double") and row.name not in SIZES_ELSEWHERE


@pytest.mark.parametrize("id", list(ROWS))
def test_nothing_but_a_batch_of_another_size_is_compiled_again_and_that_once(id: str) -> None:
    row = ROWS[id]
    counts = count(row, OURS, SMALL, sizes=sizes_too(row))
    assert counts.whole, counts
    assert counts.batch == (1 if sizes_too(row) else None)
    moved = (counts.gamma, counts.lmbda, counts.coefficients)
    assert moved == tuple(0 if paths else None for paths in (row.gamma, row.lmbda, row.coefficients))
    path = newest_record()
    if path is not None:
        committed = load(path).line(id)
        assert committed is not None, f"{path} has no row {id}: run `python -m perf losses --json`"
        known = committed.ours if sizes_too(row) else replace(committed.ours, batch=None, batches=None)
        assert counts == known


@pytest.mark.parametrize("id", list(ROWS))
def test_both_libraries_compute_the_same_on_a_row_unless_it_says_why_not(id: str) -> None:
    row = ROWS[id]
    ours, theirs = (Subject(row, library, SMALL) for library in (OURS, THEIRS))
    ours.module.load_state_dict(theirs.module.state_dict())
    assert (difference(ours.results(), theirs.results()) <= AGREES) is (not row.differs)


def test_there_is_a_row_for_every_loss_and_every_estimator() -> None:
    abstract = {"LossModule", "ValueEstimatorBase"}
    public = {
        name
        for module, base in ((tritonrl.objectives, LossModule), (tritonrl.objectives.value, ValueEstimatorBase))
        for name in module.__all__
        if isinstance(getattr(module, name), type) and issubclass(getattr(module, name), base)
    }
    aliases = {"TD0Estimate", "TD1Estimate", "TDLambdaEstimate"}  # the former names of three of the estimators
    assert public - abstract - aliases == {row.name for row in ROWS.values()}


def test_a_break_of_the_graph_is_counted_and_of_ours_an_error() -> None:
    class Breaks(TD0Estimator):
        def _returns(self, steps: object) -> torch.Tensor:
            torch._dynamo.graph_break()
            return super()._returns(steps)

    row = replace(
        ROWS["TD0Estimator"], build=lambda library, networks: Breaks(gamma=0.9, value_network=networks.value())
    )
    counts = count(row, THEIRS, SMALL, sizes=False)
    assert counts.breaks > 0 and not counts.whole
    with pytest.raises(torch._dynamo.exc.Unsupported):
        count(row, OURS, SMALL, sizes=False)


def test_a_coefficient_that_is_a_number_in_the_graph_is_counted_as_recompiling() -> None:
    class Recompiles(TD0Estimator):
        factor = 0.5

        def _returns(self, steps: object) -> torch.Tensor:
            return super()._returns(steps) * (2.0 if self.factor < 0.48 else 1.0)

    row = replace(
        ROWS["TD0Estimator"],
        build=lambda library, networks: Recompiles(gamma=0.9, value_network=networks.value()),
        coefficients=("factor",),
    )
    counts = count(row, OURS, SMALL, sizes=False)
    assert counts.coefficients == 1 and not counts.whole


def test_what_the_compiler_does_not_manage_is_a_failure_with_its_reason() -> None:
    def explode(shape: tuple[int, ...], seed: int) -> object:
        raise RuntimeError("not today")

    calls = iter([ROWS["TD0Estimator"].batch, explode])
    row = replace(ROWS["TD0Estimator"], batch=lambda shape, seed: next(calls)(shape, seed))
    counts = count(row, THEIRS, SMALL, sizes=False)
    assert counts.graphs == counts.second_call == FAILS
    assert counts.why == "RuntimeError: not today"
    assert isinstance(counts, Counts) and not counts.whole
