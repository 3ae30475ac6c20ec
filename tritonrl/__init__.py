"""Reinforcement-learning value estimators and losses for PyTorch, on hand-written Triton and Numba kernels.

``import tritonrl`` loads nothing heavy: neither torch nor a kernel. Import what you use::

    from tritonrl.objectives import ClipPPOLoss
    from tritonrl.objectives.value import GAE
    from tritonrl.objectives.value.functional import generalized_advantage_estimate
"""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
