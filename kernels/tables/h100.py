"""NVIDIA H100 (SXM, 80 GB): the numbers of :class:`.table.Table` were found on it."""

from __future__ import annotations

from .table import Table

TABLE = Table(
    device="NVIDIA H100 80GB HBM3",
    measured="2026-11-28, torch 2.11.0, triton 3.6.0, `python -m perf tune`: perf/results/tune/nvidia-h100-80gb-hbm3.json",
)
