"""Loss modules and value estimators against TorchRL's: the same networks, the same batch, eager and compiled.

Run from the repository root::

    python -m perf losses                    # count and time every row, with a table at the end
    python -m perf losses --only '*PPO*'
    python -m perf losses --json             # the record of this machine, under perf/results/losses/
    python -m perf losses --write-docs       # the newest record -> docs/compile.md; measures nothing

Who does what: :mod:`.rows` (what is measured, as data), :mod:`.networks` and :mod:`.batches` (sizes of TorchRL's own
benchmark), :mod:`.subjects` (one row with one of the two libraries), :mod:`.counting`, :mod:`.timing`, :mod:`.record`,
:mod:`.document`.
"""
