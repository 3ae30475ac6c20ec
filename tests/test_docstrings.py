"""Every example in a docstring runs and prints what it says, and the code in the README runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import tritonrl
import tritonrl.kernels
from tritonrl.objectives import random_modules

MODULES = sorted(
    module.name
    for package in (tritonrl, tritonrl.kernels)  # An editable install does not list the second under the first.
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
)


def test_the_walk_finds_both_source_trees() -> None:
    assert "tritonrl.doctor" in MODULES
    assert "tritonrl.kernels.cpu" in MODULES


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_the_docstrings_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        random_modules, "RANDOM_MODULE_LIST", random_modules.RANDOM_MODULE_LIST
    )  # one example adds to it
    module = importlib.import_module(name)
    torch.manual_seed(0)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    assert doctest.testmod(module, optionflags=flags).failed == 0


def test_the_python_code_of_the_readme_runs() -> None:
    text = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
