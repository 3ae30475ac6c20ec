"""The squashed Gaussian of continuous control, and the independent normal it is made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, TransformedDistribution, constraints
from torch.types import _size

from tritonrl.modules.tanh_transform import Bound, SquashTransform, check_bounds

__all__ = ["IndependentNormal", "TanhNormal", "scaled_location"]

Scale = Tensor | float | Callable[[Tensor], Tensor]


def scaled_location(loc: Tensor, upscale: Bound, tanh_loc: bool) -> Tensor:
    r"""The location, kept within :math:`\pm` ``upscale`` by :math:`\tanh(loc / upscale) \cdot upscale` if asked for."""
    return torch.tanh(loc / upscale) * upscale if tanh_loc else loc


def scale_tensor(name: str, loc: Tensor, scale: Scale) -> Tensor:
    """The scale as a tensor that broadcasts against ``loc``.

    Args:
        name: of the distribution, for the message.
        loc: the location.
        scale: a tensor, a number, or a function of ``loc``.

    Raises:
        ValueError: if the two do not broadcast.
    """
    if callable(scale):
        scale = scale(loc)
    if not isinstance(scale, Tensor):
        scale = torch.full_like(loc, scale)
    try:
        torch.broadcast_shapes(loc.shape, scale.shape)
    except RuntimeError:
        raise ValueError(
            f"{name}: scale of shape {tuple(scale.shape)} does not broadcast against loc of shape {tuple(loc.shape)}"
        ) from None
    return scale


def independent_normal(name: str, loc: Tensor, scale: Tensor, event_dims: int) -> Distribution:
    """Normals of which the last ``event_dims`` dimensions are one event."""
    # Validation reads the numbers: it would wait for the device, and break a compiled graph.
    normal = Normal(loc, scale, validate_args=False)
    if not 0 <= event_dims <= len(normal.batch_shape):
        raise ValueError(
            f"{name}: event_dims must be between 0 and {len(normal.batch_shape)}, the number of dimensions of loc and "
            f"scale, got {event_dims}"
        )
    return Independent(normal, event_dims, validate_args=False) if event_dims else normal


class TanhNormal(TransformedDistribution):
    r"""A normal distribution squashed onto an interval by tanh (Haarnoja et al. 2018, "Soft actor-critic", appendix C).

    .. math::
        x \sim \mathcal N(\mu, \sigma), \qquad a = \tfrac{high - low}{2} \tanh x + \tfrac{high + low}{2}, \qquad
        \log \pi(a) = \log \mathcal N(x; \mu, \sigma) - \log \tfrac{high - low}{2} - \log(1 - \tanh^2 x)

    The log-determinant is in the form that does not underflow. What remains hard in a saturated action is to find x:
    tanh rounds, and the rounded action has forgotten it. So the sample of :meth:`rsample_and_log_prob` and
    :meth:`sample_and_log_prob`, and the differentiable sample of :meth:`rsample` when it is given back to
    :meth:`log_prob`, are scored at the very x they were made of. An action free of gradient (one that a collector has
    stored) is always scored by its own inverse, so that it has the same log-probability when it is collected and when it
    is trained on, and an importance ratio of one.

    There is no closed form of mean, mode or entropy: ``mean`` and ``mode`` raise NotImplementedError. The divergence of
    two of these on the same interval is that of their normals.

    Args:
        loc: :math:`\mu`, ``[*B, *event]``.
        scale: :math:`\sigma > 0`, a tensor that broadcasts against ``loc``, a number, or a function of ``loc``
            (``torch.ones_like``).
        upscale: bound of the location where ``tanh_loc`` is set.
        low: lower end of the interval, a number or a tensor that broadcasts against the action.
        high: upper end, likewise.
        event_dims: number of trailing dimensions that make one action, over which the log-probability is summed. By
            default one (none for a 0-dim ``loc``).
        tanh_loc: keep the location within :math:`\pm` ``upscale``: :math:`\mu \leftarrow u \tanh(\mu / u)`.
        safe_tanh: keep samples strictly inside the interval (see :class:`SquashTransform`).

    Raises:
        RuntimeError: if ``low`` is not below ``high``.
        ValueError: if ``scale`` or a bound does not broadcast against ``loc``, or ``event_dims`` is out of range.

    Example:
        >>> policy = TanhNormal(torch.zeros(3, 2), torch.ones(3, 2), low=-2.0, high=2.0)
        >>> action, log_prob = policy.rsample_and_log_prob()
        >>> action.shape, log_prob.shape, bool((action.abs() < 2).all())
        (torch.Size([3, 2]), torch.Size([3]), True)
        >>> policy.deterministic_sample[0]
        tensor([0., 0.])
    """

    num_params = 2

    def __init__(
        self,
        loc: Tensor,
        scale: Scale,
        upscale: Bound = 5.0,
        low: Bound = -1.0,
        high: Bound = 1.0,
        event_dims: int | None = None,
        tanh_loc: bool = False,
        safe_tanh: bool = True,
    ) -> None:
        self.upscale = upscale
        self.tanh_loc = tanh_loc
        self._event_dims = min(1, loc.ndim) if event_dims is None else event_dims
        self._squash = SquashTransform(low, high, safe_tanh)
        self.update(loc, scale)

    def update(self, loc: Tensor, scale: Scale) -> None:
        """Give the distribution another location and scale; the location is limited again if ``tanh_loc`` is set."""
        name = type(self).__name__
        scale = scale_tensor(name, loc, scale)
        check_bounds(name, self._squash.low, self._squash.high, torch.broadcast_shapes(loc.shape, scale.shape))
        base = independent_normal(name, scaled_location(loc, self.upscale, self.tanh_loc), scale, self._event_dims)
        super().__init__(base, [self._squash], validate_args=False)
        self._forget()

    def expand(self, batch_shape: _size, _instance: TanhNormal | None = None) -> TanhNormal:
        new = self._get_checked_instance(TanhNormal, _instance)
        new.upscale, new.tanh_loc = self.upscale, self.tanh_loc
        new._event_dims, new._squash = self._event_dims, self._squash
        TransformedDistribution.__init__(new, self.base_dist.expand(batch_shape), [self._squash], validate_args=False)
        new._forget()
        return new

    def _forget(self) -> None:
        self._own_sample: Tensor | None = None
        self._own_unsquashed: Tensor | None = None

    @property
    def root_dist(self) -> Normal:
        """The normal before squashing, every element an event of its own."""
        base = self.base_dist.base_dist if isinstance(self.base_dist, Independent) else self.base_dist
        assert isinstance(base, Normal)
        return base

    @property
    def loc(self) -> Tensor:
        return self.root_dist.loc

    @property
    def scale(self) -> Tensor:
        return self.root_dist.scale

    @property
    def low(self) -> Tensor:
        """Lower end of the interval."""
        return torch.as_tensor(self._squash.low, dtype=self.loc.dtype, device=self.loc.device)

    @property
    def high(self) -> Tensor:
        """Upper end of the interval."""
        return torch.as_tensor(self._squash.high, dtype=self.loc.dtype, device=self.loc.device)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        return constraints.independent(self._squash.codomain, self._event_dims)

    @property
    def deterministic_sample(self) -> Tensor:
        """The squashed location: the median of each element."""
        return self._squash(self.loc)

    @property
    def mean(self) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no mean in closed form: average samples of it instead")

    @property
    def mode(self) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no mode in closed form: see deterministic_sample")

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        """A reparameterised action, ``[*sample_shape, *B, *event]``; :meth:`log_prob` knows it again."""
        unsquashed = self._draw(sample_shape)
        action = self._squash(unsquashed)
        self._own_sample, self._own_unsquashed = action, unsquashed
        return action

    def sample(self, sample_shape: _size = ()) -> Tensor:
        """An action free of gradient, ``[*sample_shape, *B, *event]``."""
        with torch.no_grad():
            return self._squash(self._draw(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of an action, ``[*B]``; outside of the interval, that of the nearest action inside."""
        if value is self._own_sample and value.requires_grad:
            assert self._own_unsquashed is not None
            return self._score(self._own_unsquashed)
        return self._score(self._squash.inv(value))

    def rsample_and_log_prob(self, sample_shape: _size = ()) -> tuple[Tensor, Tensor]:
        """A reparameterised action and its log-probability, exact however saturated it is.

        Returns:
            action ``[*sample_shape, *B, *event]`` and log-probability ``[*sample_shape, *B]``, both differentiable.
        """
        unsquashed = self._draw(sample_shape)
        return self._squash(unsquashed), self._score(unsquashed)

    def sample_and_log_prob(self, sample_shape: _size = ()) -> tuple[Tensor, Tensor]:
        """An action free of gradient and its log-probability, exact however saturated it is.

        Returns:
            action ``[*sample_shape, *B, *event]``, and log-probability ``[*sample_shape, *B]``, differentiable by the
            parameters of the distribution (the score function).
        """
        with torch.no_grad():
            unsquashed = self._draw(sample_shape)
            action = self._squash(unsquashed)
        return action, self._score(unsquashed)

    def _draw(self, sample_shape: _size) -> Tensor:
        """A reparameterised sample before squashing."""
        shape = self._extended_shape(torch.Size(sample_shape))
        # The numbers that Normal.rsample draws, by a function that vmap can draw differently for each member.
        return self.loc + self.scale * torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)

    def _score(self, unsquashed: Tensor) -> Tensor:
        """Log-density of the action that ``unsquashed`` is squashed to."""
        log_det = self._squash.log_abs_det_jacobian(unsquashed, unsquashed)
        if self._event_dims:
            log_det = log_det.sum(tuple(range(-self._event_dims, 0)))
        return self.base_dist.log_prob(unsquashed) - log_det

    def __repr__(self) -> str:
        return f"{type(self).__name__}(loc: {tuple(self.loc.shape)}, scale: {tuple(self.scale.shape)})"


class IndependentNormal(Independent):
    """Normals of which the last dimensions are one action: the unbounded counterpart of :class:`TanhNormal`.

    Args:
        loc: location, ``[*B, *event]``.
        scale: standard deviation, a tensor that broadcasts against ``loc``, a number, or a function of ``loc``.
        upscale: bound of the location where ``tanh_loc`` is set.
        tanh_loc: keep the location within plus or minus ``upscale``.
        event_dim: number of trailing dimensions that make one action.

    Raises:
        ValueError: if ``scale`` does not broadcast against ``loc``, or ``event_dim`` is out of range.

    Example:
        >>> IndependentNormal(torch.zeros(3, 2), 1.0).log_prob(torch.zeros(3, 2))
        tensor([-1.8379, -1.8379, -1.8379])
    """

    num_params = 2

    def __init__(
        self, loc: Tensor, scale: Scale, upscale: float = 5.0, tanh_loc: bool = False, event_dim: int = 1
    ) -> None:
        self.upscale = upscale
        self.tanh_loc = tanh_loc
        self._event_dim = event_dim
        self.update(loc, scale)

    def update(self, loc: Tensor, scale: Scale) -> None:
        """Give the distribution another location and scale; the location is limited again if ``tanh_loc`` is set."""
        name = type(self).__name__
        scale = scale_tensor(name, loc, scale)
        if not 0 <= self._event_dim <= max(loc.ndim, scale.ndim):
            raise ValueError(f"{name}: event_dim must be between 0 and {loc.ndim}, got {self._event_dim}")
        normal = Normal(scaled_location(loc, self.upscale, self.tanh_loc), scale, validate_args=False)
        super().__init__(normal, self._event_dim, validate_args=False)

    def expand(self, batch_shape: _size, _instance: IndependentNormal | None = None) -> IndependentNormal:
        new = self._get_checked_instance(IndependentNormal, _instance)
        new.upscale, new.tanh_loc, new._event_dim = self.upscale, self.tanh_loc, self._event_dim
        base = self.base_dist.expand(torch.Size(batch_shape) + self.event_shape)
        Independent.__init__(new, base, self._event_dim, validate_args=False)
        return new

    @property
    def loc(self) -> Tensor:
        return self.base_dist.loc

    @property
    def scale(self) -> Tensor:
        return self.base_dist.scale

    @property
    def deterministic_sample(self) -> Tensor:
        """The location: mean, median and mode at once."""
        return self.base_dist.loc
