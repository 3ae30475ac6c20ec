"""Checkpoints: written whole or not at all, with all that the next update depends on."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch

CHECKPOINT = "checkpoint.pt"


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that make a run what it is; folders belong to the call, not to the run."""
    return {name: value for name, value in vars(args).items() if name not in ("out", "overwrite", "resume")}


def save_checkpoint(program: str, args: argparse.Namespace, **state: Any) -> None:
    """Write a checkpoint whole or not at all, random number generators included."""
    state |= {"program": program, "settings": settings_of(args), "torch_rng": torch.get_rng_state(), "cuda_rng": None}
    if torch.device(args.device).type == "cuda":
        state["cuda_rng"] = torch.cuda.get_rng_state(args.device)
    torch.save(state, args.out / f"{CHECKPOINT}.tmp")
    os.replace(args.out / f"{CHECKPOINT}.tmp", args.out / CHECKPOINT)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What ``save_checkpoint`` wrote. It holds pickled environments, and unpickling runs code: load only your own."""
    return torch.load(path, map_location="cpu", weights_only=False)


def restore_rng(checkpoint: dict[str, Any], device: str) -> None:
    """Set the random number generators back to where ``save_checkpoint`` saw them."""
    torch.set_rng_state(checkpoint["torch_rng"])
    if torch.device(device).type == "cuda" and checkpoint["cuda_rng"] is not None:
        torch.cuda.set_rng_state(checkpoint["cuda_rng"], device)
