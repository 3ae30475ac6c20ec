"""Plan tables: the numbers that :mod:`tritonrl.kernels.plan` decides by, one table for each GPU that was measured.

A GPU that was not measured gets :mod:`.default`.

To add one: measure (``python -m perf tune``), write ``kernels/tables/<gpu>.py`` with ``TABLE = Table(device=...,
measured=..., ...)`` and add it to ``MEASURED``. ``device`` is what ``torch.cuda.get_device_name()`` says; ``measured`` says
when, with which versions and by which command, so that the numbers can be checked.
"""

from __future__ import annotations

from .default import TABLE as DEFAULT
from .h100 import TABLE as H100
from .table import Table

MEASURED: tuple[Table, ...] = (H100,)

_BY_DEVICE = {table.device: table for table in MEASURED}


def table_for(device_name: str | None) -> Table:
    """The table of a GPU by its name; the default for one that was not measured, and for ``None``.

    Example:
        >>> table_for("NVIDIA H100 80GB HBM3").measured[:10]
        '2026-11-28'
        >>> table_for("NVIDIA A10G").device
        'default'
    """
    return _BY_DEVICE.get(device_name or "", DEFAULT)


__all__ = ["DEFAULT", "MEASURED", "Table", "table_for"]
