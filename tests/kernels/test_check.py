"""The self-check passes here, looks at every op, and fails when an op is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tritonrl import kernels
from tritonrl.kernels import check, torch_backend
from tritonrl.kernels.compose import serve
from tritonrl.kernels.specs import SPECS

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
def test_every_op_agrees_with_its_twin_on_this_machine(device: str) -> None:
    results = kernels.self_check(device)
    assert [result.op for result in results[: len(SPECS)]] == list(SPECS)
    assert {"gae (valid, skip)", "vtrace_backward (valid, cu_seqlens)"} <= {
        result.op for result in results[len(SPECS) :]
    }
    for result in results:
        assert result.ok, result
        assert 0 <= result.max_error <= check.TOLERANCE
        assert result.detail == ""
        assert result.backend == {"cpu": "numba", "cuda": "triton"}[device]


def broken(op: str, how: str) -> Any:
    """The twin of ``op`` with one number of one result spoilt."""

    def spoilt(*args: Any) -> Any:
        results = getattr(torch_backend, op)(*args)
        last = results if isinstance(results, Tensor) else results[-1]
        end = (-1,) * last.dim()
        last[end] = last[end] + 1.0 if how == "off" else float("nan")
        return results

    return spoilt


# What a backend has no function for is composed of what it has (kernels/compose.py), and wrong where that is wrong.
@pytest.mark.parametrize("how", ["off", "nan"])
@pytest.mark.parametrize("op", [op for op in SPECS if hasattr(torch_backend, op)])
def test_one_wrong_number_in_one_result_is_found(op: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Backend:
        def __getattr__(self, name: str) -> Any:
            return broken(name, how) if name == op else getattr(torch_backend, name)

    monkeypatch.setattr(check, "backend_for", lambda device: Backend())
    other = "gae" if op != "gae" else "vtrace"
    monkeypatch.setattr(check, "_variants", lambda: [check._Variant(op), check._Variant(other)])
    results = {result.op: result for result in check.self_check()}
    assert [name for name, result in results.items() if not result.ok] == [op]
    assert "contiguous" in results[op].detail
    assert not results[op].max_error <= check.TOLERANCE


def test_the_arguments_are_in_schema_order_and_hide_nan_behind_terminated() -> None:
    for op in SPECS:
        names = [argument.name for argument in getattr(torch.ops.tritonrl, op).default._schema.arguments]
        made = check._arguments(op, 37, 5, "cpu", False)
        args = dict(zip(names[: len(made)], made, strict=True))
        assert args["time_dim"] == -1
        if "next_value" in args:
            assert args["terminated"].any()
            assert (args["next_value"].isnan() == args["terminated"]).all()
            assert (args["done"] | ~args["terminated"]).all()
        transposed = check._arguments(op, 37, 5, "cpu", True)
        assert {x.stride() for x in transposed if isinstance(x, Tensor) and x.dim() == 2} == {(1, 5)}


@pytest.mark.parametrize("variant", check._variants(), ids=lambda variant: variant.name)
def test_the_twin_takes_numbers_of_the_host_wherever_the_data_are(variant: check._Variant) -> None:
    """On a GPU, where discounts given as numbers stay on the host. Meta tensors stand for those of a GPU."""

    def there(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dim() == 0:
            return x
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")

    args = [there(x) for x in check._arguments(variant, 37, 3, "cpu", False)]
    results = serve(variant.op, args, torch_backend)
    assert {x.device.type for x in ((results,) if isinstance(results, Tensor) else results)} == {"meta"}
