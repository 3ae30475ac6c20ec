"""Projection of a categorical distribution onto a fixed support (distributional reinforcement learning)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_support", "project_categorical"]


def check_support(support: Tensor) -> Tensor:
    """The support as it is, if it can be projected on.

    Waits for the device: meant for constructors.

    Raises:
        ValueError: unless it is ``[atoms]`` with at least two finite, strictly increasing atoms.
    """
    if support.ndim != 1 or support.shape[0] < 2:
        raise ValueError(f"the support must have the shape [atoms] with two atoms or more, got {tuple(support.shape)}")
    if not bool(torch.isfinite(support).all()) or not bool((support[1:] > support[:-1]).all()):
        raise ValueError(f"the atoms of the support must be finite and strictly increasing, got {support.tolist()}")
    return support


def project_categorical(probs: Tensor, atoms: Tensor, support: Tensor) -> Tensor:
    r"""Distribute mass that lies at ``atoms`` over the atoms of ``support`` (C51: Bellemare et al. 2017,
    https://arxiv.org/abs/1707.06887, algorithm 1).

    Mass p at T, with T clamped into the support and :math:`z_l \le T \le z_{l+1}`, is shared in proportion to nearness:

    .. math:: m_{l+1} \mathrel{+}= p\,\frac{T - z_l}{z_{l+1} - z_l}, \qquad m_l \mathrel{+}= p - \text{that}

    so the total mass is conserved, the mean too where nothing was clamped, and all of the mass at an atom goes to it.
    The support need not be evenly spaced. Runs on the device and in the dtype of the operands, without a wait for the
    device.

    Args:
        probs: ``[*B, k]``, mass.
        atoms: ``[*B, k]``, where it lies.
        support: ``[n]``, strictly increasing (:func:`check_support`).

    Returns:
        The mass at each atom of the support, ``[*B, n]``.

    Raises:
        RuntimeError: if the shapes of ``probs`` and ``atoms`` differ.

    Examples:
        >>> support = torch.tensor([0.0, 1.0, 2.0])
        >>> project_categorical(torch.tensor([0.5, 0.5]), torch.tensor([0.25, 7.0]), support)
        tensor([0.3750, 0.1250, 0.5000])
    """
    if probs.shape != atoms.shape:
        raise RuntimeError(f"probs and atoms must have one shape, got {tuple(probs.shape)} and {tuple(atoms.shape)}")
    atoms = atoms.clamp(support[0], support[-1]).contiguous()
    last = support.shape[0] - 2
    lower = (torch.searchsorted(support.contiguous(), atoms, right=True) - 1).clamp(0, last)
    below, above = support[lower], support[lower + 1]
    to_upper = probs * ((atoms - below) / (above - below))
    projected = probs.new_zeros((*probs.shape[:-1], support.shape[0]))
    projected = projected.scatter_add(-1, lower, probs - to_upper)
    return projected.scatter_add(-1, lower + 1, to_upper)
