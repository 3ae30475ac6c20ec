"""Coefficients as buffers: registration, and assignment that a compiled graph follows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchrl.objectives import LossModule as TorchRLLossModule

from tritonrl.objectives import LossModule


class Base(LossModule):
    _schedulable_buffers = frozenset({"coeff", "off"})


class Derived(Base):
    _schedulable_buffers = frozenset({"other", "log_alpha"})

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.register_coeff_buffer("coeff", 0.5, **kwargs)
        self.register_coeff_buffer("other", 2)
        self.register_coeff_buffer("off", None)
        self.register_coeff_buffer("fixed", 3.0)


@pytest.mark.parametrize("value", [0.25, 3, -1, np.float64(0.5), np.float32(0.25), np.int64(2)])
def test_a_number_is_copied_into_the_same_buffer(value: Any) -> None:
    loss = Derived(dtype=torch.float64)
    buffer = loss.coeff
    loss.coeff = value
    assert loss.coeff is buffer
    assert loss.coeff.dtype == torch.float64
    assert loss.coeff.item() == float(value)


def test_the_names_of_all_base_classes_count() -> None:
    loss = Derived()
    for name in ("coeff", "other"):
        buffer = getattr(loss, name)
        setattr(loss, name, 0.125)
        assert getattr(loss, name) is buffer
        assert buffer == 0.125


def test_an_integer_start_does_not_round_what_is_scheduled_later() -> None:
    loss = Derived()
    loss.other = 0.75
    assert loss.other == 0.75


def test_what_is_not_schedulable_is_refused_by_torch() -> None:
    with pytest.raises(TypeError):
        Derived().fixed = 1.0
    with pytest.raises(TypeError):
        Derived().coeff = True


def test_a_parameter_of_that_name_refuses_a_number() -> None:
    loss = Derived()
    loss.log_alpha = nn.Parameter(torch.zeros(()))
    with pytest.raises(TypeError):
        loss.log_alpha = 0.5


def test_a_coefficient_that_was_off_can_be_switched_on_and_off() -> None:
    loss = Derived()
    assert loss.off is None
    assert "off" not in loss.state_dict()
    loss.off = 0.5
    assert isinstance(loss.off, torch.Tensor)
    assert "off" in loss.state_dict()
    loss.off = None
    assert loss.off is None
    assert "off" not in loss.state_dict()


def test_a_tensor_replaces_the_buffer_as_in_torch() -> None:
    loss = Derived()
    new = torch.tensor(0.75)
    loss.coeff = new
    assert loss.coeff is new


@pytest.mark.parametrize("value", [True, "a", torch.ones(2), [1.0], 1j])
def test_what_is_no_coefficient_is_refused(value: Any) -> None:
    for base in (LossModule, TorchRLLossModule):
        if base is TorchRLLossModule and isinstance(value, complex):
            continue
        with pytest.raises(ValueError, match="x"):
            base().register_coeff_buffer("x", value)


@pytest.mark.parametrize("value", [0.5, torch.tensor(0.5), torch.tensor([0.5]), torch.tensor(0.5, dtype=torch.float64)])
def test_a_coefficient_is_a_buffer_without_dimensions(value: Any) -> None:
    loss = LossModule()
    loss.register_coeff_buffer("x", value)
    assert loss.x.shape == ()
    assert loss.x == 0.5
    assert loss.x is not value
    assert loss.x.dtype == (value.dtype if isinstance(value, torch.Tensor) else torch.float32)
    assert "x" in dict(loss.named_buffers())


def test_device_and_dtype_are_those_asked_for() -> None:
    loss = LossModule()
    loss.register_coeff_buffer("x", 0.5, device="meta", dtype=torch.float64)
    assert loss.x.device.type == "meta"
    assert loss.x.dtype == torch.float64
