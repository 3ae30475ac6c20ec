"""The compiled split kernel, run: its PTX on the machine of ptx_machine.py, with the tiles and windows that a GPU would get.

The interpreter knows nothing of layouts: that a window is scanned right in every warp, and that what one thread learns reaches
the others, is up to Triton's lowering, and shows only in the code that it makes.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from tritonrl import kernels
from tritonrl.kernels.backend import interpreting

pytest.importorskip("triton", reason="the kernels are compiled by Triton")
if interpreting():
    pytest.skip("with TRITON_INTERPRET nothing is compiled", allow_module_level=True)

from tritonrl.kernels import families, launch
from tritonrl.kernels.ahead_of_time import Compiled, compile_for
from tritonrl.kernels.device import split as split_file
from tritonrl.kernels.specs import allocate, step_results

from .ptx_machine import Arena, Machine

WINDOW = split_file.WINDOW.value
SPAN = WINDOW**2
# Numbers that float32 has, and so close to one that no tile of 2048 steps cuts.
GAMMA, LMBDA = 1.0, 1 - 2.0**-13
CLOSE = 1e-4  # of float32, where the coefficients of thousands of equal steps are multiplied


def gae_arguments(lanes: int, steps: int, contiguous: bool, ends: float = 1e-5) -> list[Any]:
    """Those of ``gae_extended``, with moments. ``contiguous``: lanes are."""
    generator = torch.Generator().manual_seed(steps)

    def laid_out(x: Tensor) -> Tensor:
        return x.t().contiguous().t() if contiguous else x

    reward, value, next_value = (laid_out(torch.randn(lanes, steps, generator=generator)) for _ in range(3))
    done, half = (laid_out(torch.rand(lanes, steps, generator=generator) < p) for p in (ends, 0.5))
    numbers = (torch.tensor(x, dtype=torch.float64) for x in (GAMMA, LMBDA))
    return [reward, value, next_value, done, done & half, *numbers, -1, True, None, None, None]


def on_machine(
    args: list[Any],
    resident: int,
    seed: int,
    capability: int = 90,
    spoil: Any = None,
    strategy: str = "split",
) -> tuple[Tensor, ...]:
    """Advantage, value target and moments, computed by the compiled kernel."""
    found = compile_for("gae_extended", args, capability)
    assert found.plan.strategy == strategy
    if spoil is not None:
        found = found._replace(ptx=spoil(found.ptx))
    recurrence, results = families.gae_extended(*args), allocate("gae_extended", args)
    outputs = step_results("gae_extended", results)
    prepared = launch.prepared_for("gae_extended", recurrence, outputs, args[7])
    given = launch.launch_arguments(recurrence, outputs, prepared, results[-1])
    for workspace in (given.get("published"), given["moments"][0]):
        if workspace is not None:
            workspace.fill_(torch.nan)
    run(found, given, resident, seed)
    assert spoil is not None or not given["moments"][2].any(), "the counter is zero again"
    return results


def run(found: Compiled, given: dict[str, Any], resident: int, seed: int) -> None:
    def called(path: str) -> Any:
        name, *places = path.split(".")
        value = given[name]
        for place in places:
            value = value[int(place)]
        return value

    values = {name: called(name) for name in found.parameters}
    arena = Arena({name: x for name, x in values.items() if isinstance(x, Tensor)})
    parameters = [arena.address(name) if isinstance(x, Tensor) else x for name, x in values.items()]
    scratch = [0, 0]  # of the launcher, and of no use to this kernel
    threads = 32 * found.plan.warps
    machine = Machine(found.ptx, parameters + scratch, arena, found.plan.grid[0], threads, found.shared_bytes)
    machine.run(resident, seed)
    arena.write_back()


def exact(args: list[Any]) -> tuple[Tensor, ...]:
    """The same in float64, by the CPU backend."""
    reward, value, next_value, done, terminated = args[:5]
    wide = (x.double() for x in (reward, value, next_value))
    advantage, target = kernels.gae(*wide, done, terminated, gamma=GAMMA, lmbda=LMBDA, time_dim=-1)
    variance, mean = torch.var_mean(advantage, correction=0)
    count = torch.tensor(advantage.numel(), dtype=torch.float64)
    return advantage, target, torch.stack([count, mean, variance * count])


def error(results: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """The largest, relative to the largest number of a result."""
    pairs = zip(results, expected, strict=True)
    return max(((x.double() - y).abs().nan_to_num(torch.inf).max() / y.abs().max()).item() for x, y in pairs)


@pytest.mark.parametrize(
    ("lanes", "steps", "contiguous", "capability"),
    [
        (1, 1024 * (SPAN + WINDOW + 2) + 4, False, 90),
        (1, 2048 * (WINDOW + 2), False, 80),
        (3, 2048 * (WINDOW + 1), False, 100),
        (32, 32 * (SPAN + 3), True, 90),
        (64, 64 * (WINDOW + 3), True, 80),
        (40, 64 * (WINDOW + 2), True, 100),
    ],
)
def test_the_compiled_kernel_computes_gae(lanes: int, steps: int, contiguous: bool, capability: int) -> None:
    args = gae_arguments(lanes, steps, contiguous)
    assert error(on_machine(args, 8, 0, capability), exact(args)) < CLOSE


@pytest.mark.parametrize(
    ("strategy", "lanes", "steps", "contiguous", "capability"),
    [
        ("rows", 67 * 600, 8, False, 90),  # more partials than are merged at once
        ("rows", 67, 300, False, 80),
        ("rows", 16 * 600 + 8, 32, True, 100),
        ("lanes", 2**17, 2, True, 80),
    ],
)
def test_the_last_program_of_every_strategy_merges_the_moments_of_all(
    strategy: str, lanes: int, steps: int, contiguous: bool, capability: int
) -> None:
    args = gae_arguments(lanes, steps, contiguous, ends=0.1)
    first = on_machine(args, 3, 0, capability, strategy=strategy)
    assert error(first, exact(args)) < CLOSE
    assert torch.equal(on_machine(args, 11, 1, capability, strategy=strategy)[2], first[2])


@pytest.mark.parametrize(
    ("strategy", "lanes", "steps", "contiguous", "packed", "capability"),
    [
        ("split", 1, 1024 * (WINDOW + 4), False, False, 90),
        ("split", 2, 1024 * 12, False, False, 80),
        ("split", 1, 1024 * 12, False, True, 100),
        ("split", 64, 32 * (WINDOW + 4), True, False, 90),
        ("split", 64, 32 * (WINDOW + 4), True, True, 80),
        ("rows", 67, 1300, False, False, 90),
        ("rows", 4100, 40, True, False, 90),
    ],
)
def test_the_compiled_kernel_derives_next_values_past_masks(
    strategy: str, lanes: int, steps: int, contiguous: bool, packed: bool, capability: int
) -> None:
    """Holes of a few steps everywhere, and one over several tiles, with NaN in all of them."""
    args = gae_arguments(lanes, steps, contiguous, ends=0.01)
    generator = torch.Generator().manual_seed(lanes)
    time = torch.arange(steps)
    valid, skip = (torch.rand(lanes, steps, generator=generator) < p for p in (0.9, 0.3))
    valid &= ~((time > steps // 4) & (time < 3 * steps // 4))
    unread = ~valid | skip
    bootstrap = torch.randn(lanes, generator=generator)
    for i in (0, 1):
        args[i] = args[i].masked_fill(unread, torch.nan)
    if contiguous:
        *args[:2], valid, skip = (x.t().contiguous().t() for x in (*args[:2], valid, skip))
    args[2], args[9:] = None, [bootstrap, valid, skip]
    wide = {name: args[i].double() for i, name in enumerate(("reward", "value"))}
    given = {"done": args[3], "terminated": args[4], "valid": valid, "skip": skip, "time_dim": -1, "moments": True}
    given |= {"next_value": None, "bootstrap_value": bootstrap.double(), "gamma": GAMMA, "lmbda": LMBDA}
    if packed:
        offsets = torch.tensor([0, 0, steps // 3, steps - 37, steps - 37, steps])
        each = torch.randn(5, lanes, generator=generator)
        args = [x.t() if isinstance(x, Tensor) and x.dim() == 2 else x for x in args]
        wide, given = (
            {n: x.t() if isinstance(x, Tensor) and x.dim() == 2 else x for n, x in d.items()} for d in (wide, given)
        )
        args[7], args[9] = -2, each
        args.append(offsets.int())
        given |= {"time_dim": 0, "bootstrap_value": each.double(), "cu_seqlens": offsets}
    found = on_machine(args, 6, 1, capability, strategy=strategy)
    assert error(found, kernels.gae(**wide, **given)) < CLOSE


def merged_by_the_last_but_one(ptx: str) -> str:
    """Who finds that all but two were counted before takes that for all but one."""
    before, after = ptx.split("acq_rel.add", 1)
    return before + "acq_rel.add" + re.sub(r"(add\.s32\s+%r\d+, %r\d+), -1;", r"\1, -2;", after, count=1)


def test_a_merge_that_comes_too_early_gives_something_else() -> None:
    args = gae_arguments(67, 300, False, ends=0.1)
    assert error(on_machine(args, 8, 3, strategy="rows"), exact(args)) < CLOSE
    spoiled = on_machine(args, 8, 3, spoil=merged_by_the_last_but_one, strategy="rows")
    assert error(spoiled, exact(args)) > 100 * CLOSE


@pytest.mark.parametrize(("lanes", "steps", "contiguous"), [(2, 1024 * 19, False), (64, 32 * 18, True)])
def test_bits_do_not_depend_on_who_runs_when(lanes: int, steps: int, contiguous: bool) -> None:
    args = gae_arguments(lanes, steps, contiguous)
    first = on_machine(args, 1, 0)
    assert error(first, exact(args)) < CLOSE
    for resident, seed in ((2, 1), (5, 2), (12, 3)):
        assert all(map(torch.equal, on_machine(args, resident, seed), first))


def does_not_wait(ptx: str) -> str:
    """Every branch back behind a poll falls through."""
    return re.sub(r"(acquire(?:[^\n]*\n){1,14}?)\s*@!?%p\d+ bra[^\n]*\n", r"\1", ptx)


def scans_too_short(ptx: str) -> str:
    """Behind the first wait, the second step of a scan looks one place back instead of two."""
    before, after = ptx.split("ld.global.cg", 1)
    return before + "ld.global.cg" + re.sub(r"(shfl\.sync\.up\.b32\s+%r\d+, %r\d+), 2,", r"\1, 1,", after)


@pytest.mark.parametrize("spoil", [does_not_wait, scans_too_short], ids=lambda f: f.__name__)
def test_a_kernel_that_is_wrong_computes_something_else(spoil: Any) -> None:
    args = gae_arguments(1, 2048 * (WINDOW + 3), False)
    assert error(on_machine(args, 12, 3), exact(args)) < CLOSE
    assert error(on_machine(args, 12, 3, spoil=spoil), exact(args)) > 100 * CLOSE
