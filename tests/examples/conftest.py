"""The examples as modules, imported as their own folder sees them, and toy environments for them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import pytest
import torch

from .runs import EXAMPLES
from .toy_environments import ALL


@pytest.fixture(scope="session")
def script() -> Iterator[Callable[[str], Any]]:
    """Imports a script, or a module of ``common``, by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        yield importlib.import_module
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", "")).startswith(str(EXAMPLES)):
                patch.delitem(sys.modules, name)


@pytest.fixture(scope="session")
def ppo(script: Callable[[str], Any]) -> Any:
    return script("ppo")


@pytest.fixture(scope="session")
def common(script: Callable[[str], Any]) -> Any:
    return script("common")


@pytest.fixture(scope="package", autouse=True)
def environments() -> Iterator[None]:
    for env_id, cls in ALL.items():
        gym.register(env_id, cls, max_episode_steps=3)
    yield
    for env_id in ALL:
        del gym.registry[env_id]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The examples set the number of torch's threads for their process, which here is everyone's."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
