"""What is measured: cases, and the registry that spells them out. Data, not code: a new case is a new line in a table here.

Shapes are written ``lanes x steps``, as in ``4096x128``: 4096 trajectories side by side, 128 steps each.
"""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

Shape = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        op: a name in :data:`perf.ops.OPS`.
        regime: ``simulators``, ``classic`` or ``tokens``: who has such shapes.
        lanes, steps: sizes.
        layout: a name in :data:`perf.data.LAYOUTS`.
        dtype: of the floating inputs, as torch names it.
        done: the fraction of steps that end a trajectory; half of them terminate it.
        variants: names in :data:`perf.data.VARIANTS`: what differs from the plain arguments.
        direction: ``forward``, or ``backward`` (the backward pass alone).
        mode: how ours is called: ``eager``, ``compiled`` (``torch.compile(fullgraph=True)``) or ``graph`` (CUDA graph).
        compiled_peers: also time the peers that have to be compiled for this shape, which takes up to a minute each.
    """

    op: str
    regime: str
    lanes: int
    steps: int
    layout: str = "NT"
    dtype: str = "float32"
    done: float = 0.01
    variants: tuple[str, ...] = ()
    direction: str = "forward"
    mode: str = "eager"
    compiled_peers: bool = False

    @property
    def shape(self) -> str:
        """``lanes x steps``."""
        return f"{self.lanes}x{self.steps}"

    @property
    def id(self) -> str:
        """A name that tells a case from every other one and can be matched with ``--only``."""
        parts = [self.op, self.regime, self.shape, self.layout, self.dtype, f"done={self.done:g}", *self.variants]
        return "/".join([*parts, self.direction, self.mode])

    def as_dict(self) -> dict[str, Any]:
        """The fields, for a record; :meth:`from_dict` is its inverse."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> Case:
        """A case from its record. Fields that this version does not know are ignored."""
        known = {f.name for f in fields(cls)}
        made = {name: value for name, value in given.items() if name in known}
        return cls(**(made | {"variants": tuple(made.get("variants", ()))}))


@dataclass(frozen=True)
class Sweep:
    """A block of the registry: every combination of what it lists is one case."""

    regime: str
    shapes: Sequence[Shape]
    ops: Sequence[str] = ("gae",)
    layouts: Sequence[str] = ("NT", "TN")
    dtypes: Sequence[str] = ("float32",)
    dones: Sequence[float] = (0.01,)
    variants: Sequence[tuple[str, ...]] = ((),)
    directions: Sequence[str] = ("forward",)
    modes: Sequence[str] = ("eager",)
    compiled_peers: bool = False
    quick: bool = False

    def cases(self) -> Iterator[Case]:
        """The cases, shape by shape."""
        axes = (
            self.shapes,
            self.ops,
            self.layouts,
            self.dtypes,
            self.dones,
            self.variants,
            self.directions,
            self.modes,
        )
        for (lanes, steps), op, layout, dtype, done, variants, direction, mode in itertools.product(*axes):
            yield Case(
                op, self.regime, lanes, steps, layout, dtype, done, variants, direction, mode, self.compiled_peers
            )


ALL_OPS = ("gae", "td_lambda_return", "td1_return", "reward_to_go", "vtrace", "linear_recurrence")
ALL_DTYPES = ("float64", "float32", "float16", "bfloat16")
BOTH = ("forward", "backward")
M = 2**20
# Batches of responses: padded, with tool output in them, packed; advantages with their moments, values with a bootstrap row.
TOKENS = (
    *(("valid",), ("skip",), ("packed",), ("bootstrap",), ("moments",), ("skip", "bootstrap")),
    ("packed", "skip", "bootstrap", "moments"),
)

# Each table starts with what the targets of issue 3 name, so that a run cut short by --deadline has measured those.
CPU: tuple[Sweep, ...] = (
    Sweep("simulators", [(4096, 128)], compiled_peers=True, quick=True),
    Sweep("classic", [(8, 128), (8, 2048)], quick=True),
    Sweep("classic", [(64, 1024), (1024, 128), (256, 4096)]),
    Sweep("simulators", [(16384, 32), (16384, 128)]),
    Sweep("tokens", [(8, 65536), (1, 100_000)]),
    Sweep("simulators", [(4096, 32)], ops=ALL_OPS, directions=BOTH, quick=True),
    Sweep("simulators", [(4096, 128)], modes=["compiled"]),
    Sweep("classic", [(64, 1024)], ops=ALL_OPS[1:], directions=BOTH),
    Sweep("classic", [(64, 1024)], dtypes=["float64", "float16", "bfloat16"]),
    Sweep("classic", [(64, 1024)], dones=[0.0, 0.1]),
    Sweep("classic", [(64, 1024)], layouts=["NTF"], variants=[(), ("one_flag",), ("gamma_steps", "lmbda_steps")]),
    Sweep("classic", [(64, 1024)], variants=[("one_flag",), ("gamma_steps", "lmbda_steps")]),
    Sweep("tokens", [(16, 8192)], ops=["gae", "reward_to_go"], directions=BOTH, dones=[0.001]),
    Sweep("tokens", [(16, 512)], layouts=["NT"], variants=TOKENS[-1:], dones=[0.0], quick=True),
    Sweep("tokens", [(16, 8192)], layouts=["NT"], variants=TOKENS, dones=[0.001]),
    Sweep("tokens", [(16, 8192)], layouts=["NT"], variants=[("valid",), ("skip",)], directions=["backward"]),
    Sweep("tokens", [(16, 8192)], ops=["td_lambda_return", "reward_to_go", "vtrace"], variants=[("valid",)]),
    Sweep("tokens", [(16, 8192)], ops=["reward_to_go", "vtrace"], layouts=["NT"], variants=[("packed",)]),
    Sweep("simulators", [(4096, 128)], variants=[("bootstrap",), ("moments",), ("bootstrap", "moments")]),
    Sweep("tokens", [(16, 2048)], layouts=["NT"], dones=[0.001], compiled_peers=True),
)

CUDA: tuple[Sweep, ...] = (
    Sweep("simulators", [(32768, 8), (32768, 16), (4096, 32)], quick=True),
    Sweep("classic", [(8192, 2048), (8192, 4096)], quick=True),
    Sweep("tokens", [(64, 131072), (1, 16 * M), (512, 16384), (4096, 2048), (128, 131072)]),
    Sweep("simulators", [(4096, 128)], ops=ALL_OPS, directions=BOTH, quick=True),
    Sweep("simulators", [(32768, 8), (4096, 32), (4096, 128)], modes=["compiled", "graph"]),
    Sweep("classic", [(8192, 2048)], ops=ALL_OPS, directions=BOTH),
    Sweep("classic", [(8192, 2048)], dtypes=["float64", "float16", "bfloat16"]),
    Sweep("classic", [(8192, 2048)], variants=[("one_flag",), ("gamma_steps", "lmbda_steps")]),
    Sweep("classic", [(8192, 2048)], dones=[0.0, 0.1]),
    Sweep("classic", [(2048, 2048)], layouts=["NTF"], variants=[(), ("one_flag",)]),
    Sweep("simulators", [(32768, 64), (32768, 128)]),
    Sweep("classic", [(8, 128), (8, 4096), (64, 1024), (1024, 128), (1024, 1024), (8192, 128), (8192, 512)]),
    Sweep("tokens", [(1, 2048), (8, 8192), (64, 8192), (256, 32768)], dones=[0.001]),
    Sweep("tokens", [(512, 8192)], layouts=["NT"], variants=TOKENS, dones=[0.0], quick=True),
    Sweep("tokens", [(64, 131072)], layouts=["NT"], variants=TOKENS, dones=[0.0]),
    Sweep("tokens", [(512, 8192)], layouts=["NT"], variants=[("valid",), ("skip",)], directions=["backward"]),
    Sweep("tokens", [(512, 8192)], ops=["td_lambda_return", "reward_to_go", "vtrace"], variants=[("valid",)]),
    Sweep("tokens", [(512, 8192)], ops=["reward_to_go", "vtrace"], layouts=["NT"], variants=[("packed",)]),
    Sweep("classic", [(8192, 2048)], variants=[("bootstrap",), ("moments",), ("bootstrap", "moments")]),
    Sweep("simulators", [(4096, 128)], compiled_peers=True),
    Sweep("tokens", [(64, 131072)], layouts=["NT"], compiled_peers=True),
)

SWEEPS: dict[str, tuple[Sweep, ...]] = {"cpu": CPU, "cuda": CUDA}


def registry(device: str, quick: bool = False) -> list[Case]:
    """Every case for a device (``cpu`` or ``cuda``), or the few of ``--quick``; each once, in the order of the table."""
    found: dict[str, Case] = {}
    for sweep in SWEEPS[device]:
        if quick and not sweep.quick:
            continue
        for case in sweep.cases():
            earlier = found.get(case.id)
            if earlier is None:
                found[case.id] = case
            elif case.compiled_peers and not earlier.compiled_peers:
                del found[case.id]  # with compiled peers a case takes minutes: it moves to the later place
                found[case.id] = case
    return list(found.values())


def select(cases: Iterable[Case], only: Sequence[str]) -> list[Case]:
    """The cases whose id matches one of the shell patterns of ``--only``; a pattern matches any part of the id."""
    if not only:
        return list(cases)
    patterns = [f"*{pattern.strip('*')}*" for pattern in only]
    return [case for case in cases if any(fnmatch.fnmatchcase(case.id, pattern) for pattern in patterns)]
