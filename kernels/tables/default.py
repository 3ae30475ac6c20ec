"""For every GPU without a table of its own: not measured there, but the numbers that were found on an H100."""

from __future__ import annotations

from .table import Table

TABLE = Table(device="default")
