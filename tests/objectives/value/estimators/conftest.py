"""Rollouts, critics and TorchRL twins for the tests of the value estimators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

OBS = 3


@pytest.fixture
def critic() -> TensorDictModule:
    """A small value network, obs -> state_value."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(OBS, 8), nn.Tanh(), nn.Linear(8, 1))
    return TensorDictModule(net, in_keys=["obs"], out_keys=["state_value"])


@pytest.fixture
def make_rollout() -> Callable[..., TensorDict]:
    """Rollouts whose trajectories end at random; inside one, the next observation is that of the step behind."""

    def make(*batch: int, time_dim: int = -1, dtype: torch.dtype = torch.float32, seed: int = 0) -> TensorDict:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        obs, fresh = normal(*batch, OBS), normal(*batch, OBS)
        done = torch.rand(*batch, 1, generator=generator) < 0.3
        terminated = done & (torch.rand(*batch, 1, generator=generator) < 0.5)
        time = time_dim % len(batch)
        last = torch.arange(batch[time]).reshape([-1 if d == time else 1 for d in range(len(batch))]) == batch[time] - 1
        following = torch.where(done | last.unsqueeze(-1), fresh, obs.roll(-1, time))
        step = {"obs": following, "reward": normal(*batch, 1), "done": done, "terminated": terminated}
        step["truncated"] = done & ~terminated
        return TensorDict({"obs": obs, "next": step}, batch_size=batch)

    return make


@pytest.fixture
def quiet_torchrl(monkeypatch: pytest.MonkeyPatch) -> Any:
    """TorchRL's value module, without its warning about unnamed time dimensions."""
    monkeypatch.setenv("RL_WARNINGS", "False")
    import torchrl.objectives.value

    return torchrl.objectives.value


@pytest.fixture
def no_recompile() -> Iterator[None]:
    """Any recompilation is an error."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()
