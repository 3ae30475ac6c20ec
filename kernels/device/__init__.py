"""Triton device code: ``@triton.jit`` functions and nothing else."""
