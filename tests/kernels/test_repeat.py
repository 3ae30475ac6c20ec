"""A public call like one before it, which goes straight to its kernel: the same numbers, the same errors, nothing stale."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tritonrl import kernels
from tritonrl.kernels import guards, repeat
from tritonrl.kernels.cpu import dispatch, served
from tritonrl.objectives.value import functional

T, N = 37, 21


COMES_FIRST = repeat._comes_first


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if every call had come once before: then it is kept."""
    served.forget()
    monkeypatch.setattr(repeat, "_comes_first", lambda key: False)
    yield
    served.forget()


def draw(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """``[T, N]`` data of one step layout, other numbers for every seed."""
    generator = torch.Generator().manual_seed(seed)

    def floats(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    def flags(share: float) -> Tensor:
        return torch.rand((T, N), generator=generator) < share

    drawn = {name: floats(T, N) for name in ("reward", "value", "next_value", "a", "log_pi", "log_mu")}
    drawn |= {"carry": floats(N), "bootstrap_value": floats(N)}
    return drawn | {"done": flags(0.1), "terminated": flags(0.05), "valid": flags(0.9), "skip": flags(0.2)}


def _gae(x: dict[str, Tensor], *names: str, **options: Any) -> Any:
    given = {name: x[name] for name in names}
    next_value = None if "bootstrap_value" in given else x["next_value"]
    data = x["reward"], x["value"], next_value, x["done"], x["terminated"]
    return kernels.gae(*data, gamma=0.99, lmbda=0.9, **given, **options)


CALLS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "gae": _gae,
    "gae of masked steps": lambda x: _gae(x, "valid", "skip"),
    "gae with one mask": lambda x: _gae(x, "skip"),
    "gae with derived next values": lambda x: _gae(x, "bootstrap_value"),
    "gae with derived next values past masks": lambda x: _gae(x, "bootstrap_value", "valid", "skip"),
    "gae with moments": lambda x: _gae(x, moments=True),
    "gae with derived next values and moments past masks": lambda x: _gae(x, "bootstrap_value", "skip", moments=True),
    "gae of two dtypes with moments": lambda x: kernels.gae(
        *(x["reward"].double(), x["value"], x["next_value"], x["done"]), gamma=0.9, lmbda=0.8, moments=True
    ),
    "gae without terminated": lambda x: kernels.gae(
        *(x["reward"], x["value"], x["next_value"], x["done"]), gamma=0.9, lmbda=0.8
    ),
    "gae of one lane": lambda x: kernels.gae(
        *(x[name][:, 0] for name in ("reward", "value", "next_value", "done")), gamma=0.9, lmbda=0.8, time_dim=-1
    ),
    "gae with a discount for each step": lambda x: kernels.gae(
        *(x["reward"], x["value"], x["next_value"], x["done"]), gamma=x["a"].sigmoid(), lmbda=0.8
    ),
    "gae of a broadcast reward": lambda x: kernels.gae(
        *(x["reward"][:, :1], x["value"], x["next_value"], x["done"]), gamma=0.9, lmbda=0.8
    ),
    "gae of two dtypes": lambda x: kernels.gae(
        *(x["reward"].double(), x["value"], x["next_value"], x["done"]), gamma=0.9, lmbda=0.8
    ),
    "td_lambda_return": lambda x: kernels.td_lambda_return(
        x["reward"], x["next_value"], x["done"], x["terminated"], gamma=0.9, lmbda=0.8
    ),
    "reward_to_go": lambda x: kernels.reward_to_go(x["reward"], x["done"], gamma=0.9, valid=x["valid"]),
    "vtrace": lambda x: kernels.vtrace(
        *(x["log_pi"], x["log_mu"], x["reward"], x["value"], x["next_value"], x["done"]), gamma=0.9
    ),
    "linear_recurrence": lambda x: kernels.linear_recurrence(x["a"], x["reward"], x["carry"], time_dim=0),
    "linear_recurrence forwards": lambda x: kernels.linear_recurrence(x["a"], x["reward"], time_dim=0, reverse=False),
}


def as_tuple(results: Any) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


@pytest.mark.parametrize(("name", "dtype"), [*((name, torch.float32) for name in CALLS), ("gae", torch.bfloat16)])
def test_a_repeated_call_gives_what_a_first_one_gives_to_the_bit(name: str, dtype: torch.dtype) -> None:
    call = CALLS[name]
    first = as_tuple(call(draw(1, dtype)))
    served.forget()
    other = as_tuple(call(draw(2, dtype)))
    assert len(served._repeats) == 1
    again = as_tuple(call(draw(1, dtype)))
    assert len(again) == len(first)
    for x, y, z in zip(again, first, other, strict=True):
        assert x.dtype is y.dtype and x.stride() == y.stride()
        torch.testing.assert_close(x, y, rtol=0, atol=0)
        assert not torch.equal(x, z)


def test_a_repeated_call_is_not_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    _gae(draw(1))
    monkeypatch.setattr("tritonrl.kernels.api._shape", lambda **data: pytest.fail("checked again"))
    _gae(draw(2))


def test_a_discount_may_change_from_call_to_call() -> None:
    x = draw(1)
    found = [kernels.reward_to_go(x["reward"], x["done"], gamma=gamma) for gamma in (0.9, 0.5, 0.0)]
    assert len(served._repeats) == 1
    assert torch.equal(found[2], x["reward"])
    with kernels.use_backend("torch"):
        torch.testing.assert_close(found[1], kernels.reward_to_go(x["reward"], x["done"], gamma=0.5))


def test_a_call_after_another_one_keeps_nothing_of_it_alive() -> None:
    x = draw(1)
    advantage, _ = _gae(x)
    refs = [weakref.ref(x["reward"]), weakref.ref(advantage)]
    assert len(served._repeats) == 1
    del x, advantage
    gc.collect()
    assert [ref() for ref in refs] == [None, None]


def test_a_gradient_is_recorded_though_such_calls_were_repeated() -> None:
    x = draw(1)
    plain, _ = _gae(x)
    _gae(x)
    x["reward"].requires_grad_()
    advantage, _ = _gae(x)
    assert torch.equal(advantage, plain)
    (grad,) = torch.autograd.grad(advantage.sum(), x["reward"])
    assert grad.abs().sum() > 0
    with torch.no_grad():
        assert not _gae(x)[0].requires_grad


def test_the_number_of_threads_may_change_between_calls() -> None:
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 3, 1, 2):
            torch.set_num_threads(count)
            found.append(_gae(draw(1))[0])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, found[0]) for x in found)
    assert sorted(prepared.threads for prepared in dispatch._prepared.values()) == [1, 2, 3]
    assert len(served._repeats) == 3


def test_another_backend_serves_the_next_call_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    x = draw(1)
    _gae(x)
    monkeypatch.setattr(served.Served, "fill", lambda *args: pytest.fail("numba was not asked for"))
    with kernels.use_backend("torch"):
        _gae(x)


def test_what_does_not_fit_is_refused_after_any_number_of_calls_that_fit() -> None:
    x = draw(1)
    for _ in range(3):
        _gae(x)
    with pytest.raises(
        RuntimeError, match=r"done of shape \(37, 20\) does not broadcast to the data's shape \(37, 21\)"
    ):
        _gae(x | {"done": x["done"][:, 1:]})
    with pytest.raises(TypeError, match="done must be a bool tensor, got dtype"):
        _gae(x | {"done": x["reward"]})
    with pytest.raises(ValueError, match="give next_value or bootstrap_value, not both"):
        kernels.gae(
            *(x["reward"], x["value"], x["next_value"], x["done"]),
            gamma=0.9,
            lmbda=0.9,
            bootstrap_value=x["bootstrap_value"],
        )


def test_offsets_on_the_cpu_are_checked_in_every_call() -> None:
    x = draw(1)
    offsets = torch.tensor([0, 10, T])
    for _ in range(3):
        kernels.reward_to_go(x["reward"], x["done"], gamma=0.9, time_dim=0, cu_seqlens=offsets)
    with pytest.raises(ValueError, match="cu_seqlens"):
        wrong = torch.tensor([0, 40, T])
        kernels.reward_to_go(x["reward"], x["done"], gamma=0.9, time_dim=0, cu_seqlens=wrong)


def test_integer_flags_are_read_anew_in_every_call() -> None:
    x = draw(1)
    for done in (x["done"], ~x["done"]):
        as_integers = kernels.reward_to_go(x["reward"], done.int(), gamma=0.9)
        assert torch.equal(as_integers, kernels.reward_to_go(x["reward"], done, gamma=0.9))


def test_data_without_steps_can_be_given_again() -> None:
    nothing = torch.zeros(0, 3)
    for _ in range(3):
        advantage, target = kernels.gae(nothing, nothing, nothing, nothing.bool(), gamma=0.9, lmbda=0.9)
        assert advantage.shape == target.shape == (0, 3)


def test_layouts_without_end_do_not_eat_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "_MOST_KEPT", 5)
    for steps in range(1, 20):
        reward = torch.ones(steps)
        found = kernels.reward_to_go(reward, reward.bool(), gamma=0.9, time_dim=-1)
        assert torch.equal(found, reward)
    assert len(served._repeats) <= 5


def test_a_compiled_function_and_a_transform_see_the_op_after_calls_that_were_repeated() -> None:
    x = draw(1)
    expected, _ = _gae(x)
    _gae(x)
    graph = torch.compile(lambda reward: _gae(x | {"reward": reward})[0], fullgraph=True, backend="eager")
    assert torch.equal(graph(x["reward"]), expected)
    both = torch.func.vmap(lambda reward: _gae(x | {"reward": reward})[0])(torch.stack([x["reward"]] * 2))
    assert torch.equal(both[1], expected)


def test_estimators_go_the_short_way() -> None:
    x = draw(1)
    data = [x[name].mT.unsqueeze(-1).contiguous() for name in ("value", "next_value", "reward", "done", "terminated")]
    first = functional.generalized_advantage_estimate(0.99, 0.95, *data)
    assert len(served._repeats) == 1
    again = functional.generalized_advantage_estimate(0.99, 0.95, *data)
    assert torch.equal(first[0], again[0])


def test_what_has_no_strides_is_refused_as_in_a_first_call() -> None:
    x = draw(1)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            _gae(x | {"reward": x["reward"].to_sparse()})
    _gae(x)
    for other in (x["reward"].to_sparse(), x["reward"].to("meta")):
        with pytest.raises((RuntimeError, ValueError)):
            _gae(x | {"value": other})


def test_tensors_like_those_of_a_call_before_are_known_without_their_layouts_being_looked_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert guards.can_be_asked(), "this torch has no guards, or others than known here"
    for seed in (1, 2):  # found out how it is served, and that it was found
        _gae(draw(seed))
    monkeypatch.setattr(repeat, "_key", lambda *args: pytest.fail("looked up"))
    _gae(draw(3))


def test_without_guards_the_layouts_are_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "can_be_asked", lambda: False)
    found = [_gae(draw(1))[0] for _ in range(4)]
    assert len(served._repeats) == 1 and not repeat._recent
    assert all(torch.equal(x, found[0]) for x in found)


def test_whether_guards_can_be_asked_does_not_depend_on_the_mode_of_the_first_call() -> None:
    dtype = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        for mode in (torch.inference_mode(), torch.no_grad(), torch.enable_grad()):
            with mode:
                assert guards.can_be_asked.__wrapped__()
    finally:
        torch.set_default_dtype(dtype)


@pytest.mark.parametrize("wrong", [lambda *tensors: True, lambda *tensors: False])
def test_guards_that_cannot_tell_tensors_apart_are_not_asked(
    wrong: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guards, "_guard_of", lambda tensors: wrong)
    assert guards.can_be_asked.__wrapped__() is False


def test_a_torch_without_such_guards_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("torch._C._dynamo.guards.TensorGuards")
    assert guards.can_be_asked.__wrapped__() is False


@pytest.mark.parametrize("grad", [True, False])
def test_a_call_whose_gradient_was_not_wanted_serves_none_that_wants_it(grad: bool) -> None:
    x = draw(1)
    x["value"].requires_grad_()
    with torch.no_grad():
        for _ in range(3):
            plain, _ = _gae(x)
    with torch.set_grad_enabled(grad):
        for _ in range(2):
            advantage, _ = _gae(x)
            assert advantage.requires_grad is grad
            assert torch.equal(advantage, plain)


def test_several_layouts_of_one_pattern_and_more_than_are_kept_at_hand() -> None:
    shapes = [(steps, lanes) for steps in (5, 6, 7) for lanes in (1, 3)]
    expected = {}
    for turn in range(3):
        for shape in shapes:
            reward = torch.arange(float(shape[0] * shape[1])).reshape(shape)
            found = kernels.reward_to_go(reward, torch.zeros(shape, dtype=torch.bool), gamma=0.5)
            assert found.shape == shape
            assert torch.equal(found, expected.setdefault(shape, found)), turn
    (kept,) = repeat._recent.values()
    assert len(kept) == repeat._LAYOUTS_PER_PATTERN


def test_inference_tensors_and_ordinary_ones_are_served_alike() -> None:
    x = draw(1)
    plain, _ = _gae(x)
    with torch.inference_mode():
        inference = {name: value.clone() for name, value in x.items()}
        found = [_gae(y)[0] for y in (x, inference) for _ in range(3)]
    assert all(torch.equal(y, plain) for y in found)
    assert not _gae(x)[0].is_inference()


def test_a_tensor_that_is_given_twice_is_served_like_two(monkeypatch: pytest.MonkeyPatch) -> None:
    x = draw(1)
    value, done = x["value"], x["done"]
    expected, _ = kernels.gae(value, value.clone(), value.clone(), done, done.clone(), gamma=0.9, lmbda=0.8)
    asked = []
    monkeypatch.setattr(repeat, "guard_of", lambda tensors: asked.append(tensors))
    for _ in range(4):
        advantage, _ = kernels.gae(value, value, value, done, done, gamma=0.9, lmbda=0.8)
        assert torch.equal(advantage, expected)
    assert not asked, "a guard was made that knows nothing again"


def test_of_calls_that_come_once_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeat, "_comes_first", COMES_FIRST)
    monkeypatch.setattr(repeat, "_MOST_KEPT", 5)
    for steps in range(1, 20):
        reward = torch.ones(steps)
        kernels.reward_to_go(reward, reward.bool(), gamma=0.9, time_dim=-1)
    assert not served._repeats and len(repeat._once) <= 5
    for kept in (0, 0, 1):
        assert len(served._repeats) == kept
        kernels.reward_to_go(torch.ones(50), torch.zeros(50, dtype=torch.bool), gamma=0.9, time_dim=-1)
