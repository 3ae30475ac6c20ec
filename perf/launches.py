"""What ``perf inspect`` compiles: ops x launches x dtypes, as data, and the arguments of each."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tritonrl.kernels.specs import ALL_SPECS, argument_names

from .data import LAYOUTS

# One for every plan that a shape can get: rows in tiles of several, of one, of one in many chunks; lanes; split either way.
SHAPES: dict[str, tuple[int, int, str]] = {
    "rows": (4096, 128, "NT"),
    "rows-long": (8192, 4096, "NT"),
    "rows-short": (32768, 8, "NT"),
    "rows-odd": (4096, 129, "NT"),
    "rows-few": (8, 128, "NT"),
    "split-rows": (8, 65536, "NT"),
    "lanes": (65536, 128, "TN"),
    "lanes-short": (32768, 16, "TN"),
    "tiles": (8192, 1024, "TN"),
    "split-lanes": (64, 65536, "TN"),
    "tiles-few": (8, 128, "TN"),
    "features": (8192, 512, "NTF"),
}
MAIN_SHAPES = ("rows", "rows-long", "lanes", "tiles", "split-rows", "split-lanes")
DTYPES = ("float32", "bfloat16", "float16", "float64")
CAPABILITIES = (80, 90, 100)
QUICK = (
    "gae/rows-long/",
    "gae/lanes/",
    "gae/split-lanes/",
    "gae+masks/tiles/",
    "gae_extended+derived/rows/",
    "gae_extended+derived+packed/split-rows/",
    "vtrace_backward/lanes/",
    "standardise+masks/",
)
MASKS = ("valid", "skip")
# Takes numbers as they lie in memory: one shape stands for all.
ELEMENTWISE = "standardise"
SEQUENCES = 1000


class Launch(NamedTuple):
    """One kernel to compile.

    ``variant``: what is asked for besides the plain results, of ``discounts`` (a backward pass that also gives gradients of
    gamma, lambda and thresholds), ``masks`` (all that the op knows; with ``discounts`` only ``valid``, because no kernel gives
    these gradients where steps are skipped), ``packed`` (sequences, with offsets), ``moments`` and ``derived`` (moments too,
    and a bootstrap value in the place of next values), joined by ``+``.
    """

    op: str
    shape: str
    dtype: str
    variant: str
    capability: int

    @property
    def id(self) -> str:
        """A name that ``--only`` matches."""
        return f"{self.op}{'+' if self.variant else ''}{self.variant}/{self.shape}/{self.dtype}/sm_{self.capability}"

    @property
    def asked(self) -> tuple[str, ...]:
        """The parts of the variant."""
        return tuple(self.variant.split("+"))


def variants_of(op: str) -> tuple[str, ...]:
    """What a kernel of ``op`` can be asked for."""
    spec = ALL_SPECS[op]
    if spec.moments:
        return "moments", "derived", "moments+masks", "derived+packed", "derived+masks", "derived+masks+packed"
    plain = ("", "discounts") if spec.discount_outputs else ("",)
    more = ("masks", "packed") if spec.optional else ()
    return plain + tuple("+".join(filter(None, (x, y))) for x in plain for y in more)


def launches(only: Sequence[str] = (), capabilities: Sequence[int] = CAPABILITIES, quick: bool = False) -> list[Launch]:
    """Every op on every shape in float32, and on the main shapes in every dtype, with masks or packed on these alone; or a few.

    The capabilities of one kernel follow one another, because most of the compiler's work is the same for all of them.
    """
    found = []
    for dtype in DTYPES:
        for shape, op in itertools.product(SHAPES if dtype == "float32" else MAIN_SHAPES, ALL_SPECS):
            wanted = [x for x in variants_of(op) if shape in MAIN_SHAPES or not {"masks", "packed"} & set(x.split("+"))]
            for variant, capability in itertools.product(wanted, (90,) if quick else capabilities):
                found.append(Launch(op, shape, dtype, variant, capability))
        for variant, capability in itertools.product(("", "masks"), (90,) if quick else capabilities):
            found.append(Launch(ELEMENTWISE, "rows", dtype, variant, capability))
    if quick:
        found = [x for x in found if x.dtype == "float32" and x.id.startswith(QUICK)]
    patterns = [f"*{pattern.strip('*')}*" for pattern in only]
    return [x for x in found if not patterns or any(fnmatch.fnmatchcase(x.id, p) for p in patterns)]


def named_arguments(launch: Launch) -> dict[str, Any]:
    """The arguments of the op by name, in schema order: uninitialised CPU tensors of the layout."""
    lanes, steps, layout_name = SHAPES[launch.shape]
    layout, dtype = LAYOUTS[layout_name], getattr(torch, launch.dtype)
    shape, flag_shape = layout.shape(lanes, steps), layout.flag_shape(lanes, steps)
    number = torch.tensor(0.9, dtype=torch.float64)
    derived, masked = "derived" in launch.asked, "masks" in launch.asked
    given: dict[str, Any] = {"time_dim": layout.time_dim, "reverse": True, "moments": True, "carry": None}
    given |= {"with_discounts": "discounts" in launch.asked, "bootstrap_value": None}
    given |= dict.fromkeys(("gamma", "lmbda", "rho_thresh", "c_thresh"), number) | dict.fromkeys((*MASKS, "cu_seqlens"))
    if derived:
        bootstrap_shape = list(shape)
        if "packed" in launch.asked:
            bootstrap_shape[layout.time_dim] = SEQUENCES
        else:
            del bootstrap_shape[layout.time_dim]
        given |= {"next_value": None, "bootstrap_value": torch.empty(bootstrap_shape, dtype=dtype)}
    if masked:
        mask_names = MASKS[:1] if "discounts" in launch.asked else MASKS
        given |= {name: torch.empty(flag_shape, dtype=torch.bool) for name in mask_names}
    if "packed" in launch.asked:
        given["cu_seqlens"] = torch.empty(SEQUENCES + 1, dtype=torch.int32)
    arguments = {}
    for name in ("x", *MASKS) if launch.op == ELEMENTWISE else argument_names(launch.op):
        if name in given:
            arguments[name] = given[name]
        elif name in ("done", "terminated"):
            arguments[name] = torch.empty(flag_shape, dtype=torch.bool)
        else:
            arguments[name] = torch.empty(shape, dtype=dtype)
    return arguments


def contiguous_extent(x: Tensor, shape: Sequence[int], time_dim: int) -> tuple[str, int]:
    """Along what ``x`` lies in memory without gaps, ``time`` or ``lanes`` (or neither), and how many elements lie so."""
    expanded = x.expand(tuple(shape))
    strides = expanded.stride()
    if strides[time_dim] == 1:
        return "time", shape[time_dim]
    return ("lanes", shape[-1]) if strides[-1] == 1 and time_dim != -1 else ("", 1)
