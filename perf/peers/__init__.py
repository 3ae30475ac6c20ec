"""Who else computes it. One file per peer; each is optional, and named in the record when it is absent."""

from __future__ import annotations

from .accelerated import AcceleratedScan
from .associative_scan import AssociativeScan
from .base import NotServed, Peer
from .functional import OursByName, TorchRLLoop, TorchRLVectorised
from .hand_written import CompiledLogStep, CompiledLoop, PythonLoop
from .jax_scan import JaxScan
from .ours import Ours
from .rl_triton_peer import RlTriton
from .rlox_peer import Rlox

OURS = Ours()
PEERS: tuple[Peer, ...] = (
    OursByName(),
    TorchRLLoop(),
    TorchRLVectorised(),
    PythonLoop(),
    CompiledLoop(),
    CompiledLogStep(),
    AssociativeScan(),
    Rlox(),
    JaxScan(),
    AcceleratedScan(),
    RlTriton(),
)

__all__ = ["OURS", "PEERS", "NotServed", "Peer"]
