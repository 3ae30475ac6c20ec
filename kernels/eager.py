"""A call whose layouts were met before: all that is left of it is to allocate, take addresses and launch.

What layouts and dtypes decide is decided once: which argument goes where in the kernel, what the results look like, and,
after the first launch, which compiled kernel serves which alignment. Nothing here synchronises or reads a device's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .direct import Launch, alignment_of, is_watched, launch_on
from .number import value_of
from .plan import Plan
from .results import Results
from .sources import Sources, filled
from .workspace import NAMES, needs_workspace, workspace_of

Workspace = dict[str, Tensor]


Slowly = Callable[[tuple[Any, ...], tuple[Tensor, ...], Workspace | None], Launch | None]
"""Launches by Triton's public way, with arguments, results and workspace (or its own); returns what does the same again."""


class Call:
    """One op on one combination of layouts and one device."""

    def __init__(
        self,
        kernel: Any,
        plan: Plan,
        known: dict[str, Any],
        results: Results,
        written: Sequence[int],
        taken: Sources,
        moments: bool,
        slowly: Slowly,
    ) -> None:
        """``known``: the kernel's arguments that are the same at every call, by name. ``written``: which results it writes, by
        position. ``moments``: whether they are wanted, and are the last of those."""
        self.kernel, self.plan, self.moments = kernel, plan, moments
        self.results, self.written, self.taken, self.slowly = results, written, taken, slowly
        names = kernel.arg_names
        self.template = [known.get(name) for name in names]
        self.places = {name: i for i, name in enumerate(names) if name not in known}
        unknown = self.places.keys() - {"inputs", "outputs", *taken.beside, *NAMES}
        assert not unknown, f"a kernel takes {unknown}, which nobody knows"
        self.beside = [(self.places[name], make) for name, make in taken.beside.items() if make is not None]
        self.needs_workspace = needs_workspace(plan, moments)
        self.launches: dict[tuple[bool, ...], Launch] = {}  # by alignment; () where everything is aligned

    def __call__(self, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """Compute the op for arguments of the layouts that this was made for."""
        results, taken = self.results.allocate(args), self.taken
        workspace = workspace_of(self.plan, results[0], self.moments) if self.needs_workspace else {}
        pointers = [args[i].data_ptr() for i in taken.pointers]
        written = [results[i].data_ptr() for i in self.written]
        rooms = [x.data_ptr() for x in workspace.values()]
        alignment = alignment_of((*pointers, *written, *rooms))
        launch = self.launches.get(alignment)
        if launch is None or is_watched(self.kernel):
            launch = self.slowly(args, results, workspace)
            if launch is not None:
                self.launches[alignment] = launch
            return results
        fills = [filled(args[i], self.results.device) for i in taken.filled]  # they live until the kernel is launched
        values = (*pointers, *[x.data_ptr() for x in fills], *[value_of(args[i]) for i in taken.numbers], None)
        arguments, places = self.template.copy(), self.places
        arguments[places["inputs"]] = taken.inputs(values)
        if workspace:
            by_name = dict(zip(workspace, rooms, strict=True))
            if self.moments:
                arguments[places["moments"]] = (by_name.pop("partials"), written.pop(), by_name.pop("counter"))
            for name, room in by_name.items():
                arguments[places[name]] = room
        arguments[places["outputs"]] = tuple(written)
        for place, make in self.beside:
            arguments[place] = make(values)
        launch_on(self.results.device, launch, arguments)
        return results
