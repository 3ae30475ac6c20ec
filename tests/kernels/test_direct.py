"""Runs the cases of direct_cases.py, which swap Triton's driver, in a process of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from .test_triton import run_cases


def test_what_is_launched_again_is_what_triton_would_launch() -> None:
    pytest.importorskip("triton")
    run_cases(Path(__file__).with_name("direct_cases.py"), at_least=40, TRITON_INTERPRET="0", OMP_NUM_THREADS="1")
