"""What is installed, what runs where and why, and whether every operator is right. Behind ``python -m tritonrl``."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version

import torch

from tritonrl import __version__, kernels

PACKAGES = ("torch", "triton", "numba", "tensordict", "numpy")


def package_version(name: str) -> str:
    """Return the installed version of a distribution, or ``"not installed"``.

    >>> package_version("no-such-distribution")
    'not installed'
    """
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def versions() -> list[tuple[str, str]]:
    """Return (name, version) of this package, of Python and of what the kernels are built on."""
    interpreter = f"{platform.python_version()} ({platform.system()} {platform.machine()})"
    return [("tritonrl", __version__), ("python", interpreter), *((name, package_version(name)) for name in PACKAGES)]


def devices() -> list[tuple[str, str]]:
    """Return (device, description) of every device that a self-check can run on, the CPU first."""
    found = [("cpu", f"{torch.get_num_threads()} threads")]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        found.append((f"cuda:{index}", f"{properties.name}, sm_{properties.major}{properties.minor}, {memory}"))
    return found


def why_no_cuda() -> str:
    """Return one line that says why no CUDA device was found, or an empty string where one was."""
    if torch.cuda.is_available():
        return ""
    if torch.version.cuda is None:
        return "none: this torch was built without CUDA"
    return f"none: torch was built for CUDA {torch.version.cuda}, but found no driver or no GPU"


def _section(title: str, rows: Iterable[tuple[str, str]]) -> None:
    print(f"\n{title}")
    for name, text in rows:
        print(f"  {name:<11} {text}")


def backends() -> list[tuple[str, str]]:
    """Return (device, what serves it and why), such as ``("cpu", "numba 0.68.1, 2 threads")``.

    Raises:
        ValueError: if ``TRITONRL_BACKEND`` names no backend.
    """
    rows = []
    for status in kernels.backends():
        named = status.detail if status.detail.startswith(status.backend) else f"{status.backend}: {status.detail}"
        rows.append((status.device, named))
    return rows


def check(device: str) -> list[str]:
    """Compare every operator on ``device`` with its plain torch twin, print one line for each, return what failed.

    An operator that raises, and a check that looked at no operator at all, count as failures.
    """
    print(f"\nself-check on {device}, against the plain torch twin")
    try:
        results = kernels.self_check(device)
    except Exception as error:  # Whatever went wrong, the other devices are still to be checked.
        print(f"  FAILED: {type(error).__name__}: {error}")
        return [f"self_check on {device}"]
    for result in results:
        verdict = "ok" if result.ok else "WRONG"
        detail = f"  {result.detail}" if result.detail else ""
        print(f"  {result.op:<20} {result.backend:<7} {verdict:<6} max error {result.max_error:.1e}{detail}")
    if not results:
        print("  FAILED: no operator was checked")
        return [f"self_check on {device}"]
    return [f"{result.op} ({result.backend}, {device})" for result in results if not result.ok]


def report(only: Sequence[str] = ()) -> int:
    """Print the whole report and return the exit code: 0 when every operator agrees with its twin, 1 when one does not.

    Args:
        only: devices to check, such as ``["cpu"]``; all that were found by default.
    """
    found = devices()
    no_cuda = why_no_cuda()
    _section("versions", versions())
    _section("devices", [*found, ("cuda", no_cuda)] if no_cuda else found)
    try:
        _section("backends", backends())
    except ValueError as error:
        print(f"\nFAILED: {error}")
        return 1
    checked = list(only) or [name for name, _ in found]
    failed = [failure for device in checked for failure in check(device)]
    if failed:
        print(f"\nFAILED: {', '.join(failed)}")
        return 1
    print("\nEvery operator agrees with its plain torch twin.")
    return 0
