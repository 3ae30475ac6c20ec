"""What the compiler makes of every kernel, for GPUs that need not be there: no spills, wide accesses, registers to spare."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from perf.ptx import accesses
from tritonrl.kernels import check
from tritonrl.kernels.backend import interpreting
from tritonrl.kernels.specs import SPECS, argument_names, by_name

pytest.importorskip("triton", reason="the kernels are compiled by Triton")
if interpreting():
    pytest.skip("with TRITON_INTERPRET nothing is compiled", allow_module_level=True)

from tritonrl.kernels import elementwise, families, launch
from tritonrl.kernels.ahead_of_time import Compiled, compile_for, compile_standardise

# Name: (lanes, steps, lanes contiguous), and the strategy that they are there for.
LAYOUTS = {
    "time contiguous": ((4096, 1024, False), "rows"),
    "lanes contiguous": ((2**20, 64, True), "lanes"),
    "short rows": ((32768, 8, False), "rows"),
    "one long row": ((1, 2**20, False), "split"),
    "few long lanes": ((64, 4096, True), "split"),
    "long rows": ((4096, 8192, False), "rows"),
    "tiles of lanes": ((8192, 1024, True), "rows"),
}
CAPABILITIES = (80, 90, 100)
WITH_DISCOUNTS = [op for op in SPECS if "bool with_discounts" in SPECS[op].schema]


def arguments(op: str, layout: str, dtype: torch.dtype = torch.float32, with_discounts: bool = True) -> list[Any]:
    """Those of the self-check in the shape of the layout: no numbers, because none are needed."""
    (lanes, steps, lanes_contiguous), _ = LAYOUTS[layout]

    def stretched(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dim() == 0:
            return x
        kind = dtype if x.is_floating_point() else x.dtype
        if x.dim() == 1:
            return torch.empty(lanes, dtype=kind, device="meta")
        shape = (steps, lanes) if lanes_contiguous else (lanes, steps)
        full = torch.empty(shape, dtype=kind, device="meta")
        return full.t() if lanes_contiguous else full

    args = [stretched(x) for x in check._arguments(op, 2, 2, "cpu", lanes_contiguous)]
    if op in WITH_DISCOUNTS:
        args[-1] = with_discounts
    return args


def compiled(op: str, layout: str, capability: int, *, dtype: torch.dtype = torch.float32, **more: Any) -> Compiled:
    """The kernel, looked at for what is never allowed."""
    found = compile_for(op, arguments(op, layout, dtype, **more), capability)
    assert found.plan.strategy == LAYOUTS[layout][1]
    assert (found.spilled_bytes, found.stack_bytes) == (0, 0)
    assert 0 < found.registers <= 255
    assert found.registers * 32 * found.plan.warps <= 65536, "a program has to fit a multiprocessor"
    return found


def stepped(op: str, args: list[Any]) -> list[tuple[torch.dtype, int]]:
    """Dtype and tap of every input that is read step by step."""
    inputs = getattr(families, op)(*args).inputs
    return [(x.dtype, tap) for x, tap in inputs if isinstance(x, Tensor) and x.dim()]


def loads(found: Compiled, width: str) -> int:
    return found.accesses.get(f"ld.global.{width}", 0)


def loops(ptx: str) -> list[list[str]]:
    """The lines of every loop, from its label to the branch back."""
    lines, at, found = ptx.splitlines(), dict[str, int](), []
    for i, line in enumerate(lines):
        if label := re.match(r"(\$L__BB\w+):", line):
            at[label[1]] = i
        if (branch := re.search(r"\bbra(?:\.uni)?\s+(\$L__BB\w+)", line)) and branch[1] in at:
            found.append(lines[at[branch[1]] : i + 1])
    return found


def places(lines: list[str], what: str) -> list[int]:
    return [i for i, line in enumerate(lines) if what in line]


def assert_rows_of_vectors(found: Compiled, inputs: list[tuple[torch.dtype, int]], outputs: int) -> None:
    """Of float32, each thread reads four steps of a number at once (16 bytes), and four flags at once (4 bytes).

    A tap is off by one step and so by one number: these are read one by one (from the cache, which has the lines).
    """
    assert found.plan.vector == 4
    stored = vectors = found.plan.lanes * found.plan.vectors // (32 * found.plan.warps)
    if found.plan.ahead and loops(found.ptx):
        vectors *= 2  # the first tile is fetched before the loop
    numbers = [tap for dtype, tap in inputs if dtype is torch.float32]
    flags = [tap for dtype, tap in inputs if dtype is torch.bool]
    assert loads(found, "v4.b32") == numbers.count(0) * vectors
    assert loads(found, "b8") == 4 * (len(flags) - flags.count(0)) * vectors
    singly = flags.count(0) * vectors + 4 * (len(numbers) - numbers.count(0)) * vectors
    carry = int(found.op == "linear_recurrence")
    assert loads(found, "b32") == singly + carry
    assert found.accesses["st.global.v4.b32"] == outputs * stored
    assert not any(name.startswith("st.global") and name != "st.global.v4.b32" for name in found.accesses)


def assert_strips_of_vectors(found: Compiled, inputs: list[tuple[torch.dtype, int]], outputs: int) -> None:
    """Of float32, each thread owns four neighbouring lanes: 16 bytes of a number, four flags at once, taps included."""
    assert found.plan.lanes == 4 * 32 * found.plan.warps
    numbers = sum(dtype is torch.float32 for dtype, _ in inputs)
    flags = sum(dtype is torch.bool for dtype, _ in inputs)
    carry = int(found.op == "linear_recurrence")
    # One input may be read at two steps that the compiler knows to be the same.
    assert 0 < loads(found, "v4.b32") <= numbers * found.plan.unroll + carry
    assert loads(found, "v4.b32") >= (numbers - sum(tap != 0 for _, tap in inputs)) * found.plan.unroll + carry
    assert loads(found, "b32") <= flags * found.plan.unroll
    assert loads(found, "b8") == loads(found, "b16") == 0
    assert found.accesses["st.global.v4.b32"] == outputs * found.plan.unroll
    assert not any(name.startswith("st.global") and name != "st.global.v4.b32" for name in found.accesses)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("layout", ["time contiguous", "lanes contiguous"])
@pytest.mark.parametrize("op", SPECS)
def test_every_op_compiles_without_spills_and_with_wide_accesses(op: str, layout: str, capability: int) -> None:
    found = compiled(op, layout, capability)
    outputs = SPECS[op].outputs + SPECS[op].discount_outputs
    look = assert_rows_of_vectors if found.plan.strategy == "rows" else assert_strips_of_vectors
    look(found, stepped(op, arguments(op, layout)), outputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", ["time contiguous", "lanes contiguous"])
@pytest.mark.parametrize("op", SPECS)
def test_other_dtypes_compile_without_spills_and_with_wide_accesses(op: str, layout: str, dtype: torch.dtype) -> None:
    found = compiled(op, layout, 90, dtype=dtype)
    wide = "v4.b32" if dtype is torch.bfloat16 else "v2.b64"
    assert loads(found, wide) > 0
    stores = {name for name in found.accesses if name.startswith("st.global")}
    assert stores == {f"st.global.{wide}"}


@pytest.mark.parametrize("layout", ["short rows", "one long row", "few long lanes"])
@pytest.mark.parametrize("op", ["gae", "linear_recurrence_backward", "td_lambda_return_backward", "vtrace_backward"])
def test_other_shapes_compile_without_spills(op: str, layout: str) -> None:
    found = compiled(op, layout, 90)
    assert loads(found, "v4.b32") + loads(found, "v2.b32") > 0, "the data are read in vectors"


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("layout", ["long rows", "tiles of lanes"])
@pytest.mark.parametrize("op", ["gae", "reward_to_go", "gae_backward", "td_lambda_return_backward"])
def test_the_loads_of_the_next_tile_are_issued_before_the_scan(op: str, layout: str, capability: int) -> None:
    """In the loop over tiles every load stands in front of the first shuffle, and no number is looked at before it.

    (Flags are: four come in a word, which is taken apart behind the load. The assembler does that after the first barrier.)
    """
    found = compiled(op, layout, capability, with_discounts=False)
    assert found.plan.ahead
    (body,) = (lines for lines in loops(found.ptx) if places(lines, "shfl"))
    issued, first_shuffle, stores = places(body, "ld.global"), places(body, "shfl")[0], places(body, "st.global")
    assert len(issued) == sum(n for name, n in found.accesses.items() if name.startswith("ld.global")) // 2
    assert max(issued) < first_shuffle < min(stores)
    for i in places(body, "ld.global.v4"):
        arriving = re.findall(r"%r\w+", body[i].split("{")[1].split("}")[0])
        assert len(arriving) == 4
        between = "\n".join(body[i + 1 : first_shuffle])
        assert not [x for x in arriving if re.search(rf"{x}\b", between)]


@pytest.mark.parametrize("op", ["gae", "vtrace_backward"])
def test_a_single_tile_has_no_loop_and_is_fetched_once(op: str) -> None:
    found = compiled(op, "short rows", 90)
    assert not loops(found.ptx)


@pytest.mark.parametrize("layout", ["long rows", "tiles of lanes"])
@pytest.mark.parametrize("op", SPECS)
def test_tiles_one_after_the_other_compile_without_spills(op: str, layout: str) -> None:
    found = compiled(op, layout, 90, with_discounts=False)
    assert {name for name in found.accesses if name.startswith("st.global")} == {"st.global.v4.b32"}


@pytest.mark.parametrize("op", WITH_DISCOUNTS)
def test_without_gradients_of_discounts_less_is_written_and_no_more_is_read(op: str) -> None:
    found = compiled(op, "time contiguous", 90, with_discounts=False)
    args = arguments(op, "time contiguous", with_discounts=False)
    assert_rows_of_vectors(found, stepped(op, args), SPECS[op].outputs)
    assert len(stepped(op, args)) <= len(stepped(op, arguments(op, "time contiguous")))


def test_what_is_absent_costs_nothing() -> None:
    args = arguments("gae", "time contiguous")
    names = [argument.name for argument in torch.ops.tritonrl.gae.default._schema.arguments]
    args[names.index("terminated")] = None
    args[names.index("lmbda")] = torch.tensor(0.95, dtype=torch.float64)
    found = compile_for("gae", args, 90)
    vectors = found.plan.lanes * found.plan.vectors // (32 * found.plan.warps)
    assert loads(found, "v4.b32") == 3 * vectors  # reward, value, next value
    assert loads(found, "b32") == vectors  # done
    assert len(found.accesses) == 3


@pytest.mark.parametrize("layout", ["time contiguous", "lanes contiguous", "one long row"])
@pytest.mark.parametrize(("op", "with_terminated"), [("gae", True), ("gae", False), ("vtrace_backward", False)])
def test_the_ends_of_packed_sequences_cost_only_reads_of_the_offsets(
    op: str, with_terminated: bool, layout: str
) -> None:
    """Data and flags are read and written as without them; done once, even where it also is what is terminal."""
    given = by_name(op, arguments(op, layout, with_discounts=False))
    if not with_terminated:
        given["terminated"] = None
    plain = compile_for(op, list(given.values()), 90)
    given["cu_seqlens"] = torch.empty(1000, dtype=torch.int64)
    packed = compile_for(op, list(given.values()), 90)
    assert packed.plan == plain.plan._replace(limit=packed.plan.limit)
    assert (packed.spilled_bytes, packed.stack_bytes) == (0, 0)
    assert 0 < packed.registers <= plain.registers + 48
    offsets = packed.accesses.pop("ld.global.b64")
    assert packed.accesses == plain.accesses
    places = packed.plan.unroll if packed.plan.strategy == "lanes" else packed.plan.vector
    assert offsets >= 2 + 2 * places  # the span; for every step, the offset that closes it


def test_rows_that_are_not_aligned_get_narrower_accesses_and_no_spills() -> None:
    names = [argument.name for argument in torch.ops.tritonrl.gae.default._schema.arguments]
    args = arguments("gae", "time contiguous")
    for steps, width in ((1022, "v2.b32"), (1023, "b32")):
        narrower = [x[:, :steps].contiguous() if isinstance(x, Tensor) and x.dim() else x for x in args]
        found = compile_for("gae", narrower, 90)
        assert (found.spilled_bytes, found.stack_bytes) == (0, 0)
        stores = {name for name in found.accesses if name.startswith("st.global")}
        assert stores == {f"st.global.{width}"}, names


def test_offsets_beyond_two_to_the_31_compile_without_spills() -> None:
    for lanes, steps, transposed in ((2**20, 2**12, False), (2**26, 64, True)):
        shape = (steps, lanes) if transposed else (lanes, steps)

        def large(x: Any, shape: tuple[int, int] = shape, transposed: bool = transposed) -> Any:
            if not isinstance(x, Tensor) or x.dim() == 0:
                return x
            full = torch.empty(shape, dtype=x.dtype, device="meta")
            return full.t() if transposed else full

        args = [large(x) for x in check._arguments("gae", 2, 2, "cpu", transposed)]
        args += [None, None, torch.empty(1000, dtype=torch.int32)]
        found = compile_for("gae", args, 90)
        assert any(prepared.constants["WIDE"] for prepared in launch._prepared.values())
        assert (found.spilled_bytes, found.stack_bytes) == (0, 0)
        assert found.accesses["st.global.v4.b32"] > 0


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_moments_are_merged_in_the_same_kernel_without_spills_and_by_wide_loads(layout: str, capability: int) -> None:
    args = arguments("gae_extended", layout)
    given = dict(zip(argument_names("gae_extended"), args, strict=False)) | {"moments": True}
    found = compile_for("gae_extended", list(given.values()), capability)
    assert (found.spilled_bytes, found.stack_bytes) == (0, 0)
    assert found.plan.strategy == LAYOUTS[layout][1]
    passed = accesses(found.ptx, found.parameters)
    partials, merged = ([x for x in passed if x.parameter == f"moments.{i}"] for i in (0, 1))
    assert [x.width for x in partials if x.load] == [16] * 5, "count and mean, then all three"
    assert [x.width for x in partials if not x.load] == [4] * 3
    assert [x.width for x in merged] == [8] * 3 and not any(x.load for x in merged)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("rest", [0, 7])
def test_standardising_takes_whole_accesses_whatever_the_size(rest: int, capability: int) -> None:
    x = torch.empty(2**20 + rest, device="meta")
    mask = torch.empty(2**20 + rest, dtype=torch.bool, device="meta")
    found = compile_standardise(x, mask, mask, capability)
    assert (found.spilled_bytes, found.stack_bytes) == (0, 0)
    passed = accesses(found.ptx, found.parameters)
    for parameter, item in (("x", 4), ("y", 4), ("valid", 1), ("skip", 1)):
        widths = sorted(access.width for access in passed if access.parameter == parameter)
        assert widths == [item] * (1 if rest else 0) + [16] * item, parameter


def test_standardising_more_than_two_to_the_31_numbers_compiles_to_whole_accesses_too() -> None:
    largest, enormous = (torch.empty(2**31 - less, device="meta") for less in (2048, 2047))
    assert not elementwise.constants_of(largest, 1e-4, 1)["WIDE"]
    assert elementwise.constants_of(enormous, 1e-4, 1)["WIDE"]
    for x in (largest, enormous):
        found = compile_standardise(x, None, None, 90)
        assert found.accesses["st.global.v4.b32"] == found.accesses["ld.global.v4.b32"] == 4


def test_the_report_would_show_a_spill(monkeypatch: pytest.MonkeyPatch) -> None:
    """With too few registers there are spills, and they are seen."""
    real = launch.compiler_options
    monkeypatch.setattr("tritonrl.kernels.ahead_of_time.compiler_options", lambda plan: real(plan) | {"maxnreg": 24})
    found = compile_for("vtrace_backward", arguments("vtrace_backward", "time contiguous"), 90)
    assert found.registers <= 24
    assert found.spilled_bytes > 0
    assert found.stack_bytes > 0
