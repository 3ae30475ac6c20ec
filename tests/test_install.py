"""A wheel and an editable install both import, with one copy of ``tritonrl.kernels`` and no top-level ``kernels``."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import tritonrl

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("pyproject.toml", "README.md", "LICENSE", "tritonrl", "kernels")
PIP_OPTIONS = ("--quiet", "--disable-pip-version-check", "--no-build-isolation", "--no-deps", "--no-index")

# Runs in the new environment. The import of a top-level `kernels` must fail there, and every operator have one owner.
PROBE = """
import importlib.util, sys
import tritonrl, tritonrl.kernels, tritonrl.objectives.value.functional
print(tritonrl.__file__)
print(tritonrl.kernels.__file__)
assert importlib.util.find_spec("kernels") is None, "a top-level package `kernels` was installed"
files = [m.__file__ for n, m in sys.modules.items() if n.startswith("tritonrl") and getattr(m, "__file__", None)]
assert len(files) == len(set(files)), "one file was imported under two names"
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command to its end and return what it printed; a failure shows all of its output."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def packages_on_disk() -> set[str]:
    """Return the import name of every folder with Python files under ``tritonrl/`` and ``kernels/``."""
    names = set()
    for folder, name in (("tritonrl", "tritonrl"), ("kernels", "tritonrl.kernels")):
        for file in (ROOT / folder).rglob("*.py"):
            names.add(".".join((name, *file.parent.relative_to(ROOT / folder).parts)))
    return names


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of what a release is built from, so that no build product lands in the checkout."""
    copy = tmp_path_factory.mktemp("source")
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the built wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", *PIP_OPTIONS, "-w", folder, source, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def new_environment(folder: Path) -> Path:
    """Make an environment that sees this one's torch, but not this one's tritonrl, and return its Python.

    A folder named in a ``.pth`` file joins ``sys.path``, while the ``.pth`` files inside it (such as that of our own
    editable install) are not read.
    """
    venv.create(folder, with_pip=False)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    here = sysconfig.get_paths()
    (Path(paths["purelib"]) / "outer.pth").write_text(f"{here['purelib']}\n{here['platlib']}\n")
    return python


def install_and_probe(folder: Path, *what: str | Path) -> tuple[Path, Path]:
    """Install into a new environment, import from an unrelated folder, return the files of tritonrl and its kernels."""
    python = new_environment(folder / "environment")
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    # --ignore-installed: pip must never touch the tritonrl of the environment that runs this test.
    run(python, "-m", "pip", "install", *PIP_OPTIONS, "--ignore-installed", *what, cwd=elsewhere)
    package, kernels = run(python, "-c", PROBE, cwd=elsewhere).split()
    return Path(package), Path(kernels)


def test_a_wheel_carries_kernels_inside_tritonrl_and_nowhere_else(wheel: Path, tmp_path: Path) -> None:
    package, kernels = install_and_probe(tmp_path, wheel)
    assert kernels == package.parent / "kernels" / "__init__.py"
    assert tmp_path / "environment" in kernels.parents


def test_an_editable_install_reads_kernels_from_the_checkout(source: Path, tmp_path: Path) -> None:
    package, kernels = install_and_probe(tmp_path, "--editable", source)
    assert package == source / "tritonrl" / "__init__.py"
    assert kernels == source / "kernels" / "__init__.py"


def test_the_wheel_holds_every_source_file_once_and_both_type_markers(wheel: Path) -> None:
    shipped = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    expected = []
    for folder, target in (("tritonrl", "tritonrl"), ("kernels", "tritonrl/kernels")):
        files = [file for file in (ROOT / folder).rglob("*") if file.suffix == ".py" or file.name == "py.typed"]
        expected += [f"{target}/{file.relative_to(ROOT / folder).as_posix()}" for file in files]
    assert sorted(shipped) == sorted(expected)
    assert {"tritonrl/py.typed", "tritonrl/kernels/py.typed"} <= set(shipped)


def test_every_package_on_disk_is_listed_in_pyproject() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert sorted(settings["packages"]) == sorted(packages_on_disk())


def test_the_version_is_the_same_in_the_package_and_in_its_metadata() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert tritonrl.__version__ == project["version"] == version("tritonrl")


def test_running_from_the_checkout_loads_one_copy_of_the_kernels() -> None:
    code = "import sys, tritonrl.kernels, tritonrl.objectives.value.functional; print('kernels' in sys.modules)"
    assert run(sys.executable, "-c", code, cwd=ROOT).split() == ["False"]
