"""Imports flow one way, ``tritonrl`` itself loads nothing heavy, and a plain CPU machine has all that is needed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Mapping
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What the ground floor knows; llvmlite is numba's own code generator. All else that it imports is its own, or Python's.
GROUND_FLOOR = {"torch", "triton", "numba", "llvmlite", "numpy"}

WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
import torch, tritonrl.kernels, tritonrl.objectives, tritonrl.objectives.value, tritonrl.objectives.value.functional
reward = torch.ones(4, 1)
done = torch.tensor([[False], [False], [False], [True]])
advantage, target = tritonrl.kernels.gae(reward, 0 * reward, 0 * reward, done, gamma=1.0, lmbda=1.0)
print(target.flatten().tolist())
"""


def sources(*folders: str) -> list[Path]:
    """Return every Python file under these folders of the repository."""
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]


def relative(file: Path) -> str:
    """Name a file by its path from the repository root."""
    return file.relative_to(ROOT).as_posix()


def module_name(file: Path) -> str:
    """Return the name that a file is imported under; that of the folder for an ``__init__.py``."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(("tritonrl", *parts) if parts[0] == "kernels" else parts)


def owner(name: str, modules: Mapping[str, Path]) -> str | None:
    """Return which of ``modules`` an imported name belongs to: itself, or the module that defines it."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name or None


def imports(file: Path) -> set[str]:
    """Return what a file imports, wherever in it: ``a.b`` for ``import a.b``, ``a.b.c`` for ``from a.b import c``.

    Relative imports come back absolute, those inside the folder ``kernels/`` as ``tritonrl.kernels``.
    """
    found: set[str] = set()
    folder = file.parent.relative_to(ROOT).parts
    package = ("tritonrl", *folder) if folder[0] == "kernels" else folder
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (node.module,) if node.module else ()
            found |= {".".join((*base, *module, alias.name)) for alias in node.names}
    return found


def run(code: str, cwd: Path, **environment: str) -> str:
    """Run Python code in a process of its own and return what it printed; a failure shows its errors."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("file", sources("kernels"), ids=relative)
def test_the_kernels_know_torch_triton_numba_and_nothing_above_them(file: Path) -> None:
    allowed = GROUND_FLOOR | sys.stdlib_module_names
    foreign = {name for name in imports(file) if name.split(".")[0] not in allowed}
    foreign = {name for name in foreign if not name.startswith("tritonrl.kernels")}
    assert not foreign, f"{relative(file)} imports {foreign}"


@pytest.mark.parametrize("file", sources("kernels", "tritonrl"), ids=relative)
def test_nothing_that_ships_imports_torchrl(file: Path) -> None:
    assert "torchrl" not in {name.split(".")[0] for name in imports(file)}


def test_nothing_imports_the_kernels_under_their_bare_name() -> None:
    files = sources("kernels", "tritonrl", "examples", "tests")
    assert [relative(file) for file in files if "kernels" in {name.split(".")[0] for name in imports(file)}] == []


def test_no_two_files_import_each_other_by_whatever_way_round() -> None:
    files = sources("kernels", "tritonrl")
    modules = {module_name(file): file for file in files}
    graph = {name: {owner(target, modules) for target in imports(file)} - {None} for name, file in modules.items()}
    tuple(TopologicalSorter(graph).static_order())  # Raises CycleError, which names the files of the cycle.


def test_value_functional_knows_neither_estimators_nor_losses() -> None:
    value = ROOT / "tritonrl/objectives/value"
    for file in [value / "functional.py", *value.glob("_[a-z]*.py")]:
        own = {name for name in imports(file) if name.startswith("tritonrl.objectives.")}
        above = {name for name in own if not name.startswith("tritonrl.objectives.value.") or "estimators" in name}
        assert not above, f"{relative(file)} imports {above}"


def test_importing_tritonrl_loads_neither_torch_nor_a_kernel(tmp_path: Path) -> None:
    code = "import sys, tritonrl; print([name for name in ('torch', 'numba', 'triton') if name in sys.modules])"
    assert run(code, tmp_path).strip() == "[]"


@pytest.mark.parametrize("missing", [("triton",), ("numba",), ("triton", "numba")], ids="+".join)
def test_the_kernels_import_and_compute_without(missing: tuple[str, ...], tmp_path: Path) -> None:
    assert run(WITHOUT.format(missing=missing), tmp_path).strip() == "[4.0, 3.0, 2.0, 1.0]"


def test_the_kernels_import_and_compute_with_no_gpu_and_no_c_compiler(tmp_path: Path) -> None:
    environment = {"PATH": str(tmp_path), "CC": "/nowhere/cc", "CXX": "/nowhere/c++", "CUDA_VISIBLE_DEVICES": ""}
    assert run(WITHOUT.format(missing=()), tmp_path, **environment).strip() == "[4.0, 3.0, 2.0, 1.0]"
