"""PyTorch's own associative-scan operator (a prototype: ``torch._higher_order_ops``), through ``torch.compile``."""

from __future__ import annotations

import torch
from torch import Tensor

from .hand_written import Compiled
from .steps import Scan


def _combine(before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return before[0] * after[0], after[1] + after[0] * before[1]


def operator_scan(a: Tensor, b: Tensor, dim: int, reverse: bool) -> Tensor:
    """The operator generates one kernel on a GPU; elsewhere it has only its generic mode."""
    from torch._higher_order_ops.associative_scan import associative_scan

    mode = "pointwise" if b.device.type == "cuda" else "generic"
    pair = (a.contiguous(), b.contiguous())
    y: Tensor = associative_scan(_combine, pair, dim=dim % b.dim(), reverse=reverse, combine_mode=mode)[1]
    return y


class AssociativeScan(Compiled):
    """``torch._higher_order_ops.associative_scan``."""

    name = "torch associative_scan"
    differentiable = False

    def scan(self) -> Scan:
        """The operator."""
        return operator_scan

    def missing(self) -> str | None:
        """The operator is a prototype and may be gone."""
        try:
            from torch._higher_order_ops.associative_scan import associative_scan  # noqa: F401
        except ImportError as error:
            return f"torch {torch.__version__} has no associative_scan ({error})"
        return None
