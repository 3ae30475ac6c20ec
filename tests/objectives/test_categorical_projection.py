"""The projection of C51 against a loop in Python floats, and what a projection must keep."""

from __future__ import annotations

import bisect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tritonrl.objectives.categorical_projection import check_support, project_categorical

EVEN = torch.linspace(-2, 2, 9, dtype=torch.float64)
UNEVEN = torch.tensor([-3.0, -1.0, -0.75, 0.0, 0.5, 4.0], dtype=torch.float64)


def loop(probs: list[float], atoms: list[float], support: list[float]) -> list[float]:
    """One distribution: each mass goes to the two neighbours of where it lies."""
    mass = [0.0] * len(support)
    for p, atom in zip(probs, atoms, strict=True):
        position = min(max(atom, support[0]), support[-1])
        right = bisect.bisect_left(support, position)
        if support[right] == position:
            mass[right] += p
            continue
        gap = support[right] - support[right - 1]
        mass[right] += p * (position - support[right - 1]) / gap
        mass[right - 1] += p * (support[right] - position) / gap
    return mass


def distributions(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.rand(*shape, dtype=torch.float64).softmax(-1), 3 * torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("support", [EVEN, UNEVEN, EVEN[:2]])
@pytest.mark.parametrize("shape", [(1, 5), (7, 9), (2, 3, 4), (6,), (0, 4)])
def test_it_is_the_loop(support: Tensor, shape: tuple[int, ...]) -> None:
    probs, atoms = distributions(*shape)
    projected = project_categorical(probs, atoms, support)
    assert projected.shape == (*shape[:-1], support.shape[0])
    rows = zip(probs.reshape(-1, shape[-1]).tolist(), atoms.reshape(-1, shape[-1]).tolist(), strict=True)
    expected = [loop(p, z, support.tolist()) for p, z in rows]
    torch.testing.assert_close(projected.flatten().tolist(), [x for row in expected for x in row])


@pytest.mark.parametrize("support", [EVEN, UNEVEN])
def test_mass_that_lies_on_an_atom_goes_to_it_whole(support: Tensor) -> None:
    probs, _ = distributions(5, support.shape[0])
    assert torch.equal(project_categorical(probs, support.expand(5, -1), support), probs)


def test_mass_beyond_the_support_goes_to_its_ends() -> None:
    projected = project_categorical(torch.tensor([0.25, 0.75]), torch.tensor([-9.0, 1e30]), EVEN.float())
    assert projected.tolist() == [0.25, 0, 0, 0, 0, 0, 0, 0, 0.75]


def test_projecting_twice_is_projecting_once() -> None:
    probs, atoms = distributions(4, 6)
    once = project_categorical(probs, atoms, UNEVEN)
    torch.testing.assert_close(project_categorical(once, UNEVEN.expand(4, -1), UNEVEN), once, rtol=0, atol=0)


@settings(max_examples=60, deadline=None)
@given(
    atoms=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8),
    support=st.lists(st.floats(-100, 100), min_size=2, max_size=8, unique=True).filter(
        lambda x: min(b - a for a, b in zip(sorted(x), sorted(x)[1:], strict=False)) > 1e-3
    ),
)
def test_mass_is_conserved_and_so_is_the_mean_where_nothing_is_clamped(
    atoms: list[float], support: list[float]
) -> None:
    z = torch.tensor(sorted(support), dtype=torch.float64)
    positions = torch.tensor(atoms, dtype=torch.float64)
    probs = torch.full_like(positions, 1 / len(atoms))
    projected = project_categorical(probs, positions, z)
    assert bool((projected >= 0).all())
    assert math.isclose(float(projected.sum()), 1.0, rel_tol=1e-12)
    mean = float((probs * positions.clamp(z[0], z[-1])).sum())
    assert math.isclose(float((projected * z).sum()), mean, rel_tol=1e-9, abs_tol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_that_of_the_mass(dtype: torch.dtype) -> None:
    probs, atoms = distributions(3, 4)
    assert project_categorical(probs.to(dtype), atoms.to(dtype), EVEN.to(dtype)).dtype is dtype


def test_it_stays_on_the_device_and_waits_for_no_number() -> None:
    # Tensors on the meta device have no numbers: whatever asked for one would raise.
    projected = project_categorical(*(x.to("meta") for x in (*distributions(3, 4), EVEN)))
    assert (projected.device.type, projected.shape) == ("meta", (3, 9))


def test_a_nan_is_not_hidden() -> None:
    assert project_categorical(torch.tensor([1.0]), torch.tensor([math.nan]), EVEN.float()).isnan().any()


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"one shape, got \(2, 3\) and \(3,\)"):
        project_categorical(torch.ones(2, 3), torch.ones(3), EVEN.float())


def test_it_compiles_for_any_batch_size() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(project_categorical, fullgraph=True, backend="aot_eager")
    for batch in (3, 5, 8):
        probs, atoms = distributions(batch, 6)
        assert torch.equal(compiled(probs, atoms, UNEVEN), project_categorical(probs, atoms, UNEVEN))


@pytest.mark.parametrize(
    "support",
    [
        torch.tensor([1.0]),
        torch.ones(2, 3),
        torch.tensor([0.0, 0.0]),
        torch.tensor([1.0, 0.0]),
        torch.tensor([0.0, math.inf]),
        torch.tensor([0.0, math.nan]),
    ],
)
def test_a_support_must_be_finite_and_increasing(support: Tensor) -> None:
    with pytest.raises(ValueError, match="support must"):
        check_support(support)
