"""Which backend serves which device: the default, the two overrides, and what is said when a choice is impossible."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from tritonrl import kernels
from tritonrl.kernels import backend

REWARD = torch.ones(3)
DONE = torch.zeros(3, dtype=torch.bool)

# Which module computed: every backend module has one function for each op.
WHO = """
import torch
from tritonrl import kernels
from tritonrl.kernels import backend
served = backend.backend_for(torch.device("cpu")).__name__.rpartition("kernels.")[2]
reward, done = torch.ones(3), torch.zeros(3, dtype=torch.bool)
print(served, kernels.reward_to_go(reward, done, gamma=1.0, time_dim=-1).tolist())
"""

# Makes modules impossible to import, as if they were not installed.
BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
"""

# And what is said about it.
WHO_AND_WHY = (
    WHO
    + """
for status in kernels.backends():
    print(status.device, status.backend, status.detail, sep="|")
"""
)


@pytest.fixture(autouse=True)
def _no_choice_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITONRL_BACKEND", raising=False)


def compute() -> None:
    kernels.reward_to_go(REWARD, DONE, gamma=1.0, time_dim=-1)


def python(code: str, cwd: Path, **environment: str) -> str:
    """What a fresh Python process prints; it must succeed."""
    env = {k: v for k, v in os.environ.items() if k not in ("TRITONRL_BACKEND", "TRITON_INTERPRET")} | environment
    ran = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_the_cpu_is_served_by_numba_and_what_nobody_knows_by_torch() -> None:
    assert backend.choose("cpu") == "numba"
    assert backend.choose("cuda") == "triton"
    assert backend.choose("mps") == "torch"
    assert backend.choose("privateuseone") == "torch"


def test_the_context_manager_overrides_nests_and_restores() -> None:
    assert backend.requested() is None
    with kernels.use_backend("torch"):
        assert backend.choose("cpu") == "torch"
        assert backend.backend_for(torch.device("cpu")).__name__.endswith(".torch_backend")
        with kernels.use_backend("numba"):
            assert backend.choose("cpu") == "numba"
            with kernels.use_backend(None):
                assert backend.requested() is None
            assert backend.choose("cpu") == "numba"
        assert backend.choose("cpu") == "torch"
    assert backend.requested() is None


def test_the_choice_is_restored_after_an_exception() -> None:
    with pytest.raises(KeyError), kernels.use_backend("torch"):
        raise KeyError("anything")
    assert backend.requested() is None


def test_the_backward_pass_on_another_thread_sees_the_choice() -> None:
    seen: list[str] = []
    with kernels.use_backend("torch"):
        thread = threading.Thread(target=lambda: seen.append(backend.choose("cpu")))
        thread.start()
        thread.join()
    assert seen == ["torch"]


def test_the_environment_is_the_default_and_the_context_manager_goes_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONRL_BACKEND", "torch")
    assert backend.choose("cpu") == "torch"
    with kernels.use_backend("numba"):
        assert backend.choose("cpu") == "numba"
    monkeypatch.setenv("TRITONRL_BACKEND", "")
    assert backend.choose("cpu") == "numba"


def test_the_environment_decides_in_a_new_process(tmp_path: Path) -> None:
    assert python(WHO, tmp_path, TRITONRL_BACKEND="torch") == "torch_backend [3.0, 2.0, 1.0]"


def test_under_the_interpreter_triton_serves_the_cpu_when_asked_to(tmp_path: Path) -> None:
    environment = {"TRITON_INTERPRET": "1", "TRITONRL_BACKEND": "triton"}
    served, status, *_ = python(WHO_AND_WHY, tmp_path, **environment).splitlines()
    assert served == "launch [3.0, 2.0, 1.0]"
    assert status.startswith("cpu|triton|triton 3")
    assert status.endswith(", interpreted (asked for)")
    assert python(WHO, tmp_path, TRITON_INTERPRET="1") == "cpu [3.0, 2.0, 1.0]", "the interpreter is never the default"


def test_a_backend_that_cannot_serve_the_device_says_what_is_missing() -> None:
    with kernels.use_backend("triton"), pytest.raises(kernels.BackendUnavailable) as caught:
        compute()
    for word in ("'triton'", "cpu", "CUDA device", "TRITON_INTERPRET=1"):
        assert word in str(caught.value)
    with (
        kernels.use_backend("numba"),
        pytest.raises(kernels.BackendUnavailable, match="numba kernels serve the cpu only"),
    ):
        backend.choose("cuda")
    with kernels.use_backend("triton"), pytest.raises(kernels.BackendUnavailable, match="NVIDIA GPUs, not for mps"):
        backend.choose("mps")
    compute()


def test_an_unknown_backend_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="triton, numba, torch or None, got 'abacus'"), kernels.use_backend("abacus"):
        pass
    monkeypatch.setenv("TRITONRL_BACKEND", "abacus")
    with pytest.raises(ValueError, match="triton, numba, torch, got 'abacus'"):
        compute()


@pytest.mark.parametrize("missing", [["triton"], ["numba"], ["numba", "triton"]], ids="+".join)
def test_what_is_left_serves_when_something_is_not_installed(missing: list[str], tmp_path: Path) -> None:
    asked = (
        "try:\n"
        "    with kernels.use_backend('numba'):\n"
        "        kernels.reward_to_go(reward, done, gamma=1.0, time_dim=-1)\n"
        "except kernels.BackendUnavailable as error:\n"
        "    print(error)\n"
    )
    said = python(BLOCKED.format(names=missing) + WHO_AND_WHY + asked, tmp_path).splitlines()
    if "numba" not in missing:
        assert said[0] == "cpu [3.0, 2.0, 1.0]"
        return
    assert said[0] == "torch_backend [3.0, 2.0, 1.0]"
    assert said[1].startswith("cpu|torch|torch 2.")
    assert "because numba cannot be imported" in said[1]
    assert "'numba' cannot serve cpu tensors" in said[-1]
    assert "No module named 'numba'" in said[-1]


def test_a_broken_install_does_not_keep_the_package_from_importing(tmp_path: Path) -> None:
    for name in ("numba", "triton"):
        (tmp_path / f"{name}.py").write_text("raise OSError('libfoo.so: cannot open shared object file')\n")
    said = python(WHO_AND_WHY, tmp_path, PYTHONPATH=str(tmp_path)).splitlines()
    assert said[0] == "torch_backend [3.0, 2.0, 1.0]"
    assert "OSError: libfoo.so" in said[1]


def test_importing_needs_neither_a_compiler_nor_a_gpu(tmp_path: Path) -> None:
    environment = {"PATH": str(tmp_path), "CC": "/nowhere/cc", "CXX": "/nowhere/cxx", "CUDA_VISIBLE_DEVICES": ""}
    assert python(WHO, tmp_path, **environment) == "cpu [3.0, 2.0, 1.0]"


def test_importing_loads_no_backend(tmp_path: Path) -> None:
    code = "import sys, tritonrl.kernels; print([n for n in ('numba', 'triton.language') if n in sys.modules])"
    assert python(code, tmp_path) == "[]"


def test_the_status_names_version_threads_and_what_was_asked_for() -> None:
    status = kernels.backends()[0]
    assert (status.device, status.backend) == ("cpu", "numba")
    assert status.detail.startswith("numba 0.")
    assert status.detail.endswith(f"{torch.get_num_threads()} threads")
    with kernels.use_backend("torch"):
        assert kernels.backends()[0] == ("cpu", "torch", f"torch {torch.__version__} (asked for)")
    with kernels.use_backend("triton"):
        assert kernels.backends()[0].backend == "none"
        assert "TRITON_INTERPRET=1" in kernels.backends()[0].detail


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_is_served_by_triton() -> None:
    devices = {status.device: status.backend for status in kernels.backends()}
    assert devices == {"cpu": "numba", "cuda": "triton"}
