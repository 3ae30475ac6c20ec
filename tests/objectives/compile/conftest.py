"""Make the repository's ``perf`` importable, as tests/perf/conftest.py does, and start every test with a fresh compiler."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

_FOLDER = Path(__file__).parents[3] / "perf"

if "perf" not in sys.modules:
    _spec = importlib.util.spec_from_file_location(
        "perf", _FOLDER / "__init__.py", submodule_search_locations=[str(_FOLDER)]
    )
    assert _spec is not None and _spec.loader is not None
    _module = importlib.util.module_from_spec(_spec)
    sys.modules["perf"] = _module
    _spec.loader.exec_module(_module)


@pytest.fixture(autouse=True)
def _fresh_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RL_WARNINGS", "False")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
