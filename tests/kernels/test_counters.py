"""Counters are handed out so that no two launches that may run at once have the same, and are zeros like any tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tritonrl.kernels import counters

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "TURN", 3)
    monkeypatch.setattr(counters, "CAPTURED", 2)
    monkeypatch.setattr(counters, "_by_device", {})


def test_counters_come_round_after_all_others_and_are_as_aligned_as_tensors() -> None:
    addresses = [counters.counter_on(CPU).data_ptr() for _ in range(7)]
    assert addresses[3:] == addresses[:4] and len(set(addresses)) == 3
    assert all(address % 16 == 0 for address in addresses)
    assert not counters.counter_on(CPU).any()


def test_a_captured_launch_keeps_its_counter_for_itself_until_none_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """On memory of the host, because nothing but the choice is looked at; what is left then is a memset in the graph."""
    counters._by_device[CUDA] = counters.Counters(CPU)
    capturing = [False]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    ordinary = {counters.counter_on(CUDA).data_ptr() for _ in range(10)}
    capturing[0] = True
    zeros: list[Any] = []
    monkeypatch.setattr(torch, "zeros", lambda *size, **options: zeros.append(options["device"]) or "of the graph")
    kept = [counters.counter_on(CUDA) for _ in range(4)]
    assert kept[2:] == ["of the graph"] * 2 and zeros == [CUDA] * 2
    addresses = {x.data_ptr() for x in kept[:2]}
    assert len(addresses) == 2 and not addresses & ordinary
    capturing[0] = False
    assert {counters.counter_on(CUDA).data_ptr() for _ in range(10)} == ordinary


def test_before_anything_was_launched_a_capture_makes_no_lasting_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *size, **options: "of the graph")
    assert counters.counter_on(CUDA) == "of the graph"
    assert counters._by_device == {}


def test_counters_are_ordinary_tensors_whatever_the_mode_of_the_first_launch() -> None:
    with torch.inference_mode():
        counters.counter_on(CPU)
    (made,) = counters._by_device.values()
    assert not made.all.is_inference()


def test_what_keeps_them_from_being_made_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*size: int, **options: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        counters.counter_on(CPU)
    assert counters._by_device == {}
