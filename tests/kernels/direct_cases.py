"""Launching again what was launched before: the same kernel and the same parameters as by Triton's public way.

Kernels are compiled for a GPU that is not here, and the driver notes what it would have launched: nothing is computed. Started
by test_direct.py in a process of its own, because the driver that Triton uses is swapped.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import triton
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from tritonrl import kernels
from tritonrl.kernels import backend, check, direct, eager, launch, preparation, repeat


class Launched(NamedTuple):
    """One launch. ``parameters``: what stands in the binary, in order, with addresses for tensors."""

    function: int
    grid: tuple[int, ...]
    stream: int
    metadata: Any
    parameters: tuple[Any, ...]


launched: list[Launched] = []
public: list[str] = []  # the kernels that were launched by Triton's public way


class _Launcher:
    """Takes what CUDA's launcher takes, calls the hooks as it does, and notes the rest."""

    def __init__(self, src: Any, metadata: Any) -> None:
        self.signature = tuple(src.signature.values())

    def __call__(
        self,
        x: int,
        y: int,
        z: int,
        stream: int,
        function: int,
        metadata: Any,
        said: Any,
        enter: Any,
        leave: Any,
        *args: Any,
    ) -> None:
        if enter is not None:
            enter(said)
        parameters = tuple(_parameters(self.signature, args))
        launched.append(Launched(function, (x, y, z), stream, metadata, parameters))
        if leave is not None:
            leave(said)


def _parameters(signature: Any, args: Any) -> Iterator[Any]:
    for kind, x in zip(signature, args, strict=True):
        if isinstance(kind, tuple):
            yield from _parameters(kind, x)
        elif kind.startswith("*"):
            address = x.data_ptr() if isinstance(x, Tensor) else x
            assert isinstance(address, int)
            yield address
        elif kind != "constexpr":
            assert type(x) is (float if kind.startswith("fp") else int)
            yield x


class _Utils:
    functions = itertools.count(1000)

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        return 1, next(self.functions), 32, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 * 1024}


class _Driver:
    launcher_cls, utils = _Launcher, _Utils()
    device = 0

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 77 + device

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


DRIVER = _Driver()


@pytest.fixture(autouse=True)
def _noting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    triton.runtime.driver.set_active(DRIVER)
    monkeypatch.setattr(backend, "missing", lambda name, device: None)
    real = JITFunction.run

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        public.append(self.__name__)
        return real(self, *args, **kwargs)

    # What knows the interface reads the source, which this has not.
    assert direct.interface_is_known()
    monkeypatch.setattr(JITFunction, "run", run)
    # Offsets on the CPU stand here for offsets on a GPU, which nobody looks at.
    monkeypatch.setattr(repeat, "_is_checked", lambda x: False)
    launch.forget()
    with kernels.use_backend("triton"), torch.no_grad():
        yield
    launch.forget()


def noted(call: Callable[[], Any]) -> tuple[list[Launched], list[str], Any]:
    """What a call launches, which of it by the public way, and what it returns."""
    launched.clear()
    public.clear()
    results = call()
    return list(launched), list(public), results


def by_the_public_way(call: Callable[[], Any]) -> tuple[list[Launched], Any]:
    """The same, all of it by the public way, because somebody listens."""
    knobs.runtime.launch_enter_hook.add(_listener)
    try:
        found, public_ones, results = noted(call)
    finally:
        knobs.runtime.launch_enter_hook.remove(_listener)
    assert len(found) == len(public_ones)
    return found, results


def _listener(said: Any) -> None:
    pass


def assert_alike(found: list[Launched], results: Any, wanted: list[Launched], wanted_results: Any) -> None:
    """The same launches, but for the addresses of what each call allocates."""

    def own(launches: list[Launched], tensors: Any) -> list[list[Any]]:
        tensors = (tensors,) if isinstance(tensors, Tensor) else tensors
        names = {x.data_ptr(): f"result {i}" for i, x in enumerate(tensors) if x.numel()}
        return [[names.get(p, p) if type(p) is int else p for p in each.parameters] for each in launches]

    assert [x._replace(parameters=()) for x in found] == [x._replace(parameters=()) for x in wanted]
    for one, other in zip(own(found, results), own(wanted, wanted_results), strict=True):
        differing = [(p, q) for p, q in zip(one, other, strict=True) if p != q]
        assert len(differing) <= WORKSPACE, differing
        # Of a workspace only the address may differ, and it is one.
        assert all(type(p) is int and p > 2**20 and p % 16 == 0 for pair in differing for p in pair), differing


WORKSPACE = 4  # partials, counter, flags, published
GAE = check._Variant("gae")


def again(args: list[Any]) -> list[Any]:
    """Other tensors of the same layouts, and other numbers."""

    def other(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if x.dim() == 0:
            return x * 0.5
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).copy_(x)

    return [other(x) for x in args]


def operator(op: str, args: list[Any]) -> Callable[[], Any]:
    return lambda: launch._run(op, *args)


SIZES = {"rows": (64, 8, False), "lanes": (2, 512, True), "split": (16384, 2, False)}


@pytest.mark.parametrize("variant", check._variants(), ids=lambda variant: variant.name)
def test_the_second_call_launches_what_the_public_way_would(variant: Any) -> None:
    """For every op with and without its optional arguments; two tensors given twice must not be taken for one another."""
    steps, lanes, across = SIZES["rows"]
    args = check._arguments(variant, steps, lanes, "cpu", across)
    shared = [x if not isinstance(x, Tensor) or x.dim() != 2 else _same(x) for x in args]
    noted(operator(variant.op, shared))  # at first one and the same tensor in the place of all that look alike
    args = again(args)
    found, public_ones, results = noted(operator(variant.op, args))
    assert public_ones == [] and found
    assert_alike(found, results, *by_the_public_way(operator(variant.op, args)))


_SAME: dict[Any, Tensor] = {}


def _same(x: Tensor) -> Tensor:
    return _SAME.setdefault((x.shape, x.stride(), x.dtype), x)


@pytest.mark.parametrize("strategy", SIZES)
@pytest.mark.parametrize("optional", [(), ("bootstrap_value",)], ids=str)
def test_every_strategy_with_moments_is_launched_again(strategy: str, optional: tuple[str, ...]) -> None:
    steps, lanes, across = SIZES[strategy]
    args = check._arguments(check._Variant("gae_extended", optional), steps, lanes, "cpu", across)
    first, _, _ = noted(operator("gae_extended", args))
    args = again(args)
    found, public_ones, results = noted(operator("gae_extended", args))
    assert {prepared.plan.strategy for prepared in launch._prepared.values()} == {strategy}
    assert public_ones == []
    assert [x.function for x in found] == [x.function for x in first]
    assert len(found) == 1, "which merges its moments, too"
    assert results[-1].data_ptr() in found[0].parameters
    assert found[0].parameters != first[0].parameters
    assert_alike(found, results, *by_the_public_way(operator("gae_extended", args)))


@pytest.mark.parametrize("masks", [(), ("valid",), ("skip",), ("valid", "skip")], ids=str)
def test_standardising_is_launched_again(masks: tuple[str, ...]) -> None:
    def call(numbers: int, offset: int = 0, **more: float) -> Callable[[], Any]:
        x = torch.rand(numbers + offset)[offset:]
        given = {name: torch.rand(numbers) < 0.5 for name in masks}
        return lambda: kernels.standardise(x, torch.ones(3, dtype=torch.float64), **given, **more)

    for size, options in (
        (1000, {}),
        (1024, {}),
        (1000, {"offset": 1}),
        (1000, {"eps": 0.5}),
        (1000, {"correction": 0}),
    ):
        first, public_ones, _ = noted(call(size, **options))
        assert len(first) == len(public_ones) == 1, "one kernel for each combination"
        found, public_ones, results = noted(again_call := call(size, **options))
        assert public_ones == [] and found[0].function == first[0].function
        assert results.data_ptr() in found[0].parameters
        assert_alike(found, results, *by_the_public_way(again_call))


@pytest.mark.parametrize("strategy", ["lanes", "split"])
def test_carries_are_launched_again(strategy: str) -> None:
    steps, lanes, across = SIZES[strategy]
    args = check._arguments("linear_recurrence", steps, lanes, "cpu", across)
    noted(operator("linear_recurrence", args))
    args = again(args)
    found, public_ones, results = noted(operator("linear_recurrence", args))
    assert public_ones == [] and args[2].data_ptr() in found[0].parameters
    assert_alike(found, results, *by_the_public_way(operator("linear_recurrence", args)))


def test_layouts_that_are_copied_first_are_launched_by_the_public_way() -> None:
    a, b = torch.rand(2, 3, 2, 3, 5), torch.rand(5, 3, 2, 3, 2).permute(4, 1, 2, 3, 0)
    args = [a.transpose(0, 2), b, None, -1, True]
    for _ in range(2):
        found, public_ones, (result,) = noted(lambda: (launch._run("linear_recurrence", *args),))
        assert len(found) == len(public_ones) == 1
        assert result.data_ptr() in found[0].parameters
        assert a.data_ptr() not in found[0].parameters


def gae_args() -> dict[str, Any]:
    names = ("reward", "value", "next_value")
    made: dict[str, Any] = {name: torch.rand(8, 64) for name in names}
    made["done"], made["terminated"] = torch.rand(8, 64) < 0.1, torch.zeros(8, 64, dtype=torch.bool)
    return made | {"gamma": 0.99, "lmbda": 0.95, "time_dim": -1}


def gae(args: dict[str, Any]) -> Callable[[], Any]:
    return lambda: kernels.gae(**args)


def shifted(x: Tensor) -> Tensor:
    """The same numbers, one element off an aligned address."""
    whole = torch.empty(x.numel() + 1, dtype=x.dtype)
    assert whole.data_ptr() % 16 == 0
    return whole[1:].view(x.shape).copy_(x)


def test_a_pointer_that_is_aligned_otherwise_gets_a_kernel_of_its_own() -> None:
    args = gae_args()
    variants = {
        "aligned": args,
        "value": args | {"value": shifted(args["value"])},
        "done": args | {"done": shifted(args["done"])},
        "both": args | {"value": shifted(args["value"]), "done": shifted(args["done"])},
    }
    functions = {}
    for name, given in variants.items():
        ((first,), public_ones, _) = noted(gae(given))
        assert public_ones == ["rows"], name
        functions[name] = first.function
    assert len(launch._prepared) == 2, "the layout is one: of the op, and of the public function"
    assert len(set(functions.values())) == 4
    for name in ("aligned", "both", "value", "aligned", "done", "aligned"):
        found, public_ones, results = noted(gae(variants[name]))
        assert public_ones == [] and [x.function for x in found] == [functions[name]]
        assert_alike(found, results, *by_the_public_way(gae(variants[name])))


def test_the_kernel_for_a_pointer_off_alignment_is_promised_nothing_of_it() -> None:
    """It is the pointer's own place that counts: the other pointers keep their wide accesses."""
    args, unpromised = gae_args(), []
    for given in (args, args | {"value": shifted(args["value"])}):
        ((found,), _, _) = noted(gae(given))
        caches = preparation.rows_kernel.device_caches.values()
        (kernel,) = (x for cache in caches for x in cache[0].values() if x.function == found.function)
        pointers = {(0, i) for i in range(5)}  # reward, value, next value, done, terminated
        unpromised.append(
            pointers - {path for path, said in kernel.src.attrs.items() if ["tt.divisibility", 16] in said}
        )
    assert unpromised == [set(), {(0, 1)}]


def test_numbers_go_by_value_at_every_call() -> None:
    args = gae_args()
    noted(gae(args))
    for gamma in (0.5, 1.0, 1, torch.tensor(0.25), torch.tensor(2)):
        (found,), public_ones, _ = noted(gae(args | {"gamma": gamma}))
        assert float(gamma) in found.parameters
        assert public_ones == ([] if not isinstance(gamma, Tensor) else ["rows"])  # another dtype, another layout
    (found,), public_ones, _ = noted(gae(args | {"gamma": torch.tensor(0.125)}))
    assert 0.125 in found.parameters and public_ones == []


def test_whoever_listens_to_launches_hears_of_each() -> None:
    heard: list[str] = []
    args = gae_args()
    noted(gae(args))
    for hooks, name in ((knobs.runtime.launch_enter_hook, "enter"), (knobs.runtime.launch_exit_hook, "exit")):

        def hook(said: Any, name: str = name) -> None:
            heard.append(f"{name} {said.get()['name']}")

        hooks.add(hook)
        assert len(noted(gae(args))[0]) == 1
        hooks.remove(hook)
    assert heard == ["enter rows", "exit rows"]
    _, public_ones, _ = noted(gae(args))
    assert heard == ["enter rows", "exit rows"] and public_ones == []


@contextlib.contextmanager
def changed(owner: Any, name: str, value: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, value)
        yield


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (knobs.runtime, "debug", True),
        (knobs.runtime, "add_stages_inspection_hook", lambda *args: ("key", "hash") if not args else None),
        (preparation.rows_kernel, "pre_run_hooks", [lambda *args, **kwargs: None]),
    ],
    ids=["debug", "add_stages_inspection_hook", "pre_run_hooks"],
)
def test_what_triton_would_do_besides_launching_is_done(owner: Any, name: str, value: Any) -> None:
    args = gae_args()
    plain = noted(gae(args))[0][0].function
    with changed(owner, name, value):
        for _ in range(2):
            _, public_ones, _ = noted(gae(args))
            assert public_ones == ["rows"]
    found, public_ones, _ = noted(gae(args))
    assert public_ones == [] and found[0].function == plain


def test_another_launch_interface_is_left_to_triton() -> None:
    args = gae_args()
    with changed(direct, "interface_is_known", lambda: False):
        for _ in range(3):
            found, public_ones, results = noted(gae(args))
            assert public_ones == ["rows"]
            assert [x.data_ptr() for x in results] == [
                p for p in found[0].parameters if p in {x.data_ptr() for x in results}
            ]


def test_the_interface_is_unknown_where_the_source_is_another_or_missing() -> None:
    look = direct.interface_is_known.__wrapped__
    with changed(direct.inspect, "getsource", lambda function: "def run(self, *args): kernel.launch(*args)"):
        assert not look()

    def missing(function: Any) -> str:
        raise OSError("could not get source code")

    with changed(direct.inspect, "getsource", missing):
        assert not look()


def test_the_kernel_is_launched_on_the_device_of_the_data_and_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    args = gae_args()
    noted(gae(args))
    (prepared,) = [x for x in launch._prepared.values() if isinstance(x.call, eager.Call)]
    entered: list[int] = []

    @contextlib.contextmanager
    def device(index: int) -> Iterator[None]:
        entered.append(index)
        monkeypatch.setattr(DRIVER, "device", index)
        yield
        monkeypatch.setattr(DRIVER, "device", 0)

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(prepared.call.results, "device", torch.device("cuda", 0))  # type: ignore[union-attr]
    assert noted(gae(args))[0][0].stream == 77 and entered == []
    monkeypatch.setattr(prepared.call.results, "device", torch.device("cuda", 1))  # type: ignore[union-attr]
    assert noted(gae(args))[0][0].stream == 78 and entered == [1]


def test_the_default_dtype_is_that_of_integers_at_every_call() -> None:
    args = {name: x.long() if name in ("reward", "value", "next_value") else x for name, x in gae_args().items()}
    assert noted(gae(args))[2][0].dtype is torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert noted(gae(args))[2][0].dtype is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert noted(gae(args))[2][0].dtype is torch.float32


# Public calls that are repeated without their checks (repeat.py).


def trace_args() -> dict[str, Any]:
    made = gae_args()
    del made["lmbda"]
    return {"log_pi": torch.rand(8, 64), "log_mu": torch.rand(8, 64), **made}


def public_calls() -> dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]], bool]]:
    """Function, its arguments, and whether such calls go straight to the backend."""

    def without(made: dict[str, Any], *names: str) -> dict[str, Any]:
        return {name: x for name, x in made.items() if name not in names}

    def with_mask(name: str) -> dict[str, Any]:
        return gae_args() | {name: torch.rand(8, 64) < 0.5}

    def derived() -> dict[str, Any]:
        return gae_args() | {"next_value": None, "bootstrap_value": torch.rand(8)}

    def packed() -> dict[str, Any]:
        flat = {n: x[0] if isinstance(x, Tensor) else x for n, x in gae_args().items()}
        return flat | {"time_dim": 0, "cu_seqlens": torch.tensor([0, 20, 64])}

    returns = kernels.td_lambda_return
    to_go = ("value", "next_value", "terminated", "lmbda")
    return {
        "gae": (kernels.gae, gae_args, True),
        "one flag": (kernels.gae, lambda: without(gae_args(), "terminated"), True),
        "moments": (kernels.gae, lambda: gae_args() | {"moments": True}, True),
        "derived": (kernels.gae, derived, True),
        "derived moments": (kernels.gae, lambda: derived() | {"moments": True}, True),
        "valid": (kernels.gae, lambda: with_mask("valid"), True),
        "skip": (kernels.gae, lambda: with_mask("skip"), True),
        "gamma of each step": (kernels.gae, lambda: gae_args() | {"gamma": torch.rand(8, 64)}, True),
        "gamma of one": (kernels.gae, lambda: gae_args() | {"gamma": 1, "lmbda": 1.0}, True),
        "integer flags": (kernels.gae, lambda: gae_args() | {"done": torch.randint(2, (8, 64))}, False),
        "packed": (kernels.gae, packed, True),
        "derived and masked": (kernels.gae, lambda: derived() | {"valid": torch.rand(8, 64) < 0.5}, True),
        "returns": (returns, lambda: without(gae_args(), "value"), True),
        "reward to go": (kernels.reward_to_go, lambda: without(gae_args(), *to_go), True),
        "vtrace": (kernels.vtrace, trace_args, True),
        "vtrace and a gamma like its thresholds": (kernels.vtrace, lambda: trace_args() | {"gamma": 1.0}, True),
        "vtrace thresholds": (kernels.vtrace, lambda: trace_args() | {"c_thresh": 0.7, "rho_thresh": 0.7}, True),
        "recurrence": (kernels.linear_recurrence, lambda: {"a": torch.rand(3, 5), "b": torch.rand(3, 5)}, True),
        "carry": (
            kernels.linear_recurrence,
            lambda: {"a": torch.rand(3, 5), "b": torch.rand(3, 5), "carry": torch.rand(3), "reverse": False},
            True,
        ),
    }


CALLS = public_calls()


def other_numbers(args: dict[str, Any]) -> dict[str, Any]:
    return {name: 0.5 * x - 0.01 * i if type(x) is float else x for i, (name, x) in enumerate(args.items())}


@pytest.mark.parametrize("name", CALLS)
def test_a_public_call_like_one_before_launches_what_its_checks_would_have_led_to(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    function, made, straight = CALLS[name]
    first = made()
    like = {n: x if not isinstance(x, Tensor) else _same(x) for n, x in first.items()} if straight else first
    for _ in range(2):  # at first one tensor in all places that look alike
        function(**like)
    args = other_numbers(made())
    reached: list[str] = []
    real = launch._run
    with monkeypatch.context() as patch:
        patch.setattr(launch, "_run", lambda op, *args: reached.append(op) or real(op, *args))
        found, _, results = noted(lambda: function(**args))
    assert (reached == []) == straight, "whether it went the long way"
    monkeypatch.setattr(launch, "repeated", lambda key: None)
    wanted, _, wanted_results = noted(lambda: function(**args))
    if straight:
        assert_alike(found, results, wanted, wanted_results)
    else:  # what is made for the call stands anywhere
        assert [x._replace(parameters=()) for x in found] == [x._replace(parameters=()) for x in wanted]
    pairs = zip(*((x,) if isinstance(x, Tensor) else x for x in (results, wanted_results)), strict=True)
    for x, y in pairs:
        assert (x.shape, x.stride(), x.dtype) == (y.shape, y.stride(), y.dtype)


def test_arguments_given_by_position_are_the_same_as_by_name() -> None:
    args = gae_args()
    tensors = [args[name] for name in ("reward", "value", "next_value", "done", "terminated")]
    for _ in range(3):
        found, _, results = noted(lambda: kernels.gae(*tensors, time_dim=-1, lmbda=0.95, gamma=0.99))
        assert_alike(found, results, *noted(gae(args))[::2])


@pytest.mark.parametrize(
    ("changed_arguments", "error"),
    [
        ({"value": torch.rand(8, 63)}, RuntimeError),
        ({"done": torch.rand(8, 64)}, TypeError),
        ({"gamma": "0.9"}, TypeError),
        ({"time_dim": 2}, RuntimeError),
        ({"lmbda": torch.rand(3, 64)}, RuntimeError),
        ({"bootstrap_value": torch.rand(8)}, ValueError),
        ({"value": None}, TypeError),
    ],
    ids=str,
)
def test_a_wrong_call_is_refused_after_right_ones_too(
    changed_arguments: dict[str, Any], error: type[Exception]
) -> None:
    args = gae_args()
    for _ in range(3):
        noted(gae(args))
    for _ in range(2):
        with pytest.raises(error):
            kernels.gae(**args | changed_arguments)
    assert repeat.NOTES.calls is None


def test_whoever_must_see_the_op_sees_it_after_repeated_calls_too() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[str] = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func.name())
            return func(*args, **(kwargs or {}))

    args = gae_args()
    for _ in range(3):
        noted(gae(args))
    with Mode():
        kernels.gae(**args)
    assert "tritonrl::gae" in seen
    with torch.enable_grad():
        advantage, _ = kernels.gae(**args | {"reward": args["reward"].requires_grad_()})
    assert advantage.requires_grad
    with torch.no_grad():
        assert not kernels.gae(**args)[0].requires_grad


def test_nothing_of_a_call_is_kept_but_its_layouts() -> None:
    args = gae_args()
    results = kernels.gae(**args, moments=True)
    tensors = [weakref.ref(x) for x in (*args.values(), *results) if isinstance(x, Tensor)]
    del args, results
    gc.collect()
    assert [x for x in tensors if x() is not None] == []


def test_another_backend_is_asked_after_repeated_calls_too() -> None:
    args = gae_args()
    for _ in range(3):
        noted(gae(args))
    with kernels.use_backend("torch"):
        found, _, _ = noted(gae(args))
    assert found == []
    assert len(noted(gae(args))[0]) == 1


def test_calls_that_never_repeat_are_noted_once_and_do_not_eat_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeat, "_MOST_KEPT", 3)
    for steps in range(2, 9):
        done = torch.zeros(2, steps, dtype=torch.int64)
        for _ in range(2):
            kernels.reward_to_go(torch.rand(2, steps), done, gamma=0.9, time_dim=-1)
        assert 1 <= len(repeat._never) <= 3


def test_threads_may_meet_a_layout_at_once() -> None:
    """Each launches its own tensors, the first time and every other."""
    given = [gae_args() for _ in range(4)]
    start, wrong = threading.Barrier(4), list[str]()

    def work(args: dict[str, Any]) -> None:
        start.wait()
        with torch.no_grad():
            for _ in range(20):
                results = kernels.gae(**args)
                pointers = [args[name].data_ptr() for name in ("reward", "value", "next_value", "done", "terminated")]
                pointers += [x.data_ptr() for x in results]
                if not any([p for p in x.parameters if p in pointers] == pointers for x in tuple(launched)):
                    wrong.append("a launch of other tensors")

    launched.clear()
    threads = [threading.Thread(target=work, args=(args,)) for args in given]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and len(launched) == 80
