"""What the training examples share: command line, environments, networks, rollouts, logs and checkpoints.

Nothing here knows an algorithm. The layout that everything agrees on is ``[T, N]``: time first, environments second,
so that one environment step fills one contiguous row and the estimator's kernels walk the memory as it lies.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import math
import os
import pickle
import shutil
import signal
import sys
import time
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from matplotlib.figure import Figure
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, Normal
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.tensorboard import SummaryWriter

CHECKPOINT = "checkpoint.pt"

# --------------------------------------------------------------------------------------------------- command line


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line (argparse prints the whole usage first)."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def number(kind: type, low: float, high: float = math.inf, *, open_low: bool = False) -> Callable[[str], Any]:
    """An argparse type: a finite ``kind`` in ``[low, high]``, or ``(low, high]`` with ``open_low``."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low < value if open_low else low <= value) or value > high or math.isinf(value):
            bounds = f"{'>' if open_low else '>='} {low}" + ("" if math.isinf(high) else f" and <= {high}")
            noun = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"expected {noun} {bounds}, got {text!r}")
        return value

    return parse


count, positive = number(int, 1), number(float, 0, open_low=True)
non_negative, fraction = number(float, 0), number(float, 0, 1)


def common_options(prog: str, description: str) -> Parser:
    """The options that every example has; an example adds its own."""
    parser = Parser(prog, description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--env", default="CartPole-v1", help="Gymnasium id of an environment with Discrete or Box actions")
    add("--seed", type=number(int, 0, 2**32 - 1), default=0)
    add("--total-steps", type=count, default=200_000, help="environment steps, rounded up to whole rollouts")
    add("--num-envs", type=count, default=16, help="environments that step side by side (N)")
    add("--rollout-steps", type=count, default=64, help="steps of each environment between two updates (T)")
    add("--hidden", type=count, default=64, help="width of the two hidden layers of actor and critic")
    add("--reward-scale", type=positive, default=1.0, help="factor on the rewards that are learnt from, not reported")
    add("--learning-rate", type=positive, default=1e-3, help="at the start; decays linearly to zero")
    add("--stop-at", type=float, help="stop early, once the mean return of the last 100 episodes reaches this")
    add("--save-every", type=count, default=20, help="updates between two checkpoints")
    add("--device", default="cpu", help="where networks, rollouts and estimators live")
    add("--threads", type=count, default=1, help="CPU threads of torch; networks this small lose time with more")
    add("--compile", action="store_true", help="torch.compile the loss (full graph)")
    add("--out", type=Path, help="run folder (default: a new one under runs/, or the one that is resumed)")
    add("--overwrite", action="store_true", help="replace a run that --out holds already")
    add("--resume", type=Path, help="run folder or checkpoint to continue; its settings become the defaults")
    return parser


def parse(parser: Parser, argv: list[str] | None) -> tuple[argparse.Namespace, dict[str, Any] | None]:
    """Settings and, with ``--resume``, the checkpoint. What cannot work ends here, in one line and exit code 2."""
    args, checkpoint = parser.parse_args(argv), None
    if args.resume:
        path = args.resume / CHECKPOINT if args.resume.is_dir() else args.resume
        checkpoint = load_checkpoint(parser, path)
        parser.set_defaults(**checkpoint["settings"], out=path.parent)
        args = parser.parse_args(argv)
        for name in ("env", "num_envs", "hidden", "seed"):
            before, now = checkpoint["settings"][name], getattr(args, name)
            if before != now:
                parser.error(f"argument --{name.replace('_', '-')}: the run to resume has {before}, got {now}")
    check_device(parser, args)
    if args.out is None:
        name = f"{parser.prog.removesuffix('.py')}-{args.env.replace('/', '-')}-seed{args.seed}"
        args.out = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    goes_on = args.resume is not None and args.out == path.parent
    if (args.out / "config.json").exists() and not args.overwrite and not goes_on:
        parser.error(f"argument --out: {args.out} holds a run already; --resume or --overwrite it, or name another")
    return args, checkpoint


def load_checkpoint(parser: Parser, path: Path) -> dict[str, Any]:
    """What ``save_checkpoint`` wrote. It holds pickled environments, and unpickling runs code: load only your own."""
    if not path.is_file():
        parser.error(f"argument --resume: no checkpoint at {path}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
        if checkpoint["program"] != parser.prog:
            parser.error(f"argument --resume: {path} was written by {checkpoint['program']}, not by {parser.prog}")
    except Exception as error:
        parser.error(f"argument --resume: {path} is not a checkpoint of {parser.prog} ({type(error).__name__})")
    return checkpoint


def check_device(parser: Parser, args: argparse.Namespace) -> None:
    """End with one line unless a tensor can be put on ``--device`` and, with ``--compile``, code be built for it."""
    try:
        torch.zeros(1, device=args.device).item()
    except Exception as error:
        parser.error(f"argument --device: cannot use {args.device!r}: {str(error).splitlines()[0]}")
    compilers = (os.environ.get("CXX", ""), "c++", "g++", "clang++", "cl")
    if args.compile and torch.device(args.device).type == "cpu" and not any(map(shutil.which, compilers)):
        parser.error("argument --compile: needs a C++ compiler on the CPU and none was found")


# --------------------------------------------------------------------------------------------------- environments


class Flat(gym.ObservationWrapper):
    """Observations as vectors (one-hot where they are Discrete). Gymnasium's own wrapper cannot be pickled."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.observation_space = gym.spaces.flatten_space(env.observation_space)

    def observation(self, observation: Any) -> Any:
        return gym.spaces.flatten(self.env.observation_space, observation)


def make_env(env_id: str) -> gym.Env:
    """One environment whose observations are vectors."""
    env = gym.make(env_id, disable_env_checker=True)
    space = env.observation_space
    return env if isinstance(space, gym.spaces.Box) and len(space.shape) == 1 else Flat(env)


def make_envs(parser: Parser, env_id: str, num_envs: int) -> SyncVectorEnv:
    """``num_envs`` environments that start a new episode within the step that ends the old one.

    ``SAME_STEP`` matters: the step that ends an episode then returns the first observation of the next episode *and*
    the true last one, as ``infos["final_obs"]``. Its value is what a truncated step bootstraps from. In Gymnasium's
    default mode one step in every episode would be a reset that must not be learnt from.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # what is too old to run is an error, and one line
            makers = [partial(make_env, env_id)] * num_envs
            envs = SyncVectorEnv(makers, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)
    except Exception as error:  # unknown id, missing package, unflattenable observations, ...
        parser.error(f"argument --env: cannot make {env_id!r}: {str(error).strip().splitlines()[0]}")
    space, observations = envs.single_action_space, envs.single_observation_space
    if not isinstance(space, gym.spaces.Discrete) and not (
        isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.floating)
    ):
        parser.error(f"argument --env: {env_id} has actions {space}, expected Discrete or a Box of floats")
    if not isinstance(observations, gym.spaces.Box):
        parser.error(f"argument --env: {env_id} has observations {observations} that do not flatten to a vector")
    return envs


def pickles_exactly(env_id: str, steps: int = 10) -> bool:
    """Try out whether a pickled environment goes on as the original does.

    ``EzPickle`` (MuJoCo and Box2D environments) pickles without an error but keeps the constructor's arguments only.
    """
    with make_env(env_id) as env:
        env.action_space.seed(0)
        env.reset(seed=0)
        for _ in range(steps):  # at every step, because a lost state can look like a kept one right after a reset
            action = env.action_space.sample()
            try:
                twin = pickle.loads(pickle.dumps(env))
                observation, *rest = step_or_reset(twin, action)
            except Exception:
                return False
            expected, *expected_rest = step_or_reset(env, action)
            if not np.array_equal(observation, expected) or rest != expected_rest:
                return False
    return True


def step_or_reset(env: gym.Env, action: Any) -> tuple[Any, float, bool, bool]:
    """One step; where it ended an episode, the first observation of the next one stands for its last."""
    observation, reward, terminated, truncated, _ = env.step(action)
    return env.reset()[0] if terminated or truncated else observation, float(reward), terminated, truncated


# ------------------------------------------------------------------------------------------------------- networks


class DiagonalNormal(Independent):
    """Independent normal distributions over the entries of an action vector."""

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__(Normal(loc, scale, validate_args=False), 1, validate_args=False)


class LocScale(nn.Module):
    """Mean from a network, standard deviation a parameter of its own that does not depend on the state."""

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.log_scale = network, nn.Parameter(torch.zeros(size))

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        loc = self.network(observation)
        return loc, self.log_scale.exp().expand_as(loc)


def mlp(inputs: int, hidden: int, outputs: int, gain: float) -> nn.Sequential:
    """Two tanh layers, orthogonal initial weights; a small ``gain`` makes the first policy close to uniform."""
    layers = [nn.Linear(inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, outputs)]
    for layer, scale in zip(layers, (math.sqrt(2), math.sqrt(2), gain), strict=True):
        nn.init.orthogonal_(layer.weight, scale)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


def make_networks(envs: SyncVectorEnv, hidden: int) -> tuple[ProbabilisticTensorDictSequential, TensorDictModule]:
    """The actor pi(a|s) with keys ``action`` and ``action_log_prob``, and the critic V(s) with key ``state_value``."""
    inputs, actions = gym.spaces.flatdim(envs.single_observation_space), envs.single_action_space
    if isinstance(actions, gym.spaces.Discrete):
        body = TensorDictModule(mlp(inputs, hidden, int(actions.n), 0.01), ["observation"], ["logits"])
        family: dict[str, Any] = {"distribution_class": Categorical, "distribution_kwargs": {"validate_args": False}}
    else:
        size = gym.spaces.flatdim(actions)
        body = TensorDictModule(LocScale(mlp(inputs, hidden, size, 0.01), size), ["observation"], ["loc", "scale"])
        family = {"distribution_class": DiagonalNormal}
    head = ProbabilisticTensorDictModule(
        body.out_keys, ["action"], return_log_prob=True, log_prob_key="action_log_prob", **family
    )
    critic = TensorDictModule(mlp(inputs, hidden, 1, 1.0), ["observation"], ["state_value"])
    return ProbabilisticTensorDictSequential(body, head), critic


# ------------------------------------------------------------------------------------------------------- rollouts


class Collector:
    """Steps the environments and keeps the transitions in one tensordict ``[T, N]`` that is allocated once.

    ``data`` holds ``observation``, ``action``, ``action_log_prob`` and under ``"next"`` the ``observation`` (the true
    one, where an episode ended, not the first of the next episode), ``reward``, ``terminated`` (the task ended: there
    is no value after it) and ``done`` (terminated, or truncated by a time limit: the value goes on, the data do not).
    """

    def __init__(self, envs: SyncVectorEnv, env_id: str, steps: int, reward_scale: float, device: str) -> None:
        self.envs, self.reward_scale, self.exact = envs, reward_scale, pickles_exactly(env_id)
        self.data = self._allocate(steps).to(device)
        self.rows = self.data.unbind(0)  # T views: writing to a row writes to `data`
        self.observation = np.zeros(0)
        self.returns = np.zeros(envs.num_envs)
        self.finished: deque[float] = deque(maxlen=100)
        self.episodes = 0

    def _allocate(self, steps: int) -> TensorDict:
        n, space = self.envs.num_envs, self.envs.single_action_space
        action = torch.zeros(steps, n, dtype=torch.int64)
        if isinstance(space, gym.spaces.Box):
            action = torch.zeros(steps, n, gym.spaces.flatdim(space))
        observation = torch.zeros(steps, n, gym.spaces.flatdim(self.envs.single_observation_space))
        flag = torch.zeros(steps, n, 1, dtype=torch.bool)
        after = {"observation": observation, "reward": torch.zeros(steps, n, 1), "done": flag, "terminated": flag}
        now = {"observation": observation, "action": action, "action_log_prob": torch.zeros(steps, n)}
        return TensorDict({**now, "next": TensorDict(after, [steps, n])}, [steps, n]).clone()  # no shared memory

    def reset(self, seed: int) -> None:
        """Start new episodes everywhere."""
        self.observation, _ = self.envs.reset(seed=seed)
        self.returns[:] = 0

    def to_env(self, action: Tensor) -> np.ndarray:
        """The policy's actions as the environments want them; normal samples are clipped to the bounds here."""
        space, array = self.envs.single_action_space, action.cpu().numpy()
        if isinstance(space, gym.spaces.Discrete):
            return array + space.start
        assert isinstance(space, gym.spaces.Box)
        bounded = np.isfinite(space.high) & np.isfinite(space.low)  # [-1, 1] spans the range of a bounded entry
        low, high = np.where(bounded, space.low, -1), np.where(bounded, space.high, 1)
        array = (low + high) / 2 + (high - low) / 2 * array.reshape(-1, *space.low.shape)
        return array.clip(space.low, space.high).astype(space.dtype)

    @torch.no_grad()
    def collect(self, actor: ProbabilisticTensorDictSequential) -> TensorDict:
        """The next ``T`` steps of every environment, in the same memory each time."""
        for row in self.rows:
            row["observation"].copy_(torch.as_tensor(self.observation))
            policy = actor.get_dist(row)
            action = policy.sample()
            row["action"].copy_(action)
            row["action_log_prob"].copy_(policy.log_prob(action))
            self.observation, reward, terminated, truncated, infos = self.envs.step(self.to_env(action))
            done = terminated | truncated
            row["next", "observation"].copy_(torch.as_tensor(self._true_next(done, infos)))
            row["next", "reward"].copy_(torch.as_tensor(reward * self.reward_scale).unsqueeze(-1))
            row["next", "done"].copy_(torch.as_tensor(done).unsqueeze(-1))
            row["next", "terminated"].copy_(torch.as_tensor(terminated).unsqueeze(-1))
            self._count(reward, done)
        return self.data.copy()  # the same memory; what is added to it by name stays out of the collector's own

    def _true_next(self, done: np.ndarray, infos: dict[str, Any]) -> np.ndarray:
        """The observations that the last step led to: before the reset, where there was one."""
        if not done.any():
            return self.observation
        observation = self.observation.copy()
        for i in np.flatnonzero(done):
            observation[i] = infos["final_obs"][i]
        return observation

    def _count(self, reward: np.ndarray, done: np.ndarray) -> None:
        self.returns += reward
        self.finished.extend(self.returns[done].tolist())
        self.episodes += int(done.sum())
        self.returns[done] = 0

    @property
    def mean_return(self) -> float:
        """Mean return of the last 100 finished episodes (fewer at first, NaN before the first)."""
        return sum(self.finished) / len(self.finished) if self.finished else math.nan

    @property
    def statistics(self) -> dict[str, float]:
        """What to log about the episodes."""
        return {"episodes": self.episodes, "return": self.mean_return}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next rollout depends on. ``envs`` is None where environments cannot be saved."""
        envs = pickle.dumps(self.envs.envs) if self.exact else None
        names = ("observation", "returns", "finished", "episodes")
        return {"envs": envs} | {name: copy.copy(getattr(self, name)) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken; with new episodes where environments cannot be saved."""
        for name in state.keys() - {"envs"}:
            setattr(self, name, state[name])
        if state["envs"] is None:
            self.reset(int(torch.randint(2**31, ())))
        else:
            self.envs.envs = pickle.loads(state["envs"])


# ----------------------------------------------------------------------------------- logs, checkpoints, interrupts


class RunLog:
    """config.json, metrics.csv, TensorBoard scalars and learning_curve.png in one folder."""

    outcome = ""  # how the run ended

    def __init__(self, parser: Parser, args: argparse.Namespace, rows: list[dict[str, float]]) -> None:
        self.folder, self.rows, self.title = args.out, rows, f"{args.env}, seed {args.seed}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"argument --out: cannot make the folder: {error}")
        if not rows:  # a new run must not be mistaken for the one that it overwrites
            (self.folder / CHECKPOINT).unlink(missing_ok=True)
        versions = {name: metadata.version(name) for name in ("tritonrl", "torch", "tensordict", "gymnasium", "numpy")}
        config = {**settings_of(args), "versions": {"python": sys.version.split()[0], **versions}}
        (self.folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        # A resumed run writes its past anew, because a killed one may have logged more than its last checkpoint knows.
        self.file = open(self.folder / "metrics.csv", "w", newline="")  # noqa: SIM115 (closed in `close`)
        self.csv = csv.writer(self.file)
        self.board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=0)
        for row in rows:
            self._write(row)

    def add(self, row: dict[str, float]) -> None:
        """One line for one update."""
        self.rows.append(row)
        self._write(row)
        self.file.flush()

    def _write(self, row: dict[str, float]) -> None:
        if row is self.rows[0]:
            self.csv.writerow(row)
        self.csv.writerow(row.values())
        for name, value in row.items():
            if name != "step":
                self.board.add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        """Draw the learning curve and close the files."""
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot(xlabel="environment steps", ylabel="mean return of the last 100 episodes")
        axes.plot([row["step"] for row in self.rows], [row["return"] for row in self.rows])
        axes.set_title(f"{self.title} ({self.outcome or 'broken off'})")
        axes.grid(alpha=0.3)
        figure.savefig(self.folder / "learning_curve.png", dpi=120)
        self.file.close()
        self.board.close()


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that make a run what it is; folders belong to the call, not to the run."""
    return {name: value for name, value in vars(args).items() if name not in ("out", "overwrite", "resume")}


def save_checkpoint(prog: str, args: argparse.Namespace, **state: Any) -> None:
    """Write a checkpoint whole or not at all, random number generators included."""
    state |= {"program": prog, "settings": settings_of(args), "torch_rng": torch.get_rng_state(), "cuda_rng": None}
    if torch.device(args.device).type == "cuda":
        state["cuda_rng"] = torch.cuda.get_rng_state(args.device)
    torch.save(state, args.out / f"{CHECKPOINT}.tmp")
    os.replace(args.out / f"{CHECKPOINT}.tmp", args.out / CHECKPOINT)


def restore_rng(checkpoint: dict[str, Any], device: str) -> None:
    """Set the random number generators back to where ``save_checkpoint`` saw them."""
    torch.set_rng_state(checkpoint["torch_rng"])
    if torch.device(device).type == "cuda" and checkpoint["cuda_rng"] is not None:
        torch.cuda.set_rng_state(checkpoint["cuda_rng"], device)


class Clock:
    """Wall-clock seconds by name. A GPU is waited for at both ends, so that its work counts where it was asked for."""

    def __init__(self, device: str) -> None:
        self.device, self.seconds = torch.device(device), defaultdict[str, float](float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = self._now()
        yield
        self.seconds[name] += self._now() - started

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class KernelClock(TorchDispatchMode):
    """Within this context, counts the time inside tritonrl's own kernels as ``kernels``.

    Their first call, which compiles them or loads what an earlier process compiled, is ``first kernel call``.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.name = clock, "first kernel call"

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.namespace != "tritonrl":
            return func(*args, **(kwargs or {}))
        with self.clock(self.name):
            self.name = "kernels"
            return func(*args, **(kwargs or {}))


class CtrlC:
    """Within this context the first Ctrl-C only sets ``pressed``; a second one interrupts as usual."""

    pressed = False

    def __enter__(self) -> CtrlC:
        self.previous = signal.signal(signal.SIGINT, self._press)
        return self

    def _press(self, *_: object) -> None:
        self.pressed = True
        signal.signal(signal.SIGINT, self.previous)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self.previous)
