"""What lies behind a mask is kept out of the networks."""

from __future__ import annotations

import math

import torch
from tensordict import TensorDict

from tritonrl.objectives.validity import hide_invalid

MASK = torch.tensor([True, False, True, False])


def data() -> TensorDict:
    x = torch.tensor([[1.0], [math.nan], [math.nan], [4.0]])
    nested = TensorDict({"y": torch.tensor([math.inf, math.inf, 3.0, -math.inf])}, [4])
    return TensorDict({"x": x, "nested": nested, "index": torch.arange(4), "valid": MASK}, [4])


def test_only_what_is_invalid_and_not_finite_is_replaced() -> None:
    td = data()
    hide_invalid(td, ["x", ("nested", "y"), "index", "missing"], ("valid",))
    expected_x = torch.tensor([[1.0], [0.0], [math.nan], [4.0]])
    torch.testing.assert_close(td["x"], expected_x, equal_nan=True)
    assert td["nested", "y"].tolist() == [math.inf, 0.0, 3.0, 0.0]
    assert td["index"].tolist() == [0, 1, 2, 3]


def test_a_nested_tensordict_is_cleaned_whole() -> None:
    td = data()
    hide_invalid(td, ["nested"], ("valid",))
    assert td["nested", "y"].tolist() == [math.inf, 0.0, 3.0, 0.0]


def test_the_tensors_of_the_caller_are_not_written_to() -> None:
    td = data()
    copied, x, y = td.copy(), td["x"], td["nested", "y"]
    hide_invalid(copied, ["x", ("nested", "y")], ("valid",))
    assert td["x"] is x
    assert td["nested", "y"] is y
    assert x._version == 0
    assert y[1] == math.inf


def test_without_a_mask_nothing_happens() -> None:
    td = data()
    x = td["x"]
    hide_invalid(td, ["x"], (("collector", "mask"),))
    assert td["x"] is x


def test_no_gradient_reaches_what_is_hidden() -> None:
    td = data()
    x = torch.randn(4, 1).index_fill_(0, torch.tensor([1]), math.nan).requires_grad_()
    td["x"] = x
    hide_invalid(td, ["x"], ("valid",))
    (td["x"] ** 2).sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad[1] == 0
