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
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

MODULES = ("objectives", "objectives.value", "objectives.utils", "objectives.value.functional")

# Variables that are meant to differ: of the example on the first, that of the name of the second.
MEANT = {("ReinforceLoss", "data"): "a REINFORCE loss leaves the caller's tensordict alone"}


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


def blocks(module: str, name: str) -> Iterator[Block]:
    for title, text in documented(module, name):
        gathered: list[str] = []
        for part in doctest.DocTestParser().parse(text):
            if isinstance(part, doctest.Example) and is_python(part.source):
                if part.source.startswith("import torch\n") and gathered:  # a new script without prose before it
                    yield Block(title, tuple(gathered))
                    gathered = []
                gathered.append(part.source)
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
    assert ours.keys() == theirs.keys(), what
    for name, value in theirs.items():
        compared = isinstance(value, (Tensor, TensorDictBase, bool, int, float, str)) and not name.startswith("__")
        if compared and (title, name) not in MEANT:
            check_same(ours[name], value, f"{what}: {name}")


def sketch_names() -> dict[str, Any]:
    """What the sketches leave open: networks, and a collector."""
    from tensordict.nn import NormalParamExtractor, TensorDictModule
    from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator

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
    return {"actor": actor, "critic": critic, "datacollector": iter([data.clone() for _ in range(3)])}


def run_block(block: Block) -> list[Any]:
    """Execute a block with either library, statement by statement; what TorchRL's statements gave."""
    mine, theirs = sketch_names(), sketch_names()
    given: list[Any] = []
    with contextlib.redirect_stdout(None):
        for statement in block.statements:
            what = f"{block.title}: {statement.strip()}"
            expected, got = execute(statement, theirs), execute(ours(statement), mine)
            check_same(got, expected, what)
            check_names(mine, theirs, block.title, what)
            given.append(expected)
    return given


@pytest.mark.parametrize(("module", "name"), shared_names())
def test_the_examples_that_torchrl_documents_run_with_the_import_changed(
    module: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RL_WARNINGS", "False")
    for block in blocks(module, name):
        given = run_block(block)
        # A script that brings its own imports is no sketch: it must have run to its end.
        if any("import torch" in statement for statement in block.statements):
            errors = [result for result in given if isinstance(result, Exception)]
            assert not errors, f"{block.title}: TorchRL itself does not run this: {errors}"


def test_there_are_examples_for_every_on_policy_loss_and_estimator() -> None:
    covered = {name for _, name in shared_names()}
    assert {"PPOLoss", "ClipPPOLoss", "KLPENPPOLoss", "A2CLoss", "ReinforceLoss", "LossModule"} <= covered
    assert {"GAE", "TD0Estimator", "TD1Estimator", "TDLambdaEstimator", "VTrace", "KLAdaptiveLR"} <= covered


def test_a_difference_between_the_libraries_would_be_seen() -> None:
    statement = "torch.__version__ if 'torchrl' in Loss.__module__ and not 'tritonrl' in Loss.__module__ else 0"
    imports = "import torch\nfrom torchrl.objectives import A2CLoss as Loss"
    with pytest.raises(AssertionError):
        run_block(Block("made up", (imports, statement)))
