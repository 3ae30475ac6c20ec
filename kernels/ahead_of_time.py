"""Compile a launch for a GPU that is not there: what ptxas says of it can be read on any machine.

The arguments are those that a real launch would pass, so what is compiled is what would run. Used by the tests and by the
benchmark suite's inspection; nothing on the way of a call needs it.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import triton
from torch import Tensor
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import elementwise, families
from .launch import compiler_options, launch_arguments, prepared_for
from .plan import Plan
from .specs import allocate, step_results

_TYPES = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.bool: "*i1",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


class Compiled(NamedTuple):
    """What the compiler made of one kernel.

    ``accesses`` counts global loads and stores by their PTX form, such as ``ld.global.v4.b32``. ``ptx`` is the code itself, and
    ``parameters`` names its parameters in order (``inputs.0``, ``strides.0.1``), so that an access can be traced to its tensor.
    """

    op: str
    plan: Plan
    capability: int
    registers: int
    spilled_bytes: int
    stack_bytes: int
    shared_bytes: int
    accesses: dict[str, int]
    ptx: str = ""
    parameters: tuple[str, ...] = ()


class _Signature:
    """Arguments as Triton's launcher would specialise them: ones become constants, multiples of 16 are promised aligned."""

    def __init__(self) -> None:
        self.constants: dict[tuple[int, ...], Any] = {}
        self.attributes: dict[tuple[int, ...], Any] = {}

    def of(self, value: Any, path: tuple[int, ...]) -> Any:
        if isinstance(value, tuple):
            return tuple(self.of(x, (*path, i)) for i, x in enumerate(value))
        if isinstance(value, Tensor):
            self.attributes[path] = [["tt.divisibility", 16]]
            return _TYPES[value.dtype]
        if value is None or (isinstance(value, int) and value == 1):
            self.constants[path] = value
            return "constexpr"
        if isinstance(value, int):
            if value % 16 == 0:
                self.attributes[path] = [["tt.divisibility", 16]]
            return "i32" if -(2**31) <= value < 2**31 else "i64"
        return "fp32"


class _Source(ASTSource):
    """A kernel whose Python is read once: what the front of the compiler makes of it is the same for every GPU.

    It takes most of the time. The text of the last one is kept, for who compiles one kernel for several GPUs in a row.
    """

    _kept: ClassVar[tuple[str, str]] = ("", "")

    def make_ir(self, target: Any, options: Any, codegen_fns: Any, module_map: Any, context: Any) -> Any:
        """The module that ``ASTSource`` makes, from its text where that is known."""
        key, text = f"{self.hash()} {options.num_warps}", None
        if _Source._kept[0] == key:
            text = _Source._kept[1]
        if text is None:
            module = super().make_ir(target, options, codegen_fns, module_map, context)
            _Source._kept = (key, str(module))
            return module
        with tempfile.NamedTemporaryFile("w", suffix=".ttir") as file:
            file.write(text)
            file.flush()
            module = ir.parse_mlir_module(file.name, context)
        module.context = context
        return module


def compile_for(op: str, args: Sequence[Any], capability: int, plan_for: int = 132) -> Compiled:
    """Compile the kernel that ``op`` would launch for ``args`` on a GPU of this compute capability (80, 90, 100).

    Args:
        op: name of the op in :data:`.specs.SPECS`.
        args: its arguments in schema order; CPU tensors, whose layouts and dtypes count and whose contents do not.
        capability: 10 times the major plus the minor version.
        plan_for: number of multiprocessors that the plan is made for.
    """
    recurrence = getattr(families, op)(*args)
    results = allocate(op, args)
    outputs = step_results(op, results)
    merged = results[-1] if recurrence.moments else None
    time_dim = next(x for x in args if isinstance(x, int))
    prepared = prepared_for(op, recurrence, outputs, time_dim)
    given = launch_arguments(recurrence, outputs, prepared, merged)
    options = compiler_options(prepared.plan)
    return _compiled(op, prepared.plan, prepared.kernel, given, prepared.constants, options, capability)


def compile_standardise(
    x: Tensor, valid: Tensor | None, skip: Tensor | None, capability: int, eps: float = 1e-4, correction: int = 1
) -> Compiled:
    """Compile the kernel that standardises ``x`` on a GPU of this compute capability."""
    constants = elementwise.constants_of(x, eps, correction)
    moments = torch.empty(3, dtype=torch.float64, device=x.device)
    given = {"x": x, "moments": moments, "valid": valid, "skip": skip, "y": x, "numbers": x.numel(), **constants}
    plan = elementwise.PLAN
    options = {"num_warps": plan.warps}
    return _compiled("standardise", plan, elementwise.standardise, given, constants, options, capability)


def _compiled(
    op: str,
    plan: Plan,
    kernel: Any,
    given: Mapping[str, Any],
    constants: Mapping[str, Any],
    options: dict[str, Any],
    capability: int,
) -> Compiled:
    """Compile ``kernel`` for the arguments that were given, as a launch with them would."""
    signature = _Signature()
    types: dict[str, Any] = {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            types[name] = "constexpr"
            signature.constants[(i,)] = given[name]
        else:
            types[name] = signature.of(given[name], (i,))
    source = _Source(fn=kernel, signature=types, constexprs=signature.constants, attrs=signature.attributes)
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options=options)
    accesses = Counter(re.findall(r"\b((?:ld|st)\.global[.\w]*)", compiled.asm["ptx"]))
    usage = _resource_usage(compiled.asm["cubin"])
    parameters = tuple(_run_time(types))
    shared = compiled.metadata.shared
    return Compiled(op, plan, capability, *usage, shared, dict(accesses), compiled.asm["ptx"], parameters)


def _run_time(types: Any, path: str = "") -> Iterator[str]:
    """The names of the parameters that are left at run time, in order: what is constant has no place in the binary."""
    if isinstance(types, str):
        if types != "constexpr":
            yield path
        return
    for name, inner in types.items() if isinstance(types, dict) else enumerate(types):
        yield from _run_time(inner, f"{path}.{name}" if path else str(name))


def _resource_usage(cubin: bytes) -> tuple[int, int, int]:
    """Registers, spilled bytes and stack frame, from the binary itself (local memory is where spills go)."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
        registers = int(re.search(r"REG:(\d+)", text).group(1))  # type: ignore[union-attr]
        stack = int(re.search(r"STACK:(\d+)", text).group(1))  # type: ignore[union-attr]
        if stack == 0:  # nothing can have been spilled, and to disassemble takes longer than to compile
            return registers, 0, 0
        sass = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    return registers, 4 * len(re.findall(r"\b(?:STL|LDL)\b", sass)), stack
