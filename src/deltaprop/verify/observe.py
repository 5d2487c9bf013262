"""Look at one batch layer by layer: z, a, δ and the gradients, without touching the model.

The modules are called one by one, each output is kept, and δ^l = ∂C/∂z^l and the gradients come from
``torch.autograd.grad``: no hook is set, no ``.grad`` written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from deltaprop.explicit import ExplicitTrainer
from deltaprop.modules import Activation
from deltaprop.ops import Elementwise
from deltaprop.ops.linear import linear_forward, linear_grad_bias, linear_grad_weight


@dataclass(frozen=True)
class LayerView:
    """One layer on one batch.

    Attributes:
        linear: The linear layer.
        activation: What follows it up to the next linear layer, in order; empty where nothing does.
        z: Pre-activation, [N, n].
        a: Activation, [N, n]; z itself where there is none.
        delta: δ = ∂C/∂z, [N, n], with the loss's 1/N in it.
        grad_weight: ∂C/∂W, [n, n_prev].
        grad_bias: ∂C/∂b, [n], or None.
    """

    linear: nn.Linear
    activation: tuple[nn.Module, ...]
    z: Tensor
    a: Tensor
    delta: Tensor
    grad_weight: Tensor
    grad_bias: Tensor | None

    @property
    def delta_norm(self) -> float:
        """The mean over samples of ‖∂C_n/∂z‖, C_n being the loss of one sample: Σ_n ‖δ_n‖, as δ holds the 1/N."""
        return mean_delta_norm(self.delta)

    def slope(self) -> Tensor | None:
        """Return σ'(z), [N, n]; None where the layer has no activation, or one whose derivative is no table."""
        sigma = self._elementwise()
        if sigma is None:
            return None
        op, constants = sigma
        return op.slope(self.a if op.from_output else self.z, *constants)

    def saturation(self) -> tuple[float, float] | None:
        """Return (share of entries saturated, share of units dead), or None where there is no slope.

        An entry is saturated where |σ'(z)| is at most 5 % of the activation's steepest slope, so that hardly any δ
        passes it; a unit is dead where every sample of the batch finds it so.
        """
        sigma, slope = self._elementwise(), self.slope()
        if sigma is None or slope is None:
            return None
        flat = slope.abs() <= SATURATED * steepest(*sigma, slope)
        return float(flat.float().mean()), float(flat.all(dim=0).float().mean())

    def _elementwise(self) -> tuple[type[Elementwise], list[Any]] | None:
        """Return the definition of the layer's one elementwise activation, and its constants."""
        if len(self.activation) != 1:
            return None
        module = self.activation[0]
        if not isinstance(module, Activation) or not issubclass(module.op, Elementwise):
            return None
        return module.op, [getattr(module, name) for name in module.constants]


SATURATED = 0.05  # of the steepest slope: hardly any δ passes


def mean_delta_norm(delta: Tensor) -> float:
    """Return the mean over samples of ‖∂C_n/∂z‖ from δ, [N, n]: Σ_n ‖δ_n‖, as δ holds the loss's 1/N."""
    return float(delta.norm(dim=1).sum())


def formula(op: type[Function]) -> str:
    """Return an activation and its derivative as its definition's docstring has them, on one line."""
    return " ".join((op.__doc__ or "").strip().split("\n\n")[0].split()).replace(" along ``dim``", "").replace("``", "")


def steepest(op: type[Elementwise], constants: Sequence[Any], like: Tensor) -> Tensor:
    """Return max |σ'(z)| over −8 ≤ z ≤ 8, of the dtype and on the device of another tensor."""
    grid = torch.linspace(-8, 8, 1601, dtype=like.dtype, device=like.device)
    return op.slope(op.forward(grid, *constants) if op.from_output else grid, *constants).abs().max()


def observe(model: nn.Sequential, loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> list[LayerView]:
    """Return every layer of a sequential model on the batch (x, y).

    Args:
        model: Linear layers with activations between them; Sequentials within it are walked through.
        loss: C from outputs and targets.
        x: Inputs, [N, n_0].
        y: Targets, as the loss takes them.
    """
    linears: list[nn.Linear] = []
    following: list[list[nn.Module]] = []
    zs: list[Tensor] = []
    activations: list[Tensor] = []
    with torch.enable_grad():
        a = x
        for module in _flat(model):
            # A copy for what follows a layer: an in-place module would overwrite z.
            a = module(a if isinstance(module, nn.Linear) else a.clone())
            if isinstance(module, nn.Linear):
                if not a.requires_grad:  # a frozen first layer: δ is asked for all the same
                    a.requires_grad_()
                linears.append(module)
                following.append([])
                zs.append(a)
                activations.append(a)
            elif linears:
                following[-1].append(module)
                activations[-1] = a
        parameters = [p for layer in linears for p in (layer.weight, layer.bias) if p is not None and p.requires_grad]
        grads = torch.autograd.grad(loss(a, y), [*zs, *parameters], materialize_grads=True)
    by_parameter = dict(zip(parameters, grads[len(zs) :], strict=True))
    return [
        LayerView(
            linear,
            tuple(modules),
            z.detach(),
            a.detach(),
            delta,
            by_parameter.get(linear.weight, torch.zeros_like(linear.weight)),
            None if linear.bias is None else by_parameter.get(linear.bias, torch.zeros_like(linear.bias)),
        )
        for linear, modules, z, a, delta in zip(linears, following, zs, activations, grads[: len(zs)], strict=True)
    ]


def observe_explicit(trainer: ExplicitTrainer, x: Tensor, y: Tensor) -> list[LayerView]:
    """Return every layer on the batch (x, y), as the explicit driver has them in its buffers; nothing is learnt."""
    views = []
    for layer in trainer.look(x, y):
        linear = layer.plan.linear
        z = linear_forward(layer.a_prev, layer.weight, layer.bias)  # where a has taken its place
        weight, bias = linear.weight, linear.bias
        grad_bias = None if bias is None else linear_grad_bias(layer.delta, bias.shape)
        if bias is not None and not bias.requires_grad:
            grad_bias = torch.zeros_like(bias)
        sigma = () if layer.plan.sigma is None else (layer.plan.sigma,)
        frozen = not weight.requires_grad  # nobody learns by it: shown as 0
        grad_weight = torch.zeros_like(weight) if frozen else linear_grad_weight(layer.delta, layer.a_prev)
        views.append(LayerView(linear, sigma, z, layer.a.clone(), layer.delta.clone(), grad_weight, grad_bias))
    return views


def _flat(model: nn.Sequential) -> Iterator[nn.Module]:
    for module in model:
        if isinstance(module, nn.Sequential):
            yield from _flat(module)
        else:
            yield module
