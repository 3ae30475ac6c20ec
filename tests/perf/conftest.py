"""Make the repository's ``perf`` importable: as one package, without the repository root on ``sys.path``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_FOLDER = Path(__file__).parents[2] / "perf"

if "perf" not in sys.modules:
    _spec = importlib.util.spec_from_file_location(
        "perf", _FOLDER / "__init__.py", submodule_search_locations=[str(_FOLDER)]
    )
    assert _spec is not None and _spec.loader is not None
    _module = importlib.util.module_from_spec(_spec)
    sys.modules["perf"] = _module
    _spec.loader.exec_module(_module)
