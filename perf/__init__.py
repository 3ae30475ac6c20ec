"""The benchmark suite: what is fast, what is not, and how far either is from the memory of this very machine.

Run from the repository root; not shipped in the wheel::

    python -m perf                      # every case for this device, with a table at the end
    python -m perf --quick --only 'gae/*'
    python -m perf --json               # the record of this machine, under perf/results/
    python -m perf report               # records -> perf/RESULTS.md and the plots beside them
    python -m perf compare A.json B.json
    python -m perf inspect              # what the compiler made of every kernel; needs no GPU
    pytest perf --benchmark-only        # the same cases under pytest-benchmark

Who does what: :mod:`.cases` (what is measured, as data), :mod:`.data` and :mod:`.ops` (tensors and bytes of a case),
:mod:`.oracle` and :mod:`.gate` (nothing wrong is timed), :mod:`.peers` (who else computes it), :mod:`.clocks`,
:mod:`.runner`.
"""
