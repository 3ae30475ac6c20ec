"""Every name that both libraries have can be imported from where TorchRL defines it, with one word changed."""

from __future__ import annotations

import importlib

import pytest

MODULES = ("objectives", "objectives.utils", "objectives.value", "objectives.value.functional")


def homes() -> list[tuple[str, str]]:
    """Names with the module of TorchRL that defines them."""
    found = set()
    for module in MODULES:
        ours, theirs = (importlib.import_module(f"{package}.{module}") for package in ("tritonrl", "torchrl"))
        found |= {(name, getattr(getattr(theirs, name, None), "__module__", "")) for name in ours.__all__}
    return sorted((name, home) for name, home in found if home.startswith("torchrl.objectives"))


def test_the_names_are_found() -> None:
    assert {("GAE", "torchrl.objectives.value.advantages"), ("ClipPPOLoss", "torchrl.objectives.ppo")} <= set(homes())


@pytest.mark.parametrize(("name", "home"), homes())
def test_a_name_is_where_torchrl_defines_it(name: str, home: str) -> None:
    module = importlib.import_module(home.replace("torchrl", "tritonrl", 1))
    assert getattr(module, name).__module__.startswith("tritonrl")


def test_a_misspelt_name_is_an_import_error() -> None:
    with pytest.raises(ImportError, match="KLPENLoss"):
        from tritonrl.objectives.ppo import KLPENLoss  # noqa: F401
