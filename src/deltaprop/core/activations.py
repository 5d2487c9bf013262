"""The activations: a = σ(z), and the δ each passes back.

An activation is one class, a ``torch.autograd.Function``: its docstring is the formula, ``forward`` the value and
``derivative`` σ'. The product δ = ∂C/∂a ⊙ σ'(z) is the same for every element-wise activation, so it stands once, in
:class:`Elementwise`; softmax and log-softmax, whose derivative is a matrix, have a ``delta`` of their own.

``forward`` calls PyTorch's kernel where there is one: values, dtypes and refusals are PyTorch's to the bit. Everything
that goes backward is written here.

Shapes: z, a, grad_a, delta and tangents are all [..., n].
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import Function

from deltaprop.core.casting import cast


class Activation(Function):
    """a = σ(z), with optional constants after z.

    A subclass gives the formulas, plain functions of tensors:

    - ``forward(z, *constants)``: a;
    - ``delta(grad_a, saved, *constants)``: δ = ∂C/∂z, the transposed Jacobian of σ applied to ∂C/∂a;
    - ``push(z_dot, saved, *constants)``: the tangent of a, where the Jacobian is not symmetric.

    ``saved`` is the output a if ``from_output`` (σ' follows from a: then z need not be saved), else z.
    """

    from_output: ClassVar[bool] = False

    @classmethod
    def delta(cls, grad_a: Tensor, saved: Tensor, *constants: Any) -> Tensor:
        raise TypeError(f"{cls.__name__} must define delta, or extend Elementwise and define derivative")

    @classmethod
    def push(cls, z_dot: Tensor, saved: Tensor, *constants: Any) -> Tensor:
        return cls.delta(z_dot, saved, *constants)  # a symmetric Jacobian is its own transpose

    @classmethod
    def setup_context(cls, ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        z, *ctx.constants = inputs
        ctx.save_for_backward(output if cls.from_output else z)

    @classmethod
    def backward(cls, ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        grad_a = grad_output
        (saved,) = ctx.saved_tensors
        delta = cls.delta(grad_a, cast(saved, grad_a.dtype), *ctx.constants)  # cast: under autocast z may be narrower
        return delta, *[None] * len(ctx.constants)

    @classmethod
    def jvp(cls, ctx: Any, z_dot: Tensor, *_: None) -> Tensor:
        (saved,) = ctx.saved_tensors
        return cls.push(z_dot, saved, *ctx.constants)


class Elementwise(Activation):
    """a_i = σ(z_i): the Jacobian is diagonal, and δ follows from ``derivative(saved, *constants)``, σ'(z).

    Both may be applied to some of the rows of a batch; constants that are tensors exclude that.
    """

    @staticmethod
    def derivative(saved: Tensor, *constants: Any) -> Tensor:
        raise TypeError("an element-wise activation must define derivative(saved, *constants), σ'(z)")

    @classmethod
    def delta(cls, grad_a: Tensor, saved: Tensor, *constants: Any) -> Tensor:
        return grad_a * cls.derivative(saved, *constants)  # BP1, BP2: δ = ∂C/∂a ⊙ σ'(z)


class Step(Elementwise):
    """a = 1 where z > 0, else 0;  σ'(z) = 0.

    The derivative is 0 wherever it exists, so δ is 0 and no gradient passes: a layer behind a step learns nothing by
    backpropagation. That is why Rosenblatt's perceptron has a rule of its own, and why its successors took the sigmoid.

    Source: Rosenblatt, The Perceptron, Psychological Review 65 (1958).
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return z.sign().clamp(min=0)  # 1 where z > 0, else 0

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return torch.zeros_like(z)


class Identity(Elementwise):
    """a = z;  σ'(z) = 1. Layers joined by it collapse into one linear map."""

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return z.clone()  # a Function that returns its input would hand out a view

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        return torch.ones_like(z)


class ReLU(Elementwise):
    """a = max(0, z);  σ'(z) = 1 where a > 0, else 0 (0 at the kink, as PyTorch has it).

    Source: Nair & Hinton, Rectified Linear Units Improve Restricted Boltzmann Machines, ICML 2010.
    """

    from_output = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.relu(z)

    @staticmethod
    def derivative(a: Tensor) -> Tensor:
        return a.sign()  # a ≥ 0. A comparison takes four times as long: its result has to be cast


class LeakyReLU(Elementwise):
    """a = z where z > 0, else s z;  σ'(z) = 1 where z > 0, else s (the ``negative_slope``).

    z is saved, not a: under a negative s the sign of a no longer tells the sign of z.

    Source: Maas, Hannun & Ng, Rectifier Nonlinearities Improve Neural Network Acoustic Models, ICML 2013.
    """

    @staticmethod
    def forward(z: Tensor, negative_slope: float = 0.01) -> Tensor:
        return torch.nn.functional.leaky_relu(z, negative_slope)

    @staticmethod
    def derivative(z: Tensor, negative_slope: float = 0.01) -> Tensor:
        positive = z.sign().clamp(min=0)  # 1 where z > 0, else 0
        return positive + negative_slope * (1 - positive)


class ELU(Elementwise):
    """a = z where z > 0, else α (e^z − 1);  σ'(z) = 1 where z > 0, else α e^z.

    z is saved, not a: σ' = a + α loses its digits to cancellation, and is wrong for a negative α.

    Source: Clevert, Unterthiner & Hochreiter, arXiv 1511.07289 (2015), equation 15.
    """

    @staticmethod
    def forward(z: Tensor, alpha: float = 1.0) -> Tensor:
        return torch.nn.functional.elu(z, alpha)

    @staticmethod
    def derivative(z: Tensor, alpha: float = 1.0) -> Tensor:
        # clamp: e^z of a large z is inf, and inf in the branch not taken is NaN in the second derivative
        return torch.where(z > 0, 1.0, alpha * z.clamp(max=0).exp())


class GELU(Elementwise):
    """a = z Φ(z);  σ'(z) = Φ(z) + z φ(z), with Φ and φ the standard normal distribution and its density.

    With ``approximate="tanh"``: a = ½ z (1 + t), t = tanh u, u = √(2/π) (z + 0.044715 z³);
    σ'(z) = ½ (1 + t) + ½ z (1 − t²) u',  u' = √(2/π) (1 + 3 · 0.044715 z²).

    Source: Hendrycks & Gimpel, arXiv 1606.08415 (2016), section 2.
    """

    @staticmethod
    def forward(z: Tensor, approximate: str = "none") -> Tensor:
        return torch.nn.functional.gelu(z, approximate=approximate)

    @staticmethod
    def derivative(z: Tensor, approximate: str = "none") -> Tensor:
        if approximate == "tanh":
            k, c = math.sqrt(2 / math.pi), 0.044715
            t = torch.tanh(k * (z + c * z * z * z))
            return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * (k * (1 + 3 * c * z * z))
        cdf = 0.5 * (1 + torch.erf(z * math.sqrt(0.5)))
        density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        return cdf + z * density


class SiLU(Elementwise):
    """a = z s with s = 1 / (1 + e^−z);  σ'(z) = s (1 + z (1 − s)).

    Source: Elfwing, Uchibe & Doya, arXiv 1702.03118 (2017), equations 5 and 6.
    """

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.nn.functional.silu(z)

    @staticmethod
    def derivative(z: Tensor) -> Tensor:
        s = torch.sigmoid(z)
        return s * (1 + z * (1 - s))


class Softplus(Elementwise):
    """a = log(1 + e^{βz}) / β;  σ'(z) = 1 / (1 + e^{−βz}). Where βz > threshold: a = z, σ' = 1.

    Source: Dugas et al., Incorporating Second-Order Functional Knowledge, NIPS 2000.
    """

    @staticmethod
    def forward(z: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
        return torch.nn.functional.softplus(z, beta, threshold)

    @staticmethod
    def derivative(z: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
        return torch.where(beta * z > threshold, 1.0, torch.sigmoid(beta * z))


class Sigmoid(Elementwise):
    """a = σ(z) = 1 / (1 + e^−z);  σ'(z) = a (1 − a), at most ¼: the reason why δ vanishes in deep sigmoid nets."""

    from_output = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.sigmoid(z)

    @staticmethod
    def derivative(a: Tensor) -> Tensor:
        return a * (1 - a)


class Tanh(Elementwise):
    """a = tanh z;  σ'(z) = 1 − a²."""

    from_output = True

    @staticmethod
    def forward(z: Tensor) -> Tensor:
        return torch.tanh(z)

    @staticmethod
    def derivative(a: Tensor) -> Tensor:
        return 1 - a * a


class Softmax(Activation):
    """a_i = e^{z_i} / Σ_j e^{z_j} along ``dim``;  ∂a_i/∂z_j = a_i (1[i=j] − a_j), a symmetric matrix."""

    from_output = True

    @staticmethod
    def forward(z: Tensor, dim: int = -1) -> Tensor:
        return torch.softmax(z, dim)

    @staticmethod
    def delta(grad_a: Tensor, a: Tensor, dim: int = -1) -> Tensor:
        return a * (grad_a - (grad_a * a).sum(dim, keepdim=True))  # BP1: δ = a ⊙ (∂C/∂a − ⟨∂C/∂a, a⟩)


class LogSoftmax(Activation):
    """a_i = z_i − log Σ_j e^{z_j} along ``dim``;  ∂a_i/∂z_j = 1[i=j] − p_j with p = e^a."""

    from_output = True

    @staticmethod
    def forward(z: Tensor, dim: int = -1) -> Tensor:
        return torch.log_softmax(z, dim)

    @staticmethod
    def delta(grad_a: Tensor, a: Tensor, dim: int = -1) -> Tensor:
        return grad_a - a.exp() * grad_a.sum(dim, keepdim=True)  # BP1: δ = ∂C/∂a − p Σ ∂C/∂a

    @staticmethod
    def push(z_dot: Tensor, a: Tensor, dim: int = -1) -> Tensor:
        return z_dot - (a.exp() * z_dot).sum(dim, keepdim=True)  # ȧ = ż − ⟨p, ż⟩: J is not its own transpose
