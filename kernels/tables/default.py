"""For every GPU without a table of its own. Not measured: see :mod:`tritonrl.kernels.tables`."""

from __future__ import annotations

from .table import Table

TABLE = Table(device="default")
