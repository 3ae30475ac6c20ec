"""``python -m tritonrl``: versions, devices and backends, and a self-check that fails when an operator is wrong."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tritonrl import doctor


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, print the report, return the exit code (0 right, 1 wrong, 2 bad arguments)."""
    parser = argparse.ArgumentParser(prog="python -m tritonrl", description=doctor.__doc__)
    parser.add_argument("--device", action="append", default=[], help="check only this device; may be repeated")
    options = parser.parse_args(arguments)
    known = [name for name, _ in doctor.devices()]
    for device in options.device:
        if device not in known:
            parser.error(f"argument --device: there is no {device!r} here, only {', '.join(known)}")
    return doctor.report(options.device)


if __name__ == "__main__":
    sys.exit(main())
