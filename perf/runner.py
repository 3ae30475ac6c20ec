"""One case after the other: draw, gate, time interleaved."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import oracle
from .cases import Case
from .clocks import Clock, Kind, clocks_for
from .data import Problem, make_problem, minimum_bytes
from .gate import TOLERANCE, Verdict, judge
from .ops import OPS, Outputs
from .peers import OURS, PEERS, NotServed, Peer
from .records import ABSENT, FAILED, LEFT_OUT, TIMED, WRONG, Result, Spread

Call = Callable[[], Outputs]


@dataclass(frozen=True)
class Settings:
    """How long to look. ``seconds``: for each contender and clock. ``least``, ``most``: how many samples."""

    seconds: float = 0.3
    least: int = 5
    most: int = 200

    def samples_for(self, lasted: float) -> int:
        """How many samples of a clock whose first one took ``lasted`` seconds. Of what takes longest, three must do."""
        least = self.least if lasted < 0.2 else min(3, self.least)
        return int(min(max(self.seconds / max(lasted, 1e-9), least), self.most))


@dataclass
class Contender:
    """A peer that passed the gate, with the call to time and the result to fill in."""

    result: Result
    call: Call
    clone: Call


def missing_peers() -> dict[str, str]:
    """The peers that cannot run here, and why."""
    return {peer.name: why for peer in PEERS if (why := peer.missing()) is not None}


def run_case(
    case: Case, device: str, peers: Sequence[Peer] = PEERS, settings: Settings = Settings(), ours: Peer = OURS
) -> list[Result]:
    """Gate and time ours and the peers on one case. Whoever is not timed is in the results too, with the reason."""
    torch._dynamo.reset()  # what was compiled for other shapes would count towards the limit of recompilations
    problem = make_problem(case, device)
    incoming = _incoming(problem)
    results, contenders = [], []
    gate = _Gate(incoming)
    for peer in (ours, *peers):
        result, call = _admit(peer, problem, gate)
        results.append(result)
        if call is not None:
            contenders.append(Contender(result, call, _clone_call(result.bytes, problem.device)))
    for kind in clocks_for(problem.device.type, case.mode):
        _time([c for c in contenders if kind.peers or c.result is results[0]], kind, settings)
    for contender in contenders:
        if not contender.result.clocks:
            contender.result.status = FAILED
    return results


def gated(case: Case, device: str, peer: Peer) -> tuple[Result, Call | None]:
    """One peer on one case, gated but not timed: its result so far, and its call when it is right."""
    problem = make_problem(case, device)
    return _admit(peer, problem, _Gate(_incoming(problem)))


def _incoming(problem: Problem) -> Outputs:
    """The gradients that arrive at the outputs, for a backward case."""
    if problem.case.direction == "forward":
        return ()
    generator = torch.Generator(problem.device).manual_seed(7)
    like = problem.full_tensors()[0]
    drawn = [torch.randn(problem.shape, generator=generator, device=like.device) for _ in OPS[problem.op].outputs]
    return tuple(x.to(like.dtype) for x in drawn)


class _Gate:
    """The exact answers of one case, computed once for all who solve the same problem."""

    def __init__(self, incoming: Outputs) -> None:
        self.incoming = incoming
        self._answers: list[tuple[Problem, Outputs]] = []

    def exact(self, problem: Problem) -> Outputs:
        """What the call has to return."""
        for known, answer in self._answers:
            if known is problem:
                return answer
        answer = oracle.gradient(problem, self.incoming) if self.incoming else oracle.answer(problem)
        self._answers.append((problem, answer))
        return answer

    def judge(self, results: Outputs, problem: Problem) -> Verdict:
        """Hold results against the exact ones."""
        op = OPS[problem.op]
        names = tuple(f"the gradient of {name}" for name in op.differentiated) if self.incoming else op.outputs
        return judge(results, self.exact(problem), names, TOLERANCE[problem.full_tensors()[0].dtype])


def _admit(peer: Peer, problem: Problem, gate: _Gate) -> tuple[Result, Call | None]:
    """The result of a peer so far, and its call when it was found to be right."""
    result = Result(problem.case, peer.name, LEFT_OUT, smaller=peer.smaller)
    for status, reason in ((ABSENT, peer.missing()), (LEFT_OUT, peer.refusal(problem))):
        if reason is not None:
            result.status, result.reason = status, reason
            return result, None
    try:
        reduced = peer.reduced(problem)
        result.bytes = minimum_bytes(reduced)
        call = _bound(peer, reduced, gate.incoming)
        verdict = gate.judge(call(), reduced)
    except NotServed as reason:
        result.reason = str(reason)
        return result, None
    except Exception as error:  # a peer that breaks must not take the run with it; ours is reported as loudly
        result.status, result.reason = (
            FAILED,
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
        )
        return result, None
    result.error = verdict.error
    result.status, result.reason = (TIMED, "") if verdict.ok else (WRONG, verdict.detail)
    return result, call if verdict.ok else None


def _bound(peer: Peer, problem: Problem, incoming: Outputs) -> Call:
    """The call to gate and to time: the forward pass, or the backward pass alone through a graph made once."""
    if problem.case.direction == "forward":
        return peer.bind(problem)
    torch._functorch.config.donated_buffer = False  # compiled graphs, too, are walked more than once
    problem = problem.requiring_grad()
    outputs = peer.bind(problem)()
    leaves = [problem.arguments[name] for name in OPS[problem.op].differentiated]
    return lambda: torch.autograd.grad(outputs, leaves, incoming, retain_graph=True)


def _clone_call(size: int, device: torch.device) -> Call:
    """``clone()`` that moves ``size`` bytes: half of them read, half written."""
    x: Tensor = torch.ones(max(1, size // 8), dtype=torch.float32, device=device)
    return lambda: (x.clone(),)


def _time(contenders: Sequence[Contender], kind: Kind, settings: Settings) -> None:
    """Sample every contender, and the clone beside it, in the same rounds."""
    clocks: list[tuple[dict[str, Spread], Clock]] = []
    made: dict[int, dict[str, Spread]] = {}
    for contender in contenders:
        try:
            clocks.append((contender.result.clocks, kind.make(contender.call)))
        except Exception as error:  # no capture, no profiler: this clock is missing for this contender
            contender.result.reason += f"{kind.name}: {type(error).__name__}: {str(error).splitlines()[0]}; "
            continue
        size = contender.result.bytes
        if size not in made:
            made[size] = {}
            clocks.append((made[size], kind.make(contender.clone)))
    for (into, _), samples in zip(clocks, interleaved([clock for _, clock in clocks], settings), strict=True):
        into[kind.name] = Spread.of(samples)
    for contender in contenders:
        contender.result.clone.update(made.get(contender.result.bytes, {}))


def interleaved(clocks: Sequence[Clock], settings: Settings) -> list[list[float]]:
    """Samples of every clock, taken in turns: what disturbs the machine for a while disturbs all of them.

    A slow clock is sampled less often, but over the whole time.
    """
    samples: list[list[float]] = [[] for _ in clocks]
    wanted = []
    gc.collect()
    gc.disable()
    try:
        for clock in clocks:
            start = time.perf_counter()
            clock.sample()  # the last warm-up
            wanted.append(settings.samples_for(time.perf_counter() - start))
        for turn in _turns(wanted):
            samples[turn].append(clocks[turn].sample())
    finally:
        gc.enable()
    return samples


def _turns(wanted: Sequence[int]) -> Iterator[int]:
    """Whose turn it is: each ``i`` comes ``wanted[i]`` times, spread evenly over as many rounds as the largest needs.

    The order within a round is drawn anew every time, so that nobody always follows the same one.
    """
    rounds, order = max(wanted, default=0), random.Random(0)
    for r in range(rounds):
        due = [i for i, n in enumerate(wanted) if (r + 1) * n // rounds > r * n // rounds]
        order.shuffle(due)
        yield from due
