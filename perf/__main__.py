"""The command line: ``python -m perf [run|tune|host|inspect|report|...]``. ``run`` is what happens when none is named."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

# Command -> its module (with add_arguments) and what it does.
COMMANDS = {
    "run": (".session", "gate and time the cases (the default)"),
    "tune": (".tune", "plans of other tables than the default one, timed on a GPU"),
    "warm": (".warm", "compile for a GPU in many processes, before a run"),
    "host": (".host", "what a call on Triton costs the Python thread; needs no GPU"),
    "inspect": (".inspect", "what the compiler makes of every kernel; needs no GPU"),
    "report": (".report", "the records of all machines -> RESULTS.md and plots"),
    "losses": (".losses.command", "losses and estimators, eager and compiled, against TorchRL's"),
    "compare": (".compare", "two records; exits non-zero where the second is slower"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    if not given or given[0] not in (*COMMANDS, "-h", "--help"):
        given.insert(0, "run")
    parser = argparse.ArgumentParser("python -m perf", description="The benchmark suite of tritonrl.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (module, purpose) in COMMANDS.items():
        command = commands.add_parser(name, help=purpose)
        if name == given[0]:  # the others, and what they import, are not needed
            importlib.import_module(module, __package__).add_arguments(command)
    arguments = parser.parse_args(given)
    result: int = arguments.handler(arguments)
    return result


if __name__ == "__main__":
    sys.exit(main())
