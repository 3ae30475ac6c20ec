"""The examples that TorchRL documents run on tritonrl when their imports are changed, and give TorchRL's numbers.

The examples are read from the docstrings of the installed torchrl when the tests run. Every statement is executed twice,
as it stands and with ``torchrl.objectives`` replaced by ``tritonrl.objectives``, from one seed: where TorchRL gives a
result ours must give the same, and where TorchRL raises (some examples are sketches with names left open) ours must too.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib
import inspect
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torchrl.objectives
import torchrl.objectives.value
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

import tritonrl.objectives
import tritonrl.objectives.value
from tritonrl.objectives import LossModule

MODULES = ("objectives", "objectives.value", "objectives.utils", "objectives.value.functional")

# What TorchRL leaves in the caller's data and ours does not, on purpose (docs/differences.md), in the examples on a name.
NOT_WRITTEN = {
    "ReinforceLoss": ("advantage", "value_target", "state_value", ("next", "state_value"), "loc", "scale"),
    "SACLoss": ("loc", "scale"),
    "IQLLoss": ("loc", "scale"),
    "DiscreteIQLLoss": ("logits",),
}

# Arguments that TorchRL 0.14.1 refuses in its own examples, and what it takes instead.
REPAIRED = {
    'in_keys=["observation"], action_space=spec': 'in_keys=["observation"], spec=spec',
    "DQNLoss(value_network, action_space=action_spec": 'DQNLoss(value_network, action_space="one-hot"',
}

SHARED = {*tritonrl.objectives.__all__, *tritonrl.objectives.value.__all__} & {
    *dir(torchrl.objectives),
    *dir(torchrl.objectives.value),
}


class Block(NamedTuple):
    """Statements that belong together: between two of them there is no prose."""

    title: str
    statements: tuple[str, ...]


def documented(module: str, name: str) -> Iterator[tuple[str, str]]:
    """The docstrings of TorchRL on this name and, of a class, on the methods that it defines itself."""
    subject = getattr(importlib.import_module(f"torchrl.{module}"), name)
    yield name, inspect.getdoc(subject) or ""
    for method, member in vars(subject).items() if inspect.isclass(subject) else ():
        if inspect.isroutine(getattr(subject, method)) and member.__doc__ and not method.startswith("_"):
            yield f"{name}.{method}", inspect.getdoc(getattr(subject, method)) or ""


def is_python(source: str) -> bool:
    """False for formulas that are written like statements."""
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def repaired(source: str) -> str:
    for refused, taken in REPAIRED.items():
        source = source.replace(refused, taken)
    return source


def blocks(module: str, name: str) -> Iterator[Block]:
    for title, text in documented(module, name):
        gathered: list[str] = []
        for part in doctest.DocTestParser().parse(text):
            if isinstance(part, doctest.Example) and is_python(part.source):
                gathered.append(repaired(part.source))
            elif isinstance(part, str) and part.strip() and gathered:
                yield Block(title, tuple(gathered))
                gathered = []
        if gathered:
            yield Block(title, tuple(gathered))


def shared_names() -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for module in MODULES:
        ours, theirs = (importlib.import_module(f"{package}.{module}") for package in ("tritonrl", "torchrl"))
        for name in ours.__all__:
            if hasattr(theirs, name):
                found.setdefault(name, module)
    return [(module, name) for name, module in found.items() if any(blocks(module, name))]


def ours(statement: str) -> str:
    return statement.replace("torchrl.objectives", "tritonrl.objectives")


def execute(statement: str, names: dict[str, Any]) -> Any:
    """Run one statement from a fixed seed: its value if it is an expression, or the exception that it raised."""
    torch.manual_seed(0)
    tree = ast.parse(statement)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(tree, "<example>", "exec"), names)
            return None if last is None else eval(compile(ast.Expression(last.value), "<example>", "eval"), names)
    except Exception as error:
        return error


def check_same(ours: Any, theirs: Any, what: str) -> None:
    if isinstance(theirs, Exception) or isinstance(ours, Exception):
        assert type(ours) is type(theirs), f"{what}: {ours!r}, but TorchRL: {theirs!r}"
    elif isinstance(theirs, TensorDictBase):
        assert set(ours.keys(True, True)) == set(theirs.keys(True, True)), what
        torch.testing.assert_close(ours.to_dict(), theirs.to_dict(), msg=lambda text: f"{what}: {text}")
    elif isinstance(theirs, Tensor):
        torch.testing.assert_close(ours, theirs, msg=lambda text: f"{what}: {text}")
    elif isinstance(theirs, (bool, int, float, str)):
        assert ours == theirs, what
    elif isinstance(theirs, (tuple, list)):
        assert len(ours) == len(theirs), what
        for one, other in zip(ours, theirs, strict=True):
            check_same(one, other, what)


def check_names(ours: dict[str, Any], theirs: dict[str, Any], title: str, what: str) -> None:
    """Every result that a statement gave a name is the same."""
    public = {name for name in theirs if not name.startswith("__")}
    assert public == {name for name in ours if not name.startswith("__")}, what
    for name in public:
        value = theirs[name]
        if isinstance(value, TensorDictBase) and name == "data":
            value = value.exclude(*(key for key in NOT_WRITTEN.get(title, ()) if key not in ours[name].keys(True)))
        if isinstance(value, (Tensor, TensorDictBase, bool, int, float, str)):
            check_same(ours[name], value, f"{what}: {name}")


def sketch_names(block: Block, package: str) -> dict[str, Any]:
    """What the sketches leave open: imports, networks, and a collector."""
    from tensordict.nn import NormalParamExtractor, TensorDictModule
    from torchrl.data import OneHot
    from torchrl.modules import ProbabilisticActor, QValueActor, TanhNormal, ValueOperator

    torch.manual_seed(1)
    layers = torch.nn.Sequential(torch.nn.Linear(3, 4), NormalParamExtractor())
    params = TensorDictModule(layers, ["observation"], ["loc", "scale"])
    actor = ProbabilisticActor(params, ["loc", "scale"], distribution_class=TanhNormal, return_log_prob=True)
    critic = ValueOperator(torch.nn.Linear(3, 1), ["observation"])
    step = {"observation": torch.randn(4, 5, 3), "reward": torch.randn(4, 5, 1)}
    step["done"] = step["terminated"] = torch.rand(4, 5, 1) < 0.2
    data = TensorDict({"observation": torch.randn(4, 5, 3), "next": step}, [4, 5], names=[None, "time"])
    with torch.no_grad():
        actor(data)
    if any("DQNLoss(actor" in statement for statement in block.statements):
        actor = QValueActor(torch.nn.Linear(3, 4), in_keys=["observation"], action_space="one-hot", spec=OneHot(4))
    modules = [importlib.import_module(f"{package}.{module}") for module in MODULES[:2]]
    imported = {name: getattr(module, name) for module in modules for name in SHARED if hasattr(module, name)}
    imported |= {"torch": torch, "nn": torch.nn, "TensorDict": TensorDict, "QValueActor": QValueActor}
    return imported | {"actor": actor, "critic": critic, "datacollector": iter([data.clone() for _ in range(3)])}


def share_weights(mine: dict[str, Any], theirs: dict[str, Any], new: set[str]) -> None:
    """Give our losses the state of TorchRL's: copies of a critic are initialised at random, and not in the same order."""
    for name in new:
        if isinstance(mine.get(name), LossModule):
            mine[name].load_state_dict(theirs[name].state_dict())


def run_block(block: Block) -> list[Any]:
    """Execute a block with either library, statement by statement; what TorchRL's statements gave."""
    mine, theirs = sketch_names(block, "tritonrl"), sketch_names(block, "torchrl")
    given: list[Any] = []
    with contextlib.redirect_stdout(None):
        for statement in block.statements:
            what = f"{block.title}: {statement.strip()}"
            known = set(theirs)
            expected, got = execute(statement, theirs), execute(ours(statement), mine)
            share_weights(mine, theirs, theirs.keys() - known)
            check_same(got, expected, what)
            check_names(mine, theirs, block.title, what)
            given.append(expected)
    return given


@pytest.mark.parametrize(("module", "name"), shared_names())
def test_the_examples_that_torchrl_documents_run_with_the_import_changed(
    module: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RL_WARNINGS", "False")
    # A script that brings its own imports is no sketch. TorchRL 0.14.1 does not run all of its own to their end.
    scripts = []
    for block in blocks(module, name):
        given = run_block(block)
        if block.title == name and any("import " in statement for statement in block.statements):
            scripts.append(not any(isinstance(result, Exception) for result in given))
    assert any(scripts) or not scripts, "no script of TorchRL runs to its end"


def test_there_are_examples_for_every_on_policy_loss_and_estimator() -> None:
    covered = {name for _, name in shared_names()}
    assert {"PPOLoss", "ClipPPOLoss", "KLPENPPOLoss", "A2CLoss", "ReinforceLoss", "LossModule"} <= covered
    assert {"GAE", "TD0Estimator", "TD1Estimator", "TDLambdaEstimator", "VTrace", "KLAdaptiveLR"} <= covered


def test_a_difference_between_the_libraries_would_be_seen() -> None:
    statement = "torch.__version__ if 'torchrl' in Loss.__module__ and not 'tritonrl' in Loss.__module__ else 0"
    imports = "import torch\nfrom torchrl.objectives import A2CLoss as Loss"
    with pytest.raises(AssertionError):
        run_block(Block("made up", (imports, statement)))
