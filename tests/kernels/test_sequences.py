"""Packed sequences on the CPU, each computed alone: by any number of threads, in any layout, and never outside their memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tritonrl import kernels
from tritonrl.kernels import packed
from tritonrl.kernels.cpu import dispatch, sequences, served
from tritonrl.kernels.cpu.geometry import SEQUENCES

LENGTHS = [40, 0, 17, 1, 0, 300, 2, 33, 64, 5, 90]
TOTAL = sum(LENGTHS)
OFFSETS = torch.tensor([0, *LENGTHS]).cumsum(0)
# One lane, lanes in a register, a strip of whole registers, and one that is not.
FEATURES = [(), (3,), (32,), (70,), (2, 21)]


@pytest.fixture(autouse=True)
def _small_shares(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Cut even small work into pieces for several threads, but keep many sequences apart."""
    monkeypatch.setattr(dispatch, "STEPS_PER_CHUNK", 64)
    monkeypatch.setattr("tritonrl.kernels.cpu.geometry.MIN_SHARED_STRIP_BYTES", 64)
    served.forget()
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    served.forget()


def draw(features: tuple[int, ...], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (TOTAL, *features)
    drawn = {n: torch.randn(shape, generator=generator).to(dtype) for n in ("reward", "value", "next_value")}
    drawn |= {n: torch.rand(shape, generator=generator) < p for n, p in (("done", 0.05), ("terminated", 0.03))}
    drawn |= {n: torch.rand(shape, generator=generator) < p for n, p in (("valid", 0.9), ("skip", 0.2))}
    return drawn | {"bootstrap": torch.randn((len(LENGTHS), *features), generator=generator).to(dtype)}


def all_ops(
    x: dict[str, Tensor], offsets: Tensor | None, span: slice = slice(None), i: int | None = None
) -> list[Tensor]:
    """Results and gradients of every op with a kernel, of packed sequences or of one sequence."""
    reward, value, next_value, done, terminated, valid, skip = (
        x[n][span] for n in ("reward", "value", "next_value", "done", "terminated", "valid", "skip")
    )
    bootstrap = x["bootstrap"] if i is None else x["bootstrap"][i]
    leaf = reward.detach().requires_grad_()
    both = {"gamma": 0.97, "lmbda": 0.9, "time_dim": 0, "cu_seqlens": offsets}
    found = [*kernels.gae(reward, value, next_value, done, terminated, **both)]
    found += kernels.gae(reward, value, next_value, done, valid=valid, skip=skip, **both)
    found += kernels.gae(reward, value, None, done, terminated, bootstrap_value=bootstrap, **both)
    found += kernels.gae(reward, value, None, done, bootstrap_value=bootstrap, valid=valid, skip=skip, **both)
    found.append(kernels.td_lambda_return(reward, next_value, done, terminated, **both))
    found += kernels.vtrace(
        *(value, next_value, reward, value, next_value, done), gamma=0.97, time_dim=0, cu_seqlens=offsets
    )
    advantage, _ = kernels.gae(leaf, value, next_value, done, terminated, **both)
    found += torch.autograd.grad(advantage.square().sum(), leaf)
    return found


@pytest.mark.parametrize("features", FEATURES, ids=str)
def test_packed_sequences_are_each_alone_and_the_same_to_the_bit_for_any_number_of_threads(
    features: tuple[int, ...],
) -> None:
    x = draw(features)
    spans = [slice(int(begin), int(end)) for begin, end in itertools.pairwise(OFFSETS)]
    alone = [all_ops(x, None, span, i) for i, span in enumerate(spans) if span.stop > span.start]
    served.forget()
    by_threads = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        by_threads.append(all_ops(x, OFFSETS))
    for found, *others, expected in zip(*by_threads, map(torch.cat, zip(*alone, strict=True)), strict=True):
        torch.testing.assert_close(found, expected)  # a short sequence alone has shorter registers, and other roundings
        assert all(torch.equal(other, found) for other in others)
    plans = [prepared.plan for prepared in dispatch._prepared.values()]
    assert all(plan.words[SEQUENCES] == len(LENGTHS) and plan.pieces == 1 for plan in plans)
    assert any(prepared.chunks > 1 for prepared in dispatch._prepared.values())


@pytest.mark.parametrize("features", FEATURES, ids=str)
def test_the_ends_need_not_be_written_into_done(features: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    x = draw(features)
    monkeypatch.setattr(packed, "ends", lambda *args: pytest.fail("a pass over the flags"))
    with torch.no_grad():
        kernels.gae(
            *(x["reward"], x["value"], None, x["done"]),
            bootstrap_value=x["bootstrap"],
            **{"gamma": 0.9, "lmbda": 0.9, "time_dim": 0, "cu_seqlens": OFFSETS, "skip": x["skip"]},
        )


def test_lanes_in_front_of_time_in_memory_and_broadcast_operands_fit() -> None:
    x = draw((6,))
    given = {"gamma": torch.tensor([0.9]), "lmbda": torch.linspace(0, 1, TOTAL)[:, None], "time_dim": 0}
    given["cu_seqlens"] = OFFSETS.int()
    expected = kernels.gae(x["reward"], x["value"], x["next_value"], x["done"][:, :1], **given)
    in_front = {name: value.T.contiguous().T for name, value in x.items()}
    found = kernels.gae(in_front["reward"], in_front["value"], x["next_value"], x["done"][:, :1], **given)
    assert found[0].stride() == (1, TOTAL)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    bootstrap = x["bootstrap"][:, :1]
    derived = [
        kernels.gae(y["reward"], y["value"], None, y["done"], bootstrap_value=bootstrap, **given)[0]
        for y in (x, in_front)
    ]
    torch.testing.assert_close(*derived)


def test_lanes_that_no_plan_can_merge_are_computed_with_the_ends_in_done() -> None:
    x = draw((2, 3, 2))
    done = x["done"][:, :1, :, :1].expand_as(x["done"])
    given = {"gamma": 0.9, "lmbda": 0.9, "time_dim": 0, "cu_seqlens": OFFSETS, "bootstrap_value": x["bootstrap"]}
    found, _ = kernels.gae(x["reward"], x["value"], None, done, **given)
    expected, _ = kernels.gae(x["reward"], x["value"], None, done.contiguous(), **given)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("count", [1, 3])
def test_few_long_sequences_are_cut_into_pieces_that_threads_share(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tritonrl.kernels.cpu.geometry.MIN_PIECE", 50)
    monkeypatch.setattr("tritonrl.kernels.cpu.geometry.STEPS_BETWEEN_MARKS", 32)
    torch.set_num_threads(2)
    x = draw(())
    offsets = torch.linspace(0, TOTAL, count + 1).long()
    assert sequences.is_better_as_one(offsets, x["reward"])
    given = {"gamma": 0.9, "lmbda": 0.9, "time_dim": 0}
    data = [x[n] for n in ("reward", "value", "next_value", "done")]
    found, _ = kernels.gae(*data, **given, cu_seqlens=offsets)
    assert any(p.plan.pieces > 1 for p in dispatch._prepared.values())
    for begin, end in itertools.pairwise(offsets):
        expected, _ = kernels.gae(*(y[begin:end] for y in data), **given)
        torch.testing.assert_close(found[begin:end], expected)


@pytest.mark.parametrize(
    "wrong", [[0, 600], [1, TOTAL], [0, 30, 20, TOTAL], [0, TOTAL + 1], [-4, TOTAL], [0], []], ids=str
)
def test_offsets_that_do_not_fit_lead_no_kernel_astray_whoever_calls(wrong: list[int]) -> None:
    x, number = draw(()), torch.tensor(0.9, dtype=torch.float64)
    data = [x[n] for n in ("reward", "value", "next_value", "done")]
    with pytest.raises(ValueError, match="cu_seqlens must go from 0 to 552 and never decrease"):
        torch.ops.tritonrl.gae(*data, None, number, number, -1, None, None, torch.tensor(wrong, dtype=torch.int64))
    with pytest.raises(ValueError, match="cu_seqlens must go from 0 to 552 and never decrease"):
        torch.ops.tritonrl.gae_extended(
            *data, None, number, number, -1, True, None, None, None, torch.tensor(wrong, dtype=torch.int64)
        )


def test_offsets_of_another_type_of_tensor_are_looked_at_too() -> None:
    x = draw(())
    wrong = torch.nn.Parameter(OFFSETS + 1, requires_grad=False)
    with pytest.raises(ValueError, match="cu_seqlens must go from 0 to 552"):
        kernels.reward_to_go(x["reward"], x["done"], gamma=0.9, time_dim=0, cu_seqlens=wrong)


def test_a_compiled_graph_refuses_offsets_that_do_not_fit_when_it_runs() -> None:
    x = draw(())
    data = [x[n] for n in ("reward", "done")]

    @torch.compile(backend="eager", fullgraph=True)
    def compiled(offsets: Tensor) -> Tensor:
        return kernels.reward_to_go(*data, gamma=0.9, time_dim=0, cu_seqlens=offsets)

    assert compiled(OFFSETS).shape == (TOTAL,)
    with pytest.raises(ValueError, match="cu_seqlens must go from 0 to 552"):
        compiled(OFFSETS + 1)


def test_a_repeated_call_takes_other_offsets_and_looks_at_them() -> None:
    x = draw(())
    data = [x[n] for n in ("reward", "done")]

    def call(offsets: Tensor) -> Tensor:
        return kernels.reward_to_go(*data, gamma=0.9, time_dim=0, cu_seqlens=offsets)

    for _ in range(3):
        call(OFFSETS)
    assert len(served._repeats) == 1
    others = torch.arange(len(LENGTHS) + 1) * 50
    others[-1] = TOTAL
    found = call(others)
    assert len(served._repeats) == 1
    served.forget()
    assert torch.equal(call(others), found)
    with pytest.raises(ValueError, match="cu_seqlens must go from 0 to 552"):
        call(others + 1)
