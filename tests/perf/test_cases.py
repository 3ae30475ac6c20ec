"""The registry is well formed, and a case knows its bytes."""

from __future__ import annotations

import pytest
import torch

from perf.cases import Case, registry, select
from perf.data import LAYOUTS, RAGGED, VARIANTS, make_problem, minimum_bytes, stored_bytes
from perf.ops import OPS, kernel_of, unsupported

EVERY = [*registry("cpu"), *registry("cuda")]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_two_cases_of_a_device_share_an_id(device: str) -> None:
    ids = [case.id for case in registry(device)]
    assert len(ids) == len(set(ids)) > 50


def test_every_case_names_an_op_a_layout_a_dtype_and_variants_that_exist() -> None:
    for case in EVERY:
        assert case.op in OPS and case.layout in LAYOUTS, case.id
        assert isinstance(getattr(torch, case.dtype), torch.dtype), case.id
        assert set(case.variants) <= set(VARIANTS), case.id
        assert case.direction in ("forward", "backward") and case.mode in ("eager", "compiled", "graph"), case.id
        assert case.regime in ("simulators", "classic", "tokens") and 0 <= case.done < 1, case.id
        assert case.lanes % LAYOUTS[case.layout].features == 0, case.id


def test_cuda_graphs_are_asked_for_on_cuda_only() -> None:
    assert not [case for case in registry("cpu") if case.mode == "graph"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_quick_is_a_part_of_the_whole(device: str) -> None:
    quick, whole = registry(device, quick=True), registry(device)
    assert 0 < len(quick) < len(whole) / 2
    assert {case.id for case in quick} <= {case.id for case in whole}


def test_every_shape_that_a_target_names_is_in_the_registry() -> None:
    shapes = {(case.shape, case.layout) for case in registry("cpu") if case.op == "gae"}
    for shape in (
        "8x128",
        "8x2048",
        "64x1024",
        "1024x128",
        "4096x128",
        "16384x32",
        "16384x128",
        "256x4096",
        "1x100000",
        "8x65536",
    ):
        assert {(shape, "NT"), (shape, "TN")} <= shapes
    on_gpu = {(case.shape, case.layout) for case in registry("cuda") if case.op == "gae"}
    for shape in ("32768x8", "32768x16", "4096x32", "8192x2048", "8192x4096", "64x131072", f"1x{2**24}"):
        assert {(shape, "NT"), (shape, "TN")} <= on_gpu


def test_a_pattern_selects_by_any_part_of_the_id() -> None:
    chosen = select(EVERY, ["vtrace/*/backward"])
    assert chosen and all(case.op == "vtrace" and case.direction == "backward" for case in chosen)
    assert select(EVERY, []) == EVERY and select(EVERY, ["no such thing"]) == []


def test_a_case_survives_a_record_and_ignores_fields_that_a_later_version_added() -> None:
    case = Case("vtrace", "tokens", 3, 5, "TN", "float64", 0.1, ("one_flag",), "backward")
    assert Case.from_dict(case.as_dict() | {"packed": True}) == case


def test_gae_moves_22_bytes_a_step_forwards_and_backwards() -> None:
    for direction in ("forward", "backward"):
        problem = make_problem(Case("gae", "classic", 8, 16, direction=direction), "cpu")
        assert minimum_bytes(problem) == 22 * 8 * 16


@pytest.mark.parametrize(
    ("variants", "steps_bytes"),
    [(("bootstrap",), 18), (("valid",), 23), (("valid", "skip"), 24), (("packed",), 22), (("moments",), 22)],
)
def test_masks_cost_a_byte_and_a_bootstrap_row_saves_four(variants: tuple[str, ...], steps_bytes: int) -> None:
    problem = make_problem(Case("gae", "tokens", 8, 16, variants=variants), "cpu")
    once = sum(stored_bytes(problem.arguments[x]) for x in ("cu_seqlens", "bootstrap_value") if x in problem.arguments)
    assert minimum_bytes(problem) == steps_bytes * 8 * 16 + once


def test_every_ragged_variant_is_measured_on_both_devices_and_in_quick() -> None:
    for device in ("cpu", "cuda"):
        tokens = {name for case in registry(device) if case.regime == "tokens" for name in case.variants}
        assert set(RAGGED) <= tokens
        assert (
            any({"packed", "skip"} <= set(case.variants) for case in registry(device, quick=True)) or device == "cuda"
        )


def test_what_does_not_count_is_nan_in_the_data() -> None:
    for name in ("valid", "skip"):
        problem = make_problem(Case("gae", "tokens", 8, 64, "TN", variants=(name,)), "cpu")
        counts = problem.arguments["valid"] if name == "valid" else ~problem.arguments["skip"]
        assert 0 < int(counts.sum()) < counts.numel()
        for x in problem.full_tensors():
            assert torch.equal(x.isnan(), ~counts)


def test_a_flag_that_stands_for_several_features_is_counted_once() -> None:
    problem = make_problem(Case("gae", "classic", 8, 16, "NTF", variants=("one_flag",)), "cpu")
    assert minimum_bytes(problem) == 8 * 16 * 20 + 8 * 16 // 4


def test_an_expanded_tensor_counts_its_distinct_elements() -> None:
    assert stored_bytes(torch.zeros(4, 1, 3).expand(4, 7, 3)) == 4 * 3 * 4
    assert stored_bytes(torch.zeros(0, 3)) == 0


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_our_function_takes_the_arguments_of_every_problem(op: str, layout: str) -> None:
    problem = make_problem(Case(op, "classic", 8, 5, layout), "cpu")
    assert unsupported(op, problem.arguments) is None
    results = kernel_of(op)(**problem.arguments)
    for result in (results,) if isinstance(results, torch.Tensor) else results:
        assert result.shape == problem.shape


def test_an_argument_that_our_function_does_not_take_is_named() -> None:
    assert unsupported("gae", {"reward": 1, "packed": 2}) == "gae takes no packed"


def test_a_problem_is_drawn_alike_twice_and_differs_between_cases() -> None:
    case = Case("gae", "classic", 4, 6)
    first, second = (make_problem(case, "cpu").arguments["value"] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, make_problem(Case("gae", "tokens", 4, 6), "cpu").arguments["value"])
