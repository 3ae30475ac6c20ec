"""Runs the cases of concurrent_cases.py in the interpreter, in a process of their own (see test_triton.py)."""

from __future__ import annotations

import pytest

from .test_triton import CASES, run_cases


def test_programs_that_run_at_the_same_time_agree_in_every_schedule() -> None:
    pytest.importorskip("triton")
    cases = CASES.with_name("concurrent_cases.py")
    run_cases(cases, at_least=19, TRITON_INTERPRET="1", OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
