"""The ops as citizens of torch: opcheck, fake and meta tensors, vmap and torch.func, torch.compile, autocast, errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tritonrl import kernels
from tritonrl.kernels.specs import SPECS

from .arguments import (
    ALL,
    DATA,
    DISCOUNTS,
    LAYOUTS,
    WITH_FLAGS,
    Args,
    assert_close,
    convert,
    draw,
    flags_of,
    floating,
    laid_out,
    run,
)

FORWARD = [op for op in SPECS if not op.endswith("_backward")]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def schema_names(op: str) -> list[str]:
    """The names of an op's arguments, as torch knows them; the optional masks are for test_ragged.py."""
    arguments = getattr(torch.ops.tritonrl, op).default._schema.arguments
    return [argument.name for argument in arguments if not argument.has_default_value()]


def schema_args(op: str, args: Args, time_dim: int, **more: Any) -> tuple[Any, ...]:
    """Arguments in schema order, numbers as 0-dim tensors; every result or gradient that a backward op wants is random."""
    made = {n: x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64) for n, x in args.items()}
    made |= {"time_dim": time_dim, "reverse": True, "with_discounts": True, "carry": args.get("carry")} | more  # type: ignore[dict-item]
    like = next(x for name, x in args.items() if name in ("value", "b", "reward"))
    for name in schema_names(op):
        if name not in made:
            made[name] = torch.randn_like(like)
    return tuple(made[name] for name in schema_names(op))


def family(op: str) -> str:
    """The forward op that a backward op belongs to."""
    return op.removesuffix("_backward")


@pytest.mark.parametrize(
    ("op", "layout"), [*((op, "[N,T]") for op in SPECS), *((op, "[T,N]") for op in FORWARD)], ids=str
)
def test_opcheck_finds_nothing(op: str, layout: str, device: str) -> None:
    shape, time_dim, _ = LAYOUTS[layout]
    carried = {"linear_recurrence": "linear_recurrence_carried"}.get(family(op), family(op))
    args = convert(draw(carried, shape(3, 9), time_dim, discounts="step"), device=device)
    given = schema_args(op, args, time_dim - 2 if time_dim >= 0 else time_dim)
    if op in FORWARD:
        given = tuple(x.requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in given)
    results = torch.library.opcheck(getattr(torch.ops.tritonrl, op).default, given)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("op", FORWARD)
def test_opcheck_finds_nothing_where_arguments_are_left_out_or_broadcast(op: str, device: str) -> None:
    args = convert(draw(op, (3, 9), -1), device=device)
    args["terminated" if "terminated" in args else "carry"] = None
    last = DATA[op][-1]
    args[last] = args[last][:1] if len(DATA[op]) > 1 else args[last]
    given = schema_args(op, {n: x for n, x in args.items() if x is not None}, -1, terminated=None, carry=None)
    given = tuple(x.requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in given)
    assert set(torch.library.opcheck(getattr(torch.ops.tritonrl, op).default, given).values()) == {"SUCCESS"}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", SPECS)
def test_fake_results_have_the_shapes_strides_and_dtypes_of_real_ones(op: str, layout: str) -> None:
    with kernels.use_backend("torch"):  # every backend takes its results from the same place: see test_recurrences.py
        assert_fake_is_real(op, layout)


def assert_fake_is_real(op: str, layout: str) -> None:
    shape, time_dim, _ = LAYOUTS[layout]
    full = shape(3, 4)
    args = laid_out(family(op), convert(draw(family(op), full, time_dim), torch.float32), LAYOUTS[layout])
    for more in ({}, {"with_discounts": False}) if "with_discounts" in schema_names(op) else ({},):
        # Backward ops get results and gradients of full shape, of the value's layout.
        like = {
            n: x.expand(full).clone() if isinstance(x, Tensor) and op not in FORWARD and n in DATA[family(op)] else x
            for n, x in args.items()
        }
        given = schema_args(op, like, time_dim % len(full) - len(full), **more)
        call = getattr(torch.ops.tritonrl, op)
        real = call(*given)
        with FakeTensorMode() as mode:
            fake = call(*(mode.from_tensor(x) if isinstance(x, Tensor) else x for x in given))
        for x, y in zip(*((r,) if isinstance(r, Tensor) else r for r in (real, fake)), strict=True):
            assert (x.shape, x.stride(), x.dtype, x.device) == (y.shape, y.stride(), y.dtype, y.device)


@pytest.mark.parametrize("op", ALL)
def test_meta_tensors_give_meta_tensors(op: str) -> None:
    args = convert(draw(op, (3, 4), -1), torch.bfloat16)
    real = run(op, args, -1)
    for x, y in zip(run(op, convert(args, device="meta"), -1), real, strict=True):
        assert x.device.type == "meta"
        assert (x.shape, x.stride(), x.dtype) == (y.shape, y.stride(), y.dtype)


@pytest.mark.parametrize("op", ALL)
def test_inference_mode_and_no_grad_compute_the_same(op: str, device: str) -> None:
    args = convert(draw(op, (3, 20), -1), torch.float32, device)
    wanted = run(op, args, -1)
    with torch.inference_mode():
        inferred = run(op, {n: x.clone() if isinstance(x, Tensor) else x for n, x in args.items()}, -1)
    for x, y in zip(inferred, wanted, strict=True):
        assert torch.equal(x, y)
        assert x.is_inference()
    args[DATA[op][-1]].requires_grad_()
    with torch.no_grad():
        assert not any(x.requires_grad for x in run(op, args, -1))
    assert any(x.requires_grad for x in run(op, args, -1))


@pytest.mark.parametrize("op", ALL)
def test_autocast_leaves_the_recurrence_in_its_own_precision(op: str, device: str) -> None:
    args = convert(draw(op, (3, 20), -1), torch.float32, device)
    args[DATA[op][-1]].requires_grad_()
    wanted = run(op, args, -1)
    with torch.autocast(device, torch.bfloat16):
        cast = run(op, args, -1)
        grad = torch.autograd.grad(cast[0].sum(), args[DATA[op][-1]])[0]
    for x, y in zip(cast, wanted, strict=True):
        assert x.dtype is torch.float32
        assert torch.equal(x, y)
    assert torch.equal(grad, torch.autograd.grad(wanted[0].sum(), args[DATA[op][-1]])[0])


# vmap and torch.func


def tensors_of(op: str, args: Args) -> list[str]:
    return [name for name, x in args.items() if isinstance(x, Tensor)]


def batched(op: str, names: list[str], args: Args, in_dims: dict[str, int | None], time_dim: int) -> tuple[Tensor, ...]:
    """The op under vmap, of the tensors ``names``; the rest is closed over."""

    def one(*xs: Tensor) -> tuple[Tensor, ...]:
        return run(op, args | dict(zip(names, xs, strict=True)), time_dim)

    return torch.vmap(one, in_dims=tuple(in_dims[n] for n in names))(*(args[n] for n in names))


def looped(op: str, names: list[str], args: Args, in_dims: dict[str, int | None], time_dim: int) -> tuple[Tensor, ...]:
    """The same by a loop."""
    size = next(args[n].shape[d] for n, d in in_dims.items() if d is not None)
    each = []
    for i in range(size):
        picked = {n: args[n] if in_dims[n] is None else args[n].select(in_dims[n], i) for n in names}  # type: ignore[arg-type]
        each.append(run(op, args | picked, time_dim))
    return tuple(torch.stack(x) for x in zip(*each, strict=True))


def assert_vmap_is_a_loop(op: str, args: Args, in_dims: dict[str, int | None], time_dim: int) -> None:
    names = list(in_dims)
    actual, wanted = (f(op, names, args, in_dims, time_dim) for f in (batched, looped))
    for x, y in zip(actual, wanted, strict=True):
        assert_close(x, y.double().cpu(), (op, in_dims, time_dim))


@pytest.mark.parametrize("time_dim", [-1, -2, 0, 1])
@pytest.mark.parametrize("op", ALL)
def test_vmap_over_each_argument_alone_and_all_at_once(op: str, time_dim: int, device: str) -> None:
    single = convert(draw(op, (9, 9), time_dim, discounts="step"), device=device)
    names = tensors_of(op, single)
    for chosen in [*([name] for name in names), names]:
        args = dict(single)
        for name in chosen:
            more = draw(op, (4, 9, 9), time_dim if time_dim < 0 else time_dim + 1, discounts="step")[name]
            args[name] = more.to(device)
        assert_vmap_is_a_loop(op, args, {n: 0 if n in chosen else None for n in names}, time_dim)


@pytest.mark.parametrize("op", ALL)
def test_the_batch_of_vmap_may_be_any_dimension_of_each_argument(op: str, device: str) -> None:
    drawn = convert(draw(op, (4, 5, 9), -1, discounts="step"), device=device)
    names = tensors_of(op, drawn)
    for first in range(3):
        in_dims: dict[str, int | None] = {n: (first + i) % (drawn[n].dim()) for i, n in enumerate(names)}
        args = {n: x.movedim(0, in_dims[n]) for n, x in drawn.items()}  # type: ignore[arg-type]
        assert_vmap_is_a_loop(op, args, in_dims, -1)
        assert_vmap_is_a_loop(op, args, {n: d - args[n].dim() for n, d in in_dims.items()}, -1)  # type: ignore[operator]


@pytest.mark.parametrize("op", ALL)
def test_vmap_over_arguments_that_broadcast_inside(op: str, device: str) -> None:
    """Batched and not, of lower rank and not, numbers that become a batch of numbers."""
    single = convert(draw(op, (5, 9), -1, discounts="scalar"), device=device)
    names = tensors_of(op, single)
    args = dict(single)
    in_dims: dict[str, int | None] = dict.fromkeys(names)
    for i, name in enumerate(names):
        if name in DISCOUNTS.get(op, ()):
            args[name] = torch.linspace(0.5, 1.0, 4, dtype=torch.float64, device=device)  # one number for each example
            in_dims[name] = 0
        elif name != "carry" and i % 3 == 1:
            args[name] = draw(op, (4, 9), -1)[name].to(device)  # [batch, T], broadcast along lanes
            in_dims[name] = 0
        elif name != "carry" and i % 3 == 2:
            args[name] = single[name][0]  # [T], the same for the batch
    if not any(d is not None for d in in_dims.values()):
        args[names[0]], in_dims[names[0]] = single[names[0]].expand(4, 5, 9), 0
    assert_vmap_is_a_loop(op, args, in_dims, -1)


@pytest.mark.parametrize("op", ALL)
def test_vmap_of_vmap_is_two_loops(op: str, device: str) -> None:
    args = convert(draw(op, (2, 3, 4, 9), -1, discounts="step"), device=device)
    names = tensors_of(op, args)

    def one(*xs: Tensor) -> tuple[Tensor, ...]:
        return run(op, dict(zip(names, xs, strict=True)), -1)

    nested = torch.vmap(torch.vmap(one))(*(args[n] for n in names))
    for x, y in zip(nested, run(op, args, -1), strict=True):
        assert_close(x, y.double().cpu())


def loss_of(op: str, args: Args, names: tuple[str, ...]) -> Callable[..., Tensor]:
    """A loss whose gradient is not constant, as a function of the named arguments."""

    def loss(*xs: Tensor) -> Tensor:
        outputs = run(op, args | dict(zip(names, xs, strict=True)), -1)
        total: Tensor = sum(y.square().sum() for y in outputs)  # type: ignore[assignment]
        return total

    return loss


@pytest.mark.parametrize("op", ALL)
def test_func_grad_is_autograd(op: str, device: str) -> None:
    args = convert(draw(op, (3, 9), -1, discounts="scalar"), device=device)
    names = floating(op)
    loss, argnums = loss_of(op, args, names), tuple(range(len(names)))
    found = torch.func.grad(loss, argnums)(*(args[n] for n in names))
    leaves = [args[n].detach().clone().requires_grad_() for n in names]
    wanted = torch.autograd.grad(loss(*leaves), leaves)
    for name, x, y in zip(names, found, wanted, strict=True):
        assert_close(x, y.cpu(), name)


@pytest.mark.parametrize("op", ALL)
def test_vmap_of_grad_gives_the_gradient_of_each_example(op: str, device: str) -> None:
    args = convert(draw(op, (4, 3, 9), -1, discounts="step"), device=device)
    names, all_names = floating(op), tensors_of(op, args)

    def gradient(*xs: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(all_names, xs, strict=True))
        found: tuple[Tensor, ...] = torch.func.grad(loss_of(op, given, names), tuple(range(len(names))))(
            *(given[n] for n in names)
        )
        return found

    together = torch.vmap(gradient)(*(args[n] for n in all_names))
    apart = [gradient(*(args[n][i] for n in all_names)) for i in range(4)]
    for name, x, y in zip(names, together, zip(*apart, strict=True), strict=True):
        assert_close(x, torch.stack(y).cpu(), name)


@pytest.mark.parametrize("op", ALL)
def test_jacrev_is_the_jacobian_row_by_row(op: str, device: str) -> None:
    args = convert(draw(op, (1, 8), -1, discounts="scalar"), device=device)
    names = floating(op)

    def outputs(*xs: Tensor) -> Tensor:
        return torch.stack(run(op, args | dict(zip(names, xs, strict=True)), -1))

    leaves = tuple(args[n] for n in names)
    wanted = torch.autograd.functional.jacobian(outputs, leaves)
    for name, x, y in zip(names, torch.func.jacrev(outputs, tuple(range(len(names))))(*leaves), wanted, strict=True):
        assert_close(x, y.cpu(), name)


@pytest.mark.parametrize("op", ["gae", "vtrace"])
def test_the_gradient_of_a_gradient_goes_through_torch_func_too(op: str, device: str) -> None:
    """Meta-gradients: how the gradient of a loss changes with gamma."""
    args = convert(draw(op, (2, 9), -1, discounts="scalar"), device=device)

    def slope(gamma: Tensor) -> Tensor:
        inner = torch.func.grad(lambda reward: loss_of(op, args, ("reward", "gamma"))(reward, gamma))
        result: Tensor = inner(args["reward"]).square().sum()
        return result

    gamma = args["gamma"]
    step = 1e-6
    numeric = (slope(gamma + step) - slope(gamma - step)) / (2 * step)
    assert torch.func.grad(slope)(gamma).item() == pytest.approx(numeric.item(), rel=1e-6)


# torch.compile


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("op", ALL)
def test_a_compiled_op_has_no_graph_break_and_is_compiled_once(op: str, device: str) -> None:
    """Gamma may change as a tensor, and as a number once that is known to change; so may the size of the batch."""
    counter = CompileCounter()
    compiled = torch.compile(lambda args: run(op, args, -1), fullgraph=True, backend=counter)
    for n, (lanes, number) in enumerate(((3, 0.9), (5, 0.8), (7, 0.7), (11, 0.99))):
        args = convert(draw(op, (lanes, 6), -1), torch.float32, device)
        args |= dict.fromkeys(DISCOUNTS.get(op, ()), number)
        if n == 2:
            seen = counter.frame_count
        for x, y in zip(compiled(args), run(op, args, -1), strict=True):
            assert_close(x, y.double().cpu(), (lanes, number))
    assert seen <= 3
    assert counter.frame_count == seen, "compiled again though nothing new happened"


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("op", WITH_FLAGS)
def test_a_discount_that_is_a_tensor_never_compiles_again(op: str, device: str) -> None:
    counter = CompileCounter()
    compiled = torch.compile(lambda args: run(op, args, -1), fullgraph=True, backend=counter)
    args = convert(draw(op, (3, 6), -1), torch.float32, device)
    for number in (0.9, 0.8, 0.7):
        given = args | {name: torch.tensor(number, device=device) for name in DISCOUNTS[op]}
        for x, y in zip(compiled(given), run(op, given, -1), strict=True):
            assert_close(x, y.double().cpu(), number)
    assert counter.frame_count == 1


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("op", ALL)
def test_forward_and_backward_compile_as_one_graph_each(op: str, device: str) -> None:
    args = convert(draw(op, (3, 9), -1, discounts="scalar"), device=device)
    names = floating(op)
    loss = loss_of(op, args, names)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    leaves = [args[n].detach().clone().requires_grad_() for n in names]
    found = torch.autograd.grad(compiled(*leaves), leaves)
    for name, x, y in zip(names, found, torch.autograd.grad(loss(*leaves), leaves), strict=True):
        assert_close(x, y.cpu(), name)


@pytest.mark.usefixtures("fresh_dynamo")
def test_inductor_compiles_what_lies_around_an_op_and_its_gradient(device: str) -> None:
    args = convert(draw("gae", (17, 19), -1), torch.float32, device)

    def loss(value: Tensor, gamma: float) -> Tensor:
        advantage, target = run("gae", args | {"value": value.tanh(), "gamma": gamma}, -1)
        return (advantage.square() + target).mean()

    compiled = torch.compile(loss, fullgraph=True)
    value = args["value"].clone().requires_grad_()
    for gamma in (0.9, 0.8, 0.7):
        wanted, actual = loss(value, gamma), compiled(value, gamma)
        assert_close(actual, wanted.double().cpu())
        (grad,) = torch.autograd.grad(actual, value)
        assert_close(grad, torch.autograd.grad(wanted, value)[0].double().cpu())


@pytest.mark.usefixtures("fresh_dynamo")
def test_a_compiled_graph_follows_the_choice_of_backend_without_compiling_again() -> None:
    counter = CompileCounter()
    compiled = torch.compile(lambda args: run("gae", args, -1), fullgraph=True, backend=counter)
    args = convert(draw("gae", (3, 6), -1), torch.float32)
    results = []
    for backend in (None, "torch"):
        with kernels.use_backend(backend):
            results.append(compiled(args))
    for x, y in zip(*results, strict=True):
        assert_close(x, y.double())
    assert counter.frame_count == 1


@pytest.mark.usefixtures("fresh_dynamo")
def test_export_keeps_the_op_in_the_graph() -> None:
    class Advantage(torch.nn.Module):
        def forward(self, reward: Tensor, value: Tensor, next_value: Tensor, done: Tensor) -> Tensor:
            return kernels.gae(reward, value, next_value, done, gamma=0.9, lmbda=0.8, time_dim=-1)[0]

    args = convert(draw("gae", (3, 6), -1), torch.float32)
    given = tuple(args[n] for n in ("reward", "value", "next_value", "done"))
    exported = torch.export.export(Advantage(), given)
    assert "tritonrl.gae" in exported.graph_module.code
    assert_close(exported.module()(*given), Advantage()(*given).double())


# Errors


def complain(op: str, error: type[Exception], *words: str, **changed: Any) -> None:
    """The call fails with ``error`` and a message that has all of ``words``, and no input is modified."""
    args = convert(draw(op, (3, 6), -1), torch.float32)
    time_dim = changed.pop("time_dim", -1)
    before = {n: x.clone() for n, x in args.items() if isinstance(x, Tensor)}
    with pytest.raises(error) as caught:
        run(op, args | changed, time_dim)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    for name, x in before.items():
        assert torch.equal(args[name], x)


@pytest.mark.parametrize("op", ALL)
def test_shapes_that_do_not_fit_are_named(op: str) -> None:
    for name in DATA[op]:
        if len(DATA[op]) > 1:
            complain(op, RuntimeError, name, "(4, 6)", "(3, 6)", **{name: torch.zeros(4, 6)})
    for name in flags_of(op):
        complain(op, RuntimeError, name, "(4, 6)", "(3, 6)", **{name: torch.zeros(4, 6, dtype=torch.bool)})
        # Flags do not make the data larger.
        complain(op, RuntimeError, name, "(2, 3, 6)", "(3, 6)", **{name: torch.zeros(2, 3, 6, dtype=torch.bool)})
    for name in DISCOUNTS.get(op, ()):
        complain(op, RuntimeError, name, "(5,)", "(3, 6)", **{name: torch.ones(5)})
        complain(op, RuntimeError, name, "(2, 3, 6)", "(3, 6)", **{name: torch.ones(2, 3, 6)})
    if "carry" in floating(op):
        complain(op, RuntimeError, "carry", "(4,)", "(3,)", carry=torch.zeros(4))
        complain(op, RuntimeError, "carry", "(3, 6)", "(3,)", carry=torch.zeros(3, 6))


@pytest.mark.parametrize("op", ALL)
def test_a_time_dimension_that_is_not_there_is_named(op: str) -> None:
    for time_dim in (2, -3, 7):
        complain(op, RuntimeError, "time_dim", str(time_dim), "-2 to 1", "(3, 6)", time_dim=time_dim)


def test_a_number_in_place_of_a_tensor_of_no_dimension_has_no_time() -> None:
    with pytest.raises(RuntimeError, match="time_dim"):
        kernels.linear_recurrence(torch.tensor(1.0), torch.tensor(1.0))


@pytest.mark.parametrize("op", ALL)
def test_what_is_no_tensor_is_named(op: str) -> None:
    for name in DATA[op]:
        complain(op, TypeError, name, "float", **{name: 1.0})
        complain(op, TypeError, name, "complex64", **{name: torch.zeros(3, 6, dtype=torch.complex64)})
    for name in flags_of(op):
        complain(op, TypeError, name, "float32", **{name: torch.zeros(3, 6)})
        complain(op, TypeError, name, "list", **{name: [True]})
    for name in DISCOUNTS.get(op, ()):
        complain(op, TypeError, name, "str", **{name: "0.9"})
    if "carry" in floating(op):
        complain(op, TypeError, "carry", "float", carry=0.0)


@pytest.mark.parametrize("op", WITH_FLAGS)
def test_a_discount_on_another_device_is_named(op: str) -> None:
    for name in DISCOUNTS[op]:
        complain(op, ValueError, name, "meta", "cpu", **{name: torch.ones(3, 6, device="meta")})


@pytest.mark.parametrize("op", ALL)
def test_data_on_two_devices_are_named(op: str) -> None:
    data = DATA[op] if len(DATA[op]) > 1 else ()  # a single one cannot disagree with itself
    for name in (*data, *flags_of(op)):
        x = torch.zeros(3, 6, device="meta", dtype=torch.bool if name in flags_of(op) else torch.float32)
        complain(op, ValueError, name, "meta", "cpu", **{name: x})
    if "carry" in floating(op):
        complain(op, ValueError, "carry", "meta", "cpu", carry=torch.zeros(3, device="meta"))


# -- the way past the dispatcher ---------------------------------------------------------------------------------------


def _to_go(reward: Tensor) -> Tensor:
    return kernels.reward_to_go(reward, torch.zeros(reward.shape, dtype=torch.bool), gamma=0.5, time_dim=-1)


def _calls_of_the_dispatcher(call: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> int:
    seen = []
    ops = torch.ops.tritonrl
    real = ops.reward_to_go
    monkeypatch.setattr(ops, "reward_to_go", lambda *args: seen.append(args) or real(*args))
    call()
    monkeypatch.undo()
    return len(seen)


def test_a_plain_call_goes_straight_to_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = torch.ones(3, 5)
    assert _calls_of_the_dispatcher(lambda: _to_go(reward), monkeypatch) == 0
    # So does one that autograd records, and its backward pass.
    reward.requires_grad_()
    assert _calls_of_the_dispatcher(lambda: _to_go(reward).sum().backward(), monkeypatch) == 0
    assert torch.equal(reward.grad, torch.tensor([1.0, 1.5, 1.75, 1.875, 1.9375]).expand(3, 5))
    with CountingMode() as mode:
        _to_go(reward)
    assert mode.seen == ["tritonrl::reward_to_go"]


class CountingMode(TorchDispatchMode):
    """Sees our ops."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "tritonrl":
            self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


def test_a_profiler_sees_the_op() -> None:
    with torch.profiler.profile() as profile:
        _to_go(torch.ones(3, 5))
    assert any(event.key == "tritonrl::reward_to_go" for event in profile.key_averages())


def test_a_negated_view_is_read_for_what_it_says() -> None:
    reward = torch.view_as_complex(torch.randn(4, 2)).conj().imag
    assert reward.is_neg()
    assert torch.equal(_to_go(reward), _to_go(reward.resolve_neg().clone()))


def test_a_subclass_is_asked_first() -> None:
    class Seen(Tensor):
        calls = 0

        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            Seen.calls += "reward_to_go" in str(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    _to_go(torch.ones(3, 5).as_subclass(Seen))
    assert Seen.calls


@pytest.mark.filterwarnings("ignore")
def test_a_traced_function_holds_the_op_and_not_its_result() -> None:
    traced = torch.jit.trace(_to_go, torch.ones(3, 5), check_trace=False)
    reward = torch.randn(3, 5)
    assert torch.equal(traced(reward), _to_go(reward))
