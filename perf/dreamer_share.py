"""What share of a Dreamer actor step is spent on the TD(lambda) returns, forward and backward.

``python -m perf.dreamer_share [--starts N] [--horizon H] [--device cuda]``. The networks are those of the Dreamer paper:
state 30, belief 200, an actor of 4 x 400, value and reward of 3 x 400 and 2 x 400. On the CPU the time is the CPU time of
this process, which other work on the machine disturbs least; on a GPU it is wall time between synchronisations.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import (
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictSequential,
)

from tritonrl.modules import MLP, DreamerActor, ImaginationEnv, RSSMPrior, TanhNormal
from tritonrl.objectives.dreamer import DreamerActorLoss

STATE, BELIEF, ACTION = 30, 200, 6


def build_loss(horizon: int) -> DreamerActorLoss:
    """The loss on networks of the sizes of the paper."""
    latent = ["state", "belief"]
    prior = TensorDictModule(RSSMPrior(action_dim=ACTION), [*latent, "action"], ["_", "_", *latent])
    reward = TensorDictModule(MLP(STATE + BELIEF, 1, num_cells=[400, 400]), latent, ["reward"])
    actor = ProbabilisticTensorDictSequential(
        TensorDictModule(DreamerActor(ACTION, num_cells=400, in_features=STATE + BELIEF), latent, ["loc", "scale"]),
        ProbabilisticTensorDictModule(["loc", "scale"], ["action"], distribution_class=TanhNormal),
    )
    value = TensorDictModule(MLP(STATE + BELIEF, 1, num_cells=[400] * 3), latent, ["state_value"])
    env = ImaginationEnv(TensorDictSequential(prior, reward))
    return DreamerActorLoss(actor, value, env, imagination_horizon=horizon)


def seconds(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median time of one call, after one that does not count."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter

    def once() -> float:
        start = clock()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - start

    once()
    return statistics.median(once() for _ in range(repeats))


def main() -> None:
    """Measure and print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=2500)
    parser.add_argument("--horizon", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.manual_seed(0)
    loss = build_loss(args.horizon).to(device)
    loss.value_model.to(device)
    parameters = list(loss.actor_model.parameters())
    batch = [args.starts]
    start = TensorDict(state=torch.randn(*batch, STATE), belief=torch.randn(*batch, BELIEF), batch_size=batch).to(
        device
    )
    reward, value, weight = (torch.randn(args.starts, args.horizon, 1, device=device) for _ in range(3))
    reward.requires_grad_(True), value.requires_grad_(True)
    step = seconds(lambda: torch.autograd.grad(loss(start)[0]["loss_actor"], parameters), device, args.repeats)
    returns = seconds(
        lambda: torch.autograd.grad(loss.lambda_target(reward, value), (reward, value), weight),
        device,
        20 * args.repeats,
    )
    print(
        f"{device.type}, {torch.get_num_threads()} thread(s), {args.starts} starts x {args.horizon} steps: actor step "
        f"{1e3 * step:.1f} ms, returns forward and backward {1e3 * returns:.3f} ms, share {100 * returns / step:.3f} %"
    )


if __name__ == "__main__":
    main()
