"""Plans in words, and the tables that they come from."""

from __future__ import annotations

import pytest
import torch

from tritonrl import kernels
from tritonrl.kernels import tables
from tritonrl.kernels.geometry import Lanes
from tritonrl.kernels.plan import choose_plan, decide
from tritonrl.kernels.tables import Table


def flags_like(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros(x.shape, dtype=torch.bool)


def data(*shape: int) -> list[torch.Tensor]:
    """Reward, value, next value, done and terminated: 14 bytes a step, and 8 of results."""
    x = [torch.zeros(shape) for _ in range(3)]
    return [*x, flags_like(x[0]), flags_like(x[0])]


@pytest.mark.parametrize(
    ("shape", "time_dim", "strategy", "why"),
    [
        ((4096, 128), -1, "rows", "2 short rows share a program"),
        ((2, 1 << 20), -1, "split", "would leave most of 132 multiprocessors idle"),
        ((64, 65536), 0, "lanes", "there are enough of them"),
        ((64, 4096), 0, "rows", "the threads of a tile share its steps too"),
        ((65536, 8), 0, "split", "8 of them are too few to keep 132 multiprocessors busy"),
    ],
)
def test_a_cpu_user_is_told_what_a_gpu_would_do_and_why(
    shape: tuple[int, ...], time_dim: int, strategy: str, why: str
) -> None:
    pytest.importorskip("triton")
    given = {"gamma": 0.9, "lmbda": 0.9, "time_dim": time_dim}
    text = kernels.explain(kernels.gae, *data(*shape), **given, multiprocessors=132)
    assert f'on a GPU of 132 multiprocessors: triton, strategy "{strategy}"' in text
    assert why in text
    assert "bytes: 22 a step" in text
    assert "this GPU was not measured" in text


def test_what_a_thread_reads_at_once_and_ahead_is_told() -> None:
    pytest.importorskip("triton")
    given = {"gamma": 0.9, "lmbda": 0.9, "multiprocessors": 132}
    long_rows = kernels.explain(kernels.gae, *data(4096, 4096), time_dim=-1, **given)
    assert "vectors of 4 steps" in long_rows and "the next fetched while one is computed" in long_rows
    assert "4 lanes to an access" in kernels.explain(kernels.gae, *data(64, 65536), time_dim=0, **given)
    tiles = kernels.explain(kernels.gae, *data(64, 4096), time_dim=0, **given)
    assert "steps, 4 lanes to an access" in tiles and "vectors" not in tiles


def test_without_a_gpu_in_sight_only_what_would_run_is_told() -> None:
    with kernels.use_backend("torch"):
        text = kernels.explain("gae", *data(4, 8), gamma=0.9, lmbda=0.9)
    assert text.splitlines()[1].startswith("  backend: torch")
    assert "GPU" not in text


def test_nothing_is_computed_and_gradients_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tritonrl.kernels.ops.backend_for", lambda device: pytest.fail("a kernel was about to run"))
    x, *rest = data(3, 5)
    kernels.explain(kernels.gae, x.requires_grad_(), *rest, gamma=torch.tensor(0.9, requires_grad=True), lmbda=0.9)


def test_every_op_of_a_call_is_explained_and_composition_is_named() -> None:
    reward, value, _, done, terminated = data(3, 5)
    given = {"gamma": 0.9, "lmbda": 0.9, "time_dim": -1, "bootstrap_value": torch.zeros(3), "skip": done}
    for wanted in (False, True):  # a gradient, for which the next values are derived by themselves
        value.requires_grad_(wanted)
        with kernels.use_backend("torch"):
            text = kernels.explain("gae", reward, value, None, done, terminated, **given, moments=True)
        assert ("tritonrl::linear_recurrence on cpu, 3 lanes x 5 steps, float32" in text) == wanted
        assert "tritonrl::gae_extended on cpu" in text
        assert "composed of several kernels" in text


def test_ops_below_the_api_are_explained_by_name() -> None:
    x = torch.zeros(4, 8)
    text = kernels.explain("reward_to_go_backward", x, x, flags_like(x), torch.tensor(0.9), -1, False)
    assert text.startswith("tritonrl::reward_to_go_backward on cpu, 4 lanes x 8 steps")


def test_a_broadcast_flag_counts_the_bytes_that_it_has() -> None:
    reward, value, next_value, _, _ = data(4, 8)
    text = kernels.explain("gae", reward, value, next_value, torch.zeros(4, 1, dtype=torch.bool), gamma=0.9, lmbda=0.9)
    assert "bytes: 20.1 a step" in text  # 20, and one for every row of eight


def test_no_data_and_no_such_function_are_said_so() -> None:
    assert "nothing to compute" in kernels.explain("gae", *data(0, 8), gamma=0.9, lmbda=0.9)
    with pytest.raises(ValueError, match="nothing to explain about 'sum'"):
        kernels.explain("sum", torch.zeros(3))
    with pytest.raises(RuntimeError, match="time_dim is 5, expected -1 to 0"):
        kernels.explain("reward_to_go", torch.zeros(3), torch.zeros(3, dtype=torch.bool), gamma=0.9, time_dim=5)


def test_a_measured_table_decides_for_its_gpu_and_for_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Table(device="Imaginary GPU", measured="never: a test", split_tiles=10**9)
    monkeypatch.setitem(tables._BY_DEVICE, measured.device, measured)
    args = (Lanes(1, 1 << 20, 1), [(1 << 20, 1, 0)] * 7, (1 << 20, 1, 0), 4, 132)
    assert choose_plan(*args).strategy == "split"
    assert choose_plan(*args, 7, "Imaginary GPU").strategy == "rows"
    assert choose_plan(*args, 7, "Another GPU") == choose_plan(*args)
    assert decide(*args)[0] == choose_plan(*args)


def test_every_measured_table_says_of_which_gpu_and_how() -> None:
    assert tables.DEFAULT.measured == ""
    for table in tables.MEASURED:
        assert table.device != "default" and table.measured
        assert tables.table_for(table.device) is table
