"""Reading PTX, counting warps, and a few real kernels compiled for a GPU that is not there."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from perf.__main__ import main
from perf.inspect import Cache, inspect_all
from perf.launches import CAPABILITIES, ELEMENTWISE, QUICK, launches
from perf.occupancy import occupancy
from perf.ptx import Access, accesses
from perf.streams import Inspected, Stream, inspect_launch
from tritonrl.kernels.specs import ALL_SPECS

PTX = """
.visible .entry rows(
	.param .u64 .ptr .global .align 1 rows_param_0,
	.param .u64 .ptr .global .align 1 rows_param_1,
	.param .u32 rows_param_2,
	.param .u64 .ptr .global .align 1 rows_param_3
)
	ld.param.b64 	%rd1, [rows_param_0];
	ld.param.b64 	%rd2, [rows_param_1];
	ld.param.b64 	%rd9, [rows_param_3];
	mad.wide.s32 	%rd3, %r4, 4, %rd1;
	@%p1 ld.global.b64 { %rd7 }, [ %rd9 + 0 ];
	@%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd3 + 0 ];
$L__BB0_2:
	add.s64 	%rd4, %rd2, %rd8;
	add.s64 	%rd5, %rd4, 16;
	@%p2 ld.global.gpu.acquire.b32 %r5, [ %rd5 + 0 ];
	@%p2 st.global.v2.b64 [ %rd5 + 0 ], { %rd6, %rd7 };
	ld.global.b8 { %rs1 }, [ %rd3 + 4 ];
	cp.async.cg.shared.global [ %r6 + 0 ], [ %rd3 + 0 ], 0x10, %r7;
	@%p3 bra 	$L__BB0_2;
	ret;
"""


def test_every_access_is_found_with_its_width_its_tensor_and_whether_it_is_in_a_loop() -> None:
    assert accesses(PTX, ("reward", "output", "steps", "scratch")) == [
        Access(True, 8, "scratch", False),
        Access(True, 16, "reward", False),
        Access(True, 4, "output", True),
        Access(False, 16, "output", True),
        Access(True, 1, "reward", True),
        Access(True, 16, "reward", True),
    ]


@pytest.mark.parametrize(
    ("capability", "registers", "shared", "warps", "expected"),
    [
        (90, 32, 0, 4, 1.0),
        (90, 64, 0, 4, 0.5),
        (90, 255, 0, 8, 0.125),
        (90, 40, 100 * 1024, 4, 0.125),  # two blocks of 100 KiB and 1 KiB fit 228 KiB
        (80, 40, 100 * 1024, 4, 0.0625),  # one fits 164 KiB
        (90, 16, 0, 1, 0.5),  # 32 blocks at most
    ],
)
def test_occupancy_is_limited_by_whatever_runs_out_first(
    capability: int, registers: int, shared: int, warps: int, expected: float
) -> None:
    assert occupancy(capability, registers, shared, warps) == expected


def _stream(**changed: object) -> Stream:
    plain = Stream("reward", "data", (16, 16), 16, 4.0, 4.0)
    return dataclasses.replace(plain, **changed)  # type: ignore[arg-type]


def _inspected(stream: Stream, **changed: object) -> Inspected:
    plain = Inspected("gae/rows", "rows", 64, 0, 0, 0, 0.5, (stream,), ())
    return dataclasses.replace(plain, **changed)  # type: ignore[arg-type]


def test_a_clean_kernel_has_no_findings() -> None:
    assert _inspected(_stream()).findings() == []


@pytest.mark.parametrize(
    ("inspected", "words"),
    [
        (_inspected(_stream(), spilled_bytes=8), "8 B spilled"),
        (_inspected(_stream(), stack_bytes=16), "16 B stack frame"),
        (_inspected(_stream(widths=(16, 4))), "4 B accesses where 16 B are possible"),
        (_inspected(_stream(bytes_per_step=8.0)), "8 B a step, at least 4"),
        (_inspected(_stream(bytes_per_step=2.0)), "only 2 B a step"),
        (_inspected(_stream(), problem="does not compile: oh"), "does not compile"),
    ],
)
def test_each_kind_of_finding_is_found(inspected: Inspected, words: str) -> None:
    assert words in "; ".join(inspected.findings())


def test_taps_and_repeated_flags_are_no_findings() -> None:
    for role in ("tap", "repeated", "other"):
        assert _inspected(_stream(role=role, widths=(1,), bytes_per_step=40.0)).findings() == []


def test_every_op_every_dtype_and_every_capability_is_inspected() -> None:
    every = launches()
    assert len({x.id for x in every}) == len(every)
    assert {x.capability for x in every} == set(CAPABILITIES)
    assert {x.dtype for x in every} == {"float32", "float16", "bfloat16", "float64"}
    assert {x.op for x in every} == {*ALL_SPECS, ELEMENTWISE}
    for op, spec in ALL_SPECS.items():
        asked = {part for x in every if x.op == op for part in x.asked}
        assert ("masks" in asked) == bool(spec.optional) and ("discounts" in asked) == bool(spec.discount_outputs)
    assert {"moments", "derived"} <= {part for x in every for part in x.asked}


def test_quick_has_a_kernel_for_each_of_its_patterns() -> None:
    quick = launches(quick=True)
    assert all(any(x.id.startswith(prefix) for x in quick) for prefix in QUICK) and len(quick) == len(QUICK)


@pytest.mark.parametrize("launch", launches(quick=True), ids=lambda launch: launch.id)
def test_a_kernel_has_no_spill_no_stack_frame_no_scalar_access_and_moves_each_byte_once(launch: object) -> None:
    result = inspect_launch(launch)  # type: ignore[arg-type]
    assert result.findings() == []
    assert result.data and 16 < result.registers <= 255 and 0 < result.occupancy <= 1


def test_the_kernel_that_evicts_the_cache_compiles_and_has_the_name_that_the_profiler_looks_for() -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from perf.evict import NAME, perf_evict_l2

    signature = {"x": "*fp32", "n": "i32", "BLOCK": "constexpr"}
    compiled = triton.compile(
        ASTSource(fn=perf_evict_l2, signature=signature, constexprs={(2,): 4096}), target=GPUTarget("cuda", 90, 32)
    )
    assert compiled.metadata.name == NAME


def test_a_result_is_kept_until_something_that_it_depends_on_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch, compiled = launches(quick=True)[0], []

    def inspect(x: object) -> Inspected:
        compiled.append(x)
        return _inspected(_stream(), id=launch.id)

    monkeypatch.setattr("perf.inspect.inspect_launch", inspect)
    path = tmp_path / "cache.json"
    first = inspect_all([launch], cache=Cache(path, "one").read())
    again = inspect_all([launch], cache=Cache(path, "one").read())
    assert first == again and len(compiled) == 1
    inspect_all([launch], cache=Cache(path, "two").read())
    assert len(compiled) == 2


@pytest.mark.parametrize(("widths", "code"), [((16, 16), 0), ((16, 4), 1)], ids=["wide", "scalar"])
def test_a_scalar_access_makes_the_exit_code_one_and_stands_in_the_record(
    widths: tuple[int, ...], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perf.inspect.inspect_launch", lambda launch: _inspected(_stream(widths=widths), id=launch.id))
    path = tmp_path / "kernels.json"
    arguments = ["inspect", "--quick", "--no-cache", "--jobs", "1", "--json", str(path)]
    assert main(arguments) == code
    made = json.loads(path.read_text())
    assert made["kernels"] == len(QUICK) == len(made["by_id"])
    assert len(made["findings"]) == code * len(QUICK)
    assert {line["narrowest"] for line in made["by_id"].values()} == {min(widths) // 4}


def test_the_capabilities_of_one_kernel_follow_one_another() -> None:
    every = launches()
    for first in range(0, len(every), len(CAPABILITIES)):
        together = every[first : first + len(CAPABILITIES)]
        assert len({x._replace(capability=0) for x in together}) == 1


@pytest.mark.parametrize(
    ("shape", "op", "role", "width"),
    [("tiles", "gae", "data", 16), ("features", "gae", "repeated", 1), ("rows-odd", "gae", "data", 4)],
)
def test_the_layout_decides_what_is_possible(shape: str, op: str, role: str, width: int) -> None:
    """16 bytes of numbers; a flag of several lanes is no stream of data; rows of 129 steps cannot be read in vectors."""
    (launch,) = (x for x in launches(["gae/*/float32"], (90,)) if x.id == f"{op}/{shape}/float32/sm_90")
    found = inspect_launch(launch)
    assert found.findings() == []
    assert {max(s.widths) for s in (*found.loads, *found.stores) if s.role == role and s.least in (4.0, 1.0)} >= {width}
