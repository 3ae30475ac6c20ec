"""What the tests of the off-policy losses have in common: small networks, transitions, and a comparison with TorchRL."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase, unravel_key
from tensordict.nn import (
    InteractionType,
    NormalParamExtractor,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
)
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.distributions import Categorical, OneHotCategorical
from torchrl.modules import TanhNormal

from tritonrl.objectives import LossModule

OBSERVATION, ACTION, N_ACTIONS = 5, 3, 4
BATCH = (7,)


# -- networks -----------------------------------------------------------------------------------------------------


class Concatenate(nn.Module):
    """A network of several inputs, side by side."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.network(torch.cat(inputs, -1))


def mlp(n_in: int, n_out: int, hidden: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_in, hidden), nn.Tanh(), nn.Linear(hidden, n_out))


def deterministic_actor(seed: int = 0) -> TensorDictModule:
    """Writes ``action`` in (-1, 1)."""
    torch.manual_seed(seed)
    return TensorDictModule(nn.Sequential(mlp(OBSERVATION, ACTION), nn.Tanh()), ["observation"], ["action"])


def tanh_normal_actor(seed: int = 0) -> ProbabilisticTensorDictSequential:
    """Writes ``loc``, ``scale``, ``action`` and ``action_log_prob``; a continuous action in (-1, 1)."""
    torch.manual_seed(seed)
    network = nn.Sequential(mlp(OBSERVATION, 2 * ACTION), NormalParamExtractor())
    return ProbabilisticTensorDictSequential(
        TensorDictModule(network, ["observation"], ["loc", "scale"]),
        ProbabilisticTensorDictModule(
            ["loc", "scale"],
            ["action"],
            distribution_class=TanhNormal,
            return_log_prob=True,
            default_interaction_type=InteractionType.RANDOM,
        ),
    )


def discrete_actor(seed: int = 0, one_hot: bool = True) -> ProbabilisticTensorDictSequential:
    """Writes ``logits``, ``action`` (one-hot or an index) and ``action_log_prob``."""
    torch.manual_seed(seed)
    return ProbabilisticTensorDictSequential(
        TensorDictModule(mlp(OBSERVATION, N_ACTIONS), ["observation"], ["logits"]),
        ProbabilisticTensorDictModule(
            ["logits"],
            ["action"],
            distribution_class=OneHotCategorical if one_hot else Categorical,
            return_log_prob=True,
            default_interaction_type=InteractionType.RANDOM,
        ),
    )


def make_qvalue(seed: int = 1, key: str = "state_action_value") -> TensorDictModule:
    """Q(o, a) of a continuous action, ``[*B, 1]``."""
    torch.manual_seed(seed)
    return TensorDictModule(Concatenate(mlp(OBSERVATION + ACTION, 1)), ["observation", "action"], [key])


def make_action_values(seed: int = 1, key: str = "action_value") -> TensorDictModule:
    """Q(o, .) of every action, ``[*B, n]``."""
    torch.manual_seed(seed)
    return TensorDictModule(mlp(OBSERVATION, N_ACTIONS), ["observation"], [key])


def make_value(seed: int = 2) -> TensorDictModule:
    """V(o), ``[*B, 1]``."""
    torch.manual_seed(seed)
    return TensorDictModule(mlp(OBSERVATION, 1), ["observation"], ["state_value"])


# -- data ---------------------------------------------------------------------------------------------------------


def _random_action(space: str, batch: tuple[int, ...]) -> Tensor:
    if space == "continuous":
        return torch.rand(*batch, ACTION) * 2 - 1
    index = torch.randint(N_ACTIONS, batch)
    return index if space == "categorical" else nn.functional.one_hot(index, N_ACTIONS)


def transitions(
    space: str = "continuous",
    *,
    batch: tuple[int, ...] = BATCH,
    seed: int = 3,
    n_step: bool = False,
    weights: bool = False,
    mask: bool = False,
) -> TensorDict:
    """Replayed transitions: some terminated, some truncated.

    Args:
        space: ``"continuous"``, ``"one_hot"`` or ``"categorical"``.
        batch: batch size; its last dimension is time for estimators that look further than one step.
        seed: of the data.
        n_step: with ``steps_to_next_obs``, ``[*B, 1]``.
        weights: with ``priority_weight``, ``[*B]``.
        mask: with the validity mask ``shifted_valid``, ``[*B]``.
    """
    torch.manual_seed(seed)
    terminated = torch.rand(*batch, 1) < 0.3
    data = TensorDict(
        {
            "observation": torch.randn(*batch, OBSERVATION),
            "action": _random_action(space, batch),
            "next": {
                "observation": torch.randn(*batch, OBSERVATION),
                "reward": torch.randn(*batch, 1),
                "done": terminated | (torch.rand(*batch, 1) < 0.2),
                "terminated": terminated,
            },
        },
        batch,
    )
    if n_step:
        data["steps_to_next_obs"] = torch.randint(1, 4, (*batch, 1))
    if weights:
        data["priority_weight"] = torch.rand(batch) + 0.1
    if mask:
        data["shifted_valid"] = torch.arange(data.numel()).reshape(batch) % 3 != 1
    return data


def as_double(data: TensorDict) -> TensorDict:
    return data.apply(lambda x: x.double() if x.is_floating_point() else x)


def perturb_targets(loss: Any, seed: int = 7) -> None:
    """Move every target away from its source, the same way for each implementation."""
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in sorted(loss.named_buffers()):
        if name.startswith("target_") and "_params." in name and buffer.is_floating_point():
            buffer.data.add_(0.3 * torch.randn(buffer.shape, generator=generator).to(buffer.dtype))


# -- TorchRL ------------------------------------------------------------------------------------------------------


def backward(loss: Any, out: TensorDictBase) -> dict[str, dict[str, Tensor]]:
    """By loss term and by parameter: its gradient; parameters whose gradient is missing or zero are left out, and terms
    that have none (that of a fixed temperature)."""
    parameters = dict(loss.named_parameters())
    result: dict[str, dict[str, Tensor]] = {}
    terms = {key: value for key, value in out.items() if key.startswith("loss") and value.requires_grad}
    for key, term in terms.items():
        grads = torch.autograd.grad(term.sum(), list(parameters.values()), allow_unused=True, retain_graph=True)
        by_name = dict(zip(parameters, grads, strict=True))
        result[key] = {name: grad for name, grad in by_name.items() if grad is not None and bool(grad.abs().max() > 0)}
    return result


def new_entries(before: TensorDict, after: TensorDict) -> dict[Any, Tensor]:
    """What a call wrote. Entries that were there must be as they were, unless they are the priority."""
    old = dict(before.items(True, True))
    for key, value in old.items():
        if key != "td_error":
            torch.testing.assert_close(after[key], value, rtol=0, atol=0, equal_nan=True)
    return {key: value for key, value in after.items(True, True) if key not in old or key == "td_error"}


def run(loss: Any, data: TensorDict, seed: int = 11) -> tuple[TensorDict, dict[Any, Tensor], TensorDict]:
    """The output, what was written into the data, and the data."""
    given = data.clone()
    torch.manual_seed(seed)
    out = loss(given)
    return out, new_entries(data, given), given


def check_parity(
    build: Callable[[Any], Any],
    ours: Any,
    theirs: Any,
    data: TensorDict,
    *,
    prepare: Callable[[Any], Any] = lambda loss: None,
    differ: Iterable[str] = (),
    only_theirs_writes: Iterable[Any] = (),
    rtol: float = 1e-4,
    atol: float = 1e-6,
) -> tuple[LossModule, Any]:
    """Values, gradients term by term, entries written, in_keys and out_keys are those of TorchRL.

    The state of TorchRL's loss is loaded into ours, strictly, so both have the same weights (ensembles are drawn
    differently) and the same names; both targets are then moved away from their sources.

    Args:
        build: makes the loss of a given class, on fresh networks.
        ours: our class.
        theirs: the class of TorchRL.
        data: the transitions; each loss gets its own copy.
        prepare: called on each loss, e.g. to choose an estimator or keys.
        differ: output entries that are meant to differ in value.
        only_theirs_writes: entries that TorchRL writes into the data on top of what it documents.
        rtol: relative tolerance.
        atol: absolute tolerance.

    Returns:
        Both losses.
    """
    losses = [build(ours), build(theirs)]
    for loss in losses:
        prepare(loss)
    losses[0].load_state_dict(losses[1].state_dict())
    outs, written, grads, sizes = [], [], [], []
    for loss in losses:
        perturb_targets(loss)
        out, entries, _ = run(loss, data)
        outs.append({key: value for key, value in out.items(True, True) if key not in differ})
        sizes.append(out.batch_size)
        written.append(entries)
        grads.append(backward(loss, out))
    assert sizes[0] == sizes[1]
    assert set(outs[0]) == set(outs[1])
    torch.testing.assert_close(*({k: out[k].detach() for k in sorted(out)} for out in outs), rtol=rtol, atol=atol)
    for entry in only_theirs_writes:
        written[1].pop(entry)
    assert set(written[0]) == set(written[1])
    torch.testing.assert_close(written[0], {key: written[1][key] for key in written[0]}, rtol=rtol, atol=atol)
    assert any(grads[0].values())
    assert {key: set(terms) for key, terms in grads[0].items()} == {key: set(terms) for key, terms in grads[1].items()}
    torch.testing.assert_close(grads[0], grads[1], rtol=rtol, atol=atol)
    assert set(losses[0].in_keys) == {unravel_key(key) for key in losses[1].in_keys}
    assert losses[0].out_keys == losses[1].out_keys
    assert vars(losses[0].tensor_keys) == vars(losses[1].tensor_keys)
    return losses[0], losses[1]


# -- torch.compile ------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_dynamo(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty compiler, and no warning about targets."""
    monkeypatch.setenv("RL_WARNINGS", "False")
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def _numbers(
    loss: Any, call: Any, data: TensorDict
) -> tuple[dict[Any, Tensor], dict[Any, Tensor], list[Tensor | None]]:
    out, written, _ = run(call, data)
    terms = [value.sum() for key, value in out.items() if key.startswith("loss")]
    grads = torch.autograd.grad(sum(terms, torch.zeros(())), list(loss.parameters()), allow_unused=True)
    return {key: value.detach() for key, value in out.items(True, True)}, written, list(grads)


def check_compiled(loss: Any, call: Any, data: TensorDict, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Values, gradients and entries written by the compiled call are those of eager mode, random numbers included."""
    eager, compiled = _numbers(loss, loss, data), _numbers(loss, call, data)
    assert any(grad is not None and grad.abs().max() > 0 for grad in eager[2])
    torch.testing.assert_close(compiled[:2], eager[:2], rtol=rtol, atol=atol)
    for grad, expected in zip(compiled[2], eager[2], strict=True):
        assert (grad is None) == (expected is None)
        if grad is not None:
            torch.testing.assert_close(grad, expected, rtol=rtol, atol=atol)


def check_compile_once(
    loss: Any,
    make_data: Callable[..., TensorDict],
    change: Callable[[], Any] = lambda: None,
    *,
    sizes: bool = True,
    **kwargs: Any,
) -> None:
    """One graph; no second one for other data or changed coefficients, nor (``sizes``) for a third batch size."""
    call = torch.compile(loss, fullgraph=True, backend="aot_eager")
    check_compiled(loss, call, make_data(**kwargs))
    with torch.compiler.set_stance("fail_on_recompile"):
        check_compiled(loss, call, make_data(seed=8, **kwargs))
        change()
        check_compiled(loss, call, make_data(**kwargs))
    if not sizes:
        return
    rest = kwargs.pop("batch", BATCH)[1:]
    check_compiled(loss, call, make_data(batch=(9, *rest), **kwargs))  # compiles once more, with a dynamic size
    with torch.compiler.set_stance("fail_on_recompile"):
        for size in (6, 13):
            check_compiled(loss, call, make_data(batch=(size, *rest), **kwargs))


def train(
    loss: Any, updater: Any, batches: list[TensorDict], *, compiled: bool, warm_up: int = 1, lr: float = 0.05
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Gradient steps with a target update, optionally as one compiled graph: the losses, and the state at the end.

    After the first ``warm_up`` steps compiling again is an error.
    """
    parameters = list(loss.parameters())

    def step(data: TensorDict) -> Tensor:
        total = loss.total(loss(data))
        grads = torch.autograd.grad(total, parameters)
        torch._foreach_add_([parameter.data for parameter in parameters], grads, alpha=-lr)
        updater.step()
        return total.detach()

    torch.manual_seed(5)
    if not compiled:
        return [step(data.clone()) for data in batches], loss.state_dict()
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        call = torch.compile(step, fullgraph=True, backend="aot_eager")
        totals = [call(data.clone()) for data in batches[:warm_up]]
        with torch.compiler.set_stance("fail_on_recompile"):
            totals += [call(data.clone()) for data in batches[warm_up:]]
    return totals, loss.state_dict()


def check_training_compiles(
    build: Callable[[], Any],
    make_updater: Callable[[Any], Any],
    make_data: Callable[..., TensorDict],
    warm_up: int = 1,
    **kwargs: Any,
) -> None:
    """Loss, backward, optimiser and target update in one graph train as in eager mode, and compile once."""
    batches = [make_data(seed=seed, **kwargs) for seed in range(3, 5 + 2 * warm_up)]
    results = []
    for compiled in (False, True):
        loss = build()
        results.append(train(loss, make_updater(loss), batches, compiled=compiled, warm_up=warm_up))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)
