"""Rosenblatt's perceptron, trained by its own rule instead of backpropagation."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from deltaprop import functional as F
from deltaprop.errors import UserError


@dataclass(frozen=True)
class PerceptronFit:
    """Result of :meth:`Perceptron.fit`.

    Attributes:
        converged: Whether a whole epoch passed without a mistake.
        mistakes: The mistakes of each epoch.
    """

    converged: bool
    mistakes: list[int] = field(repr=False)

    def __str__(self) -> str:
        """Return a one-line summary."""
        epochs = len(self.mistakes)
        if self.converged:
            return f"converged in epoch {epochs}: every sample on its side"
        return (
            f"not converged after {epochs} epochs: {self.mistakes[-1]} mistakes in the last; "
            "no line may separate these classes, or more epochs are needed"
        )


class Perceptron(nn.Module):
    """Rosenblatt's neuron: a = 1 where w·x + b > 0, else 0.

    It is not trained by backpropagation, because the step's derivative is 0. The rule goes through the samples and
    at each mistake adds the sample to w or subtracts it::

        w ← w + (y − a) x
        b ← b + (y − a)

    On linearly separable data it makes a finite number of mistakes (at most (R/γ)², R the largest norm of a sample with
    the bias's 1 appended, γ the margin); on other data it never converges.

    Args:
        in_features: n, the length of a sample.
        device: Device of w and b.
        dtype: Dtype of w and b.

    Source:
        Rosenblatt, Psychological Review 65 (1958); the bound: Novikoff, On convergence proofs for perceptrons (1962).

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> neuron = Perceptron(2)
        >>> print(neuron.fit(x, torch.tensor([0, 0, 0, 1])))  # AND
        converged in epoch 6: every sample on its side
        >>> neuron(x)
        tensor([0., 0., 0., 1.])
        >>> neuron.fit(x, torch.tensor([0, 1, 1, 0])).converged  # XOR
        False
    """

    def __init__(
        self, in_features: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        if in_features < 1:
            raise UserError(f"in_features must be at least 1, got {in_features}")
        self.weight = nn.Parameter(torch.zeros(1, in_features, device=device, dtype=dtype), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(1, device=device, dtype=dtype), requires_grad=False)

    def extra_repr(self) -> str:
        """Return the size, as repr shows it."""
        return f"in_features={self.weight.shape[1]}"

    def forward(self, input: Tensor) -> Tensor:
        """Return a, [...], from samples x, [..., n]."""
        return F.step(F.linear(input, self.weight, self.bias)).squeeze(-1)

    @torch.no_grad()
    def fit(self, x: Tensor, y: Tensor, max_epochs: int = 100) -> PerceptronFit:
        """Train on the samples one by one, in order, until an epoch passes without a mistake.

        Args:
            x: Samples, [N, n].
            y: Labels 0 or 1, [N].
            max_epochs: How many times to go through the samples at most.

        Returns:
            Whether it converged, and the mistakes of each epoch; print it.

        Raises:
            UserError: If shapes do not fit, a label is neither 0 nor 1, or ``max_epochs`` is below 1.
        """
        n = self.weight.shape[1]
        if x.dim() != 2 or x.shape[1] != n or y.shape != x.shape[:1]:
            raise UserError(f"x must be [N, {n}] and y [N], got {list(x.shape)} and {list(y.shape)}")
        if len(x) == 0:
            raise UserError("x must have at least one sample, got none")
        if x.dtype != self.weight.dtype:
            raise UserError(
                f"x must be {self.weight.dtype} like the weights, got {x.dtype}: pass x.to({self.weight.dtype})"
            )
        if not bool(x.isfinite().all()):
            raise UserError("x must be finite, got NaN or infinity")
        if not bool(((y == 0) | (y == 1)).all()):
            raise UserError(f"labels must be 0 or 1, got {sorted(set(y.tolist()))[:5]}")
        if max_epochs < 1:
            raise UserError(f"max_epochs must be at least 1, got {max_epochs}")
        mistakes: list[int] = []
        for _ in range(max_epochs):
            mistakes.append(0)
            for x_n, y_n in zip(x, y.to(x.dtype), strict=True):
                error = y_n - self(x_n)
                if error != 0:
                    self.weight.add_(error * x_n)
                    self.bias.add_(error)
                    mistakes[-1] += 1
            if mistakes[-1] == 0:
                return PerceptronFit(True, mistakes)
        return PerceptronFit(False, mistakes)
