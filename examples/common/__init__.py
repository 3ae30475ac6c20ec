"""What the training examples share. Nothing here knows an algorithm.

| module | what it is |
| --- | --- |
| ``options`` | the command line, and what cannot work refused in one line |
| ``environments`` | making Gymnasium environments, and stepping N of them side by side |
| ``networks`` | actors and critics |
| ``rollouts`` | transitions kept in a tensordict ``[T, N]`` |
| ``learner`` | what a script supplies: one update, and what of it a checkpoint holds |
| ``on_policy`` | a learner that collects, estimates advantages and descends: PPO, A2C, REINFORCE |
| ``replay`` | transitions kept for longer: a buffer with sampling by priority, and n-step transitions |
| ``sequences`` | replay for models that remember: pieces of episodes |
| ``transitions`` | one step of N environments as transitions, and actions at random |
| ``replay_learner`` | a learner that learns from samples, of this run or of a file: IQL |
| ``off_policy`` | a learner that acts, stores and learns from samples: DQN, DDPG, TD3, SAC |
| ``training`` | the loop around a learner: progress, logs, checkpoints, Ctrl-C, resume, report |
| ``run_log``, ``checkpoints``, ``clocks``, ``interrupt`` | the parts of that loop |
"""

from .checkpoints import CHECKPOINT
from .clocks import Clock, KernelClock
from .environments import ActionRepeat, Environments, Transition, make_env, make_envs, pickles_exactly
from .learner import Learner
from .networks import LocScale, make_action_value, make_actor, make_critic, make_squashed_actor, mlp, relu_mlp
from .off_policy import OffPolicyLearner, off_policy_options
from .on_policy import OnPolicyLearner, on_policy_options
from .options import Parser, common_options, count, fraction, non_negative, number, positive
from .replay import NStep, ReplayBuffer
from .replay_learner import ReplayLearner, replay_options
from .rollouts import Collector
from .sequences import SequenceReplay
from .training import run
from .transitions import present_observation, random_action, take_step

__all__ = [
    "CHECKPOINT",
    "ActionRepeat",
    "Clock",
    "Collector",
    "Environments",
    "KernelClock",
    "Learner",
    "LocScale",
    "NStep",
    "OffPolicyLearner",
    "OnPolicyLearner",
    "Parser",
    "ReplayBuffer",
    "ReplayLearner",
    "SequenceReplay",
    "Transition",
    "common_options",
    "count",
    "fraction",
    "make_action_value",
    "make_actor",
    "make_critic",
    "make_env",
    "make_envs",
    "make_squashed_actor",
    "mlp",
    "non_negative",
    "number",
    "off_policy_options",
    "on_policy_options",
    "pickles_exactly",
    "positive",
    "present_observation",
    "random_action",
    "relu_mlp",
    "replay_options",
    "run",
    "take_step",
]
