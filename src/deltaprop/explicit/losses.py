"""The losses at work: ∂C/∂a^L into a buffer at each step, and the values of C late, for many steps at once.

A step needs ∂C/∂a^L, not C. So it keeps what C follows from (log p, a − y, or z; a row per sample), and the values of
all steps of a block of batches are reduced together: a few calls a block, not a few a step.

The formulas are those of ``ops/losses.py`` and ``ops/cross_entropy.py``: they are called, or, where a fused kernel
stands for one, ``tests/explicit/test_losses.py`` holds it to them.

Shapes: a block has B batches of N rows; targets are [B N, …], what is kept is [B, N, n_L].
"""

from __future__ import annotations

import functools
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from deltaprop import functional as F
from deltaprop import ops
from deltaprop.errors import UserError, unknown_name
from deltaprop.explicit.host import on_host
from deltaprop.explicit.layers import Layer
from deltaprop.explicit.reading import ELSEWHERE
from deltaprop.ops.cross_entropy import label_weights
from deltaprop.ops.losses import BinaryCrossEntropy, reduction_scale


def as_tensor(number: float, like: Tensor) -> Tensor:
    """Return a factor as a scalar tensor: PyTorch takes 1 µs to multiply by one, by a number of Python 3."""
    return torch.tensor(number, dtype=like.dtype, device=like.device)


class Loss(ABC):
    """C of the batches of a block.

    Args:
        options: The keyword arguments of the public function.
        batches: B.
        rows: N.
        outputs: n_L.
        like: Has the dtype and the device.
    """

    contains: tuple[str, ...] = ()  # output activations that the loss already contains

    def __init__(self, options: dict[str, Any], batches: int, rows: int, outputs: int, like: Tensor) -> None:
        self.options = options
        self.reduction: str = options.get("reduction", "mean")
        self.batches, self.rows, self.outputs = batches, rows, outputs
        self.kept = self.kept_buffer(like)
        self._kept = self.kept.unbind()
        self.keep = self._kept[0]
        self.targets = self.targets_buffer(like)
        self._targets = self.targets.split(rows)
        self._ys: Sequence[Tensor] = self._targets

    def kept_buffer(self, like: Tensor) -> Tensor:
        """Return memory for what C follows from, a table for each batch."""
        return like.new_zeros(self.batches, self.rows, self.outputs)

    def targets_buffer(self, like: Tensor) -> Tensor:
        """Return memory for the targets of a block."""
        return like.new_zeros(self.batches * self.rows, self.outputs)

    @classmethod
    def wants_by_neuron(cls, outputs: int, device: torch.device) -> bool:
        """Return whether a^L and δ^L are to lie in memory neuron by neuron."""
        return False

    @classmethod
    def check(cls, options: dict[str, Any], targets: Tensor, rows: int, outputs: int, dtype: torch.dtype) -> Tensor:
        """Return targets as a block holds them; they may be of all rows of a data set.

        Raises:
            UserError: If they do not fit outputs [rows, outputs].
        """
        if targets.shape != (rows, outputs):
            raise UserError(f"targets must be {[rows, outputs]}, as the outputs are, got {list(targets.shape)}")
        if options:
            cls.check_options(options, outputs, dtype)
        return targets.to(dtype)

    @classmethod  # noqa: B027  # a hook: there may be none
    def check_options(cls, options: dict[str, Any], outputs: int, dtype: torch.dtype) -> None:
        """Refuse options that do not fit the outputs.

        Raises:
            UserError: If one does not.
        """

    @classmethod  # noqa: B027  # a hook: any number may be one
    def check_values(cls, options: dict[str, Any], targets: Tensor, outputs: int) -> None:
        """Refuse what no number of its kind may be; it waits for the device, so not at every step.

        Raises:
            UserError: If a label is no class.
        """

    def begin(self, targets: Tensor) -> None:
        """Make ready for the batches of these targets, in ``targets`` or, for a single batch, anywhere."""
        self.taken = targets
        if targets is self.targets:
            self._ys = self._targets
        else:
            self._ys = (targets,) if len(targets) == self.rows else targets.split(self.rows)
        self.show(0)

    def show(self, batch: int) -> None:
        """Take a batch of the block as the next."""
        self.y, self.keep = self._ys[batch], self._kept[batch]

    @abstractmethod
    def differentiate(self, top: Layer) -> None:
        """BP1, left factor: write ∂C/∂a^L, [N, n_L], where δ^L will be."""

    def total_value(self, batches: int, units: Tensor | None = None) -> Tensor:
        """Return Σ C over the first batches of the block, a scalar; the arguments are those of ``values``."""
        return self.values(batches, units).sum()

    @abstractmethod
    def values(self, batches: int, units: Tensor | None = None) -> Tensor:
        """Return C of each of the first batches of the block, [batches].

        Args:
            batches: How many.
            units: Of the targets: what one of theirs is in the units that C is to be told in, [n_L]. Only a loss of
                a − y knows them.
        """


class ResidualLoss(Loss):
    """C = s Σ c(r), r = a − y;  ∂C/∂a = s c'(r)."""

    op: type[ops.ResidualLoss]

    def __init__(self, options: dict[str, Any], batches: int, rows: int, outputs: int, like: Tensor) -> None:
        super().__init__(options, batches, rows, outputs, like)
        self.scale = self.op.scale(self.keep, self.reduction)
        self.factor = as_tensor(self.slope_scale(), like)
        self.constants: tuple[float, ...] = (options.get("delta", 1.0),) if self.op is ops.Huber else ()

    def slope_scale(self) -> float:
        """Return what ∂C/∂a has before its formula of r: s."""
        return self.scale

    def differentiate(self, top: Layer) -> None:
        torch.sub(top.a, self.y, out=self.keep)  # r = a − y
        self.slope(self.keep, top.delta)  # BP1, left factor: ∂C/∂a = s c'(r)

    @abstractmethod
    def slope(self, residual: Tensor, out: Tensor) -> None:
        """Write s c'(r)."""

    def values(self, batches: int, units: Tensor | None = None) -> Tensor:
        residual = self.kept[:batches]
        if units is not None:
            residual = residual * units
        costs: Tensor = self.op.forward(residual, torch.zeros_like(residual), "none", *self.constants)
        return costs.flatten(1).sum(1).mul_(self.scale)


class SquaredLoss(ResidualLoss):
    """∂C/∂a = f r, f being s or 2s;  C = f/2 Σ r²."""

    def slope(self, residual: Tensor, out: Tensor) -> None:
        torch.mul(residual, self.factor, out=out)

    def total_value(self, batches: int, units: Tensor | None = None) -> Tensor:
        if units is not None or not on_host(self.kept.device):
            return super().total_value(batches, units)
        residuals = self.kept[:batches].view(-1)
        return torch.dot(residuals, residuals).mul_(self.factor / 2)


class MSE(SquaredLoss):
    """∂C/∂a = s 2r."""

    op = ops.MSE

    def slope_scale(self) -> float:
        return 2 * self.scale


class Quadratic(SquaredLoss):
    """∂C/∂a = s r."""

    op = ops.Quadratic


class L1(ResidualLoss):
    """∂C/∂a = s sign r."""

    op = ops.L1

    def slope(self, residual: Tensor, out: Tensor) -> None:
        torch.sign(residual, out=out)
        if self.scale != 1:
            out.mul_(self.factor)


class Huber(ResidualLoss):
    """∂C/∂a = s r, r clipped to [−d, d]."""

    op = ops.Huber

    def slope(self, residual: Tensor, out: Tensor) -> None:
        threshold: float = self.constants[0]
        torch.clamp(residual, -threshold, threshold, out=out)
        if self.scale != 1:
            out.mul_(self.factor)


class BinaryCross(Loss):
    """C of ``binary_cross_entropy_with_logits``;  δ = s w ((1 + (p − 1) y) σ(z) − p y), for w = p = 1: s (σ(z) − y)."""

    contains = ("Sigmoid",)

    def __init__(self, options: dict[str, Any], batches: int, rows: int, outputs: int, like: Tensor) -> None:
        super().__init__(options, batches, rows, outputs, like)
        self.scale = self.scale_of_entry()
        self.factor = as_tensor(self.scale, like)
        self.weight, self.pos_weight = (options.get(name) for name in ("weight", "pos_weight"))
        self.weighs = self.weight is not None or self.pos_weight is not None
        tables = torch.zeros(2, *(self.targets.shape if self.weighs else (0, outputs)), dtype=like.dtype)
        self._slope, self._offset = tables.to(like.device)  # c and d of δ = c σ(z) − d

    def scale_of_entry(self) -> float:
        """Return s."""
        return reduction_scale(self.reduction, self.keep.numel())

    @classmethod
    def check_options(cls, options: dict[str, Any], outputs: int, dtype: torch.dtype) -> None:
        for name in ("weight", "pos_weight"):
            given = options.get(name)
            if isinstance(given, Tensor) and tuple(given.shape) not in ((), (1,), (outputs,), (1, 1), (1, outputs)):
                what = f"{name} must be one number an output, [{outputs}], got {list(given.shape)}"
                raise UserError(f"{what}; if it differs from sample to sample, {ELSEWHERE}")
            if given is not None and not isinstance(given, Tensor):
                raise UserError(f"{name} must be a tensor, [{outputs}], got {given!r}")

    def begin(self, targets: Tensor) -> None:
        if self.weighs:
            of_one = self.scale if self.weight is None else self.scale * self.weight  # s w
            of_positive = 1.0 if self.pos_weight is None else self.pos_weight  # p
            c, d = self._slope[: len(targets)], self._offset[: len(targets)]
            c.copy_(targets).mul_(of_positive - 1).add_(1).mul_(of_one)
            d.copy_(targets).mul_(of_positive).mul_(of_one)
            self._cs, self._ds = c.split(self.rows), d.split(self.rows)
        super().begin(targets)

    def show(self, batch: int) -> None:
        super().show(batch)
        if self.weighs:
            self.c, self.d = self._cs[batch], self._ds[batch]

    def differentiate(self, top: Layer) -> None:
        self.keep.copy_(top.a)
        sigma = torch.sigmoid(top.a, out=top.delta)
        if self.weighs:
            sigma.mul_(self.c).sub_(self.d)  # BP1: δ = s w (1 + (p − 1) y) σ(z) − s w p y
        else:
            sigma.sub_(self.y).mul_(self.factor)  # BP1: δ = s (σ(z) − y)

    def values(self, batches: int, units: Tensor | None = None) -> Tensor:
        z = self.kept[:batches]
        y = self.taken[: batches * self.rows].view(z.shape)
        costs = BinaryCrossEntropy.forward(z, y, self.weight, self.pos_weight, "none")
        return self.scale * costs.flatten(1).sum(1)


class BinaryCrossPerSample(BinaryCross):
    """The same, summed over outputs and averaged over samples."""

    def scale_of_entry(self) -> float:
        """Return s."""
        return 1 / max(self.rows, 1)


class CrossEntropy(Loss):
    """C = −Σ_n Σ_c k_nc log p_nc / D, linear in log p.

    The weights k of the classes and D (``ops/cross_entropy.py``) follow from the targets alone. So G = ∂C/∂log p = −k/D
    is made for a whole block beforehand, and a step takes two kernels: log p from z, and δ = G − p Σ_c G, the formula
    of ``LogSoftmax.delta``. C itself is Σ G ⊙ log p.

    Of few classes, z^L, log p, G and δ^L lie in memory class by class, [n_L, N]: then PyTorch's kernels take the
    exponentials of many samples at a time, else those of one sample. With 10 classes and 64 samples that is 3 µs
    instead of 16.
    """

    contains = ("Softmax", "LogSoftmax")

    def __init__(self, options: dict[str, Any], batches: int, rows: int, outputs: int, like: Tensor) -> None:
        self.weight: Tensor | None = options.get("weight")
        self.smoothing: float = options.get("label_smoothing", 0.0)
        self.by_neuron = self.wants_by_neuron(outputs, like.device)
        self.asks = on_host(like.device)  # whether a number may be asked for without waiting
        self.dim = 0 if self.by_neuron else 1  # of the classes
        super().__init__(options, batches, rows, outputs, like)
        self.grad = torch.zeros_like(self.kept)  # G
        self._grad = self.grad.unbind()
        self._grad_rows = self.grad.transpose(1, 2) if self.by_neuron else self.grad  # [B, N, n_L], however it lies
        self._flat = self.grad.view(-1), self.kept.view(-1)

    def kept_buffer(self, like: Tensor) -> Tensor:
        of_batch = (self.outputs, self.rows) if self.by_neuron else (self.rows, self.outputs)
        return like.new_zeros(self.batches, *of_batch)

    @classmethod
    def wants_by_neuron(cls, outputs: int, device: torch.device) -> bool:
        return outputs <= FEW_CLASSES and on_host(device)

    @classmethod
    def check_options(cls, options: dict[str, Any], outputs: int, dtype: torch.dtype) -> None:
        weight = options.get("weight")
        if weight is None:
            return
        if not isinstance(weight, Tensor) or weight.shape != (outputs,) or weight.dtype != dtype:
            got = f"{list(weight.shape)} of {weight.dtype}" if isinstance(weight, Tensor) else repr(weight)
            raise UserError(f"weight must hold one number a class, [{outputs}] of {dtype}, got {got}")

    def show(self, batch: int) -> None:
        self.keep, self.grad_log_p = self._kept[batch], self._grad[batch]

    def differentiate(self, top: Layer) -> None:
        log_p = self.keep
        z, delta = (top.a_t, top.delta_t) if self.by_neuron else (top.a, top.delta)
        torch.log_softmax(z, self.dim, out=log_p)
        # BP1: δ = G − p Σ_c G
        torch._log_softmax_backward_data(self.grad_log_p, log_p, self.dim, log_p.dtype, out=delta)

    def class_weights(self, k: Tensor) -> Tensor:
        """Return k, smoothed and weighed by class."""
        k = ops.smooth(k, self.smoothing, self.outputs)
        return k if self.weight is None else k * self.weight

    def set_grad(self, k: Tensor, worth: Tensor | float) -> None:
        """Write G = −k/D for the batches that there are; k and 1/D in the order of the samples."""
        into = self._grad_rows[: len(k) // self.rows]
        into.copy_((k * -worth).view(into.shape))

    def total_value(self, batches: int, units: Tensor | None = None) -> Tensor:
        if not self.asks:
            return self.values(batches).sum()
        n = batches * self.rows * self.outputs
        flat = self._flat if batches == self.batches else [t[:n] for t in self._flat]
        total = torch.dot(*flat)
        # 0 · (−∞) is no number: of a class that is impossible and not the label's, say.
        return total if math.isfinite(total.item()) else self.values(batches).sum()

    def values(self, batches: int, units: Tensor | None = None) -> Tensor:
        grad = self.grad[:batches]
        return torch.where(grad == 0, 0.0, grad * self.kept[:batches]).view(batches, -1).sum(1)


FEW_CLASSES = 32  # with 100, samples have to be 32 or more for it to pay


class SoftCrossEntropy(CrossEntropy):
    """Targets are class probabilities; D = N for a mean."""

    @classmethod
    def check(cls, options: dict[str, Any], targets: Tensor, rows: int, outputs: int, dtype: torch.dtype) -> Tensor:
        if targets.shape != (rows, outputs):
            what = f"targets of {targets.dtype} are class probabilities, {[rows, outputs]}, got {list(targets.shape)}"
            raise UserError(f"{what}; labels are whole numbers, {[rows]} of int64")
        return super().check(options, targets, rows, outputs, dtype)

    @classmethod
    def check_options(cls, options: dict[str, Any], outputs: int, dtype: torch.dtype) -> None:
        super().check_options(options, outputs, dtype)
        if options.get("ignore_index", -100) >= 0:
            raise UserError("ignore_index is for labels: targets of class probabilities have none")

    def begin(self, targets: Tensor) -> None:
        super().begin(targets)
        self.set_grad(self.class_weights(targets), reduction_scale(self.reduction, self.rows))


class LabelCrossEntropy(CrossEntropy):
    """Targets are labels; D = Σ_n w_{y_n} over the samples that are not ignored, for a mean."""

    def __init__(self, options: dict[str, Any], batches: int, rows: int, outputs: int, like: Tensor) -> None:
        super().__init__(options, batches, rows, outputs, like)
        self.total: Tensor | None = None  # D of each batch, [batches], where it is not N
        self.table: Tensor | None = None
        # Elsewhere than on a CPU a label out of range is no exception, but the end of the process.
        simple = self.weight is None and not self.smoothing and not 0 <= options.get("ignore_index", -100) < outputs
        if simple and outputs <= MOST_CLASSES and on_host(like.device):
            self.table = torch.eye(outputs, dtype=like.dtype).mul_(-reduction_scale(self.reduction, rows))
            self._picked = like.new_zeros(batches * rows if self.by_neuron and batches > 1 else 0, outputs)

    def targets_buffer(self, like: Tensor) -> Tensor:
        return torch.zeros(self.batches * self.rows, dtype=torch.long, device=like.device)

    @classmethod
    def check(cls, options: dict[str, Any], targets: Tensor, rows: int, outputs: int, dtype: torch.dtype) -> Tensor:
        if targets.shape != (rows,):
            raise UserError(f"labels must be {[rows]}, one for each row, got {list(targets.shape)}")
        if targets.dtype not in (torch.int64, torch.uint8):  # as PyTorch has it, and so the other engine
            raise UserError(f"labels must be of int64 or uint8, got {targets.dtype}")
        if options:
            cls.check_options(options, outputs, dtype)
        return targets if targets.dtype == torch.long else targets.long()  # −100 against uint8 would be 156

    @classmethod
    def check_values(cls, options: dict[str, Any], targets: Tensor, outputs: int) -> None:
        outside = (targets < 0) | (targets >= outputs)
        wrong = targets[outside & (targets != options.get("ignore_index", -100))]
        if len(wrong):
            raise UserError(f"labels must be 0 to {outputs - 1}, as there are {outputs} outputs, got {int(wrong[0])}")

    def begin(self, targets: Tensor) -> None:
        super().begin(targets)
        self.total = None
        if self.table is not None:
            try:
                self.look_up(self.table, targets)
            except (IndexError, RuntimeError):  # a label to be ignored, or none at all
                self.check_values(self.options, targets, self.outputs)
            else:
                return
        elif on_host(targets.device):
            self.check_values(self.options, targets, self.outputs)
        ignore_index: int = self.options.get("ignore_index", -100)
        valid, label, w_y = label_weights(targets, self.weight, ignore_index)
        worth = valid.to(self.grad.dtype)  # ∂C/∂C_n
        if self.reduction == "mean":
            self.total = w_y.to(self.grad.dtype).view(-1, self.rows).sum(1)
            worth = torch.where(valid, 1 / self.total.view(-1, 1).expand(-1, self.rows).reshape(-1), 0.0)
        one_hot = self.grad.new_zeros(len(targets), self.outputs).scatter_(1, label.unsqueeze(1), 1.0)
        self.set_grad(self.class_weights(one_hot), worth.unsqueeze(1))

    def look_up(self, table: Tensor, targets: Tensor) -> None:
        """Write G = −y/N, a row of the table for each label."""
        if not self.by_neuron:
            torch.index_select(table, 0, targets, out=self.grad[: len(targets) // self.rows].flatten(0, 1))
        elif len(targets) == self.rows:
            torch.index_select(table, 1, targets, out=self._grad[0])
        else:
            picked = self._picked[: len(targets)]
            torch.index_select(table, 0, targets, out=picked)
            into = self._grad_rows[: len(targets) // self.rows]
            into.copy_(picked.view(into.shape))

    def total_value(self, batches: int, units: Tensor | None = None) -> Tensor:
        return super().total_value(batches) if self.total is None else self.values(batches).sum()

    def values(self, batches: int, units: Tensor | None = None) -> Tensor:
        values = super().values(batches, units)
        return values if self.total is None else torch.where(self.total[:batches] == 0, float("nan"), values)


MOST_CLASSES = 256  # above, the table of one-hot rows would take more memory than it is worth


class Rule:
    """A public loss with its options: which :class:`Loss` it is at work.

    Args:
        loss: A function of :mod:`deltaprop.functional` (or its counterpart in ``torch.nn.functional``), its name, or a
            ``functools.partial`` of one with options by keyword.

    Raises:
        UserError: If it is none of these, or an option cannot be taken.
    """

    def __init__(self, loss: str | Callable[..., Tensor]) -> None:
        options: dict[str, Any] = {}
        if isinstance(loss, functools.partial):
            if loss.args:
                raise UserError(f"options of the loss must be given by keyword, got {len(loss.args)} by position")
            options, loss = dict(loss.keywords), loss.func
        self.name = loss if isinstance(loss, str) else _NAMES.get(loss, "")
        if not self.name:
            name = getattr(loss, "__name__", type(loss).__name__)
            raise UserError(
                f"the explicit driver has no δ for the loss {name}: take one of {', '.join(_ROWS)}, or {ELSEWHERE}"
            )
        if self.name not in _ROWS:
            raise unknown_name("loss", self.name, _ROWS)
        known = set(inspect.signature(getattr(F, self.name)).parameters) - {"input", "target"}
        for option in options:
            if option not in known:
                raise UserError(f"{self.name} has no option {option!r}; it has {', '.join(sorted(known)) or 'none'}")
        if options.get("reduction", "mean") not in ("mean", "sum"):
            raise UserError(f"the loss must be one number: reduction 'mean' or 'sum', got {options['reduction']!r}")
        if not options.get("delta", 1.0) > 0:
            raise UserError(f"delta of huber_loss must be above 0, got {options['delta']}")
        if not 0 <= options.get("label_smoothing", 0.0) <= 1:
            raise UserError(f"label_smoothing must be between 0 and 1, got {options['label_smoothing']}")
        self.options = {name: value for name, value in options.items() if value is not None}
        if "weight" in self.options and issubclass(_ROWS[self.name], ResidualLoss):
            raise UserError(f"{self.name} with weights of the entries is not in the explicit driver: {ELSEWHERE}")

    def kind(self, targets: Tensor) -> type[Loss]:
        """Return what it is for targets of this kind."""
        if self.name == "cross_entropy":
            return SoftCrossEntropy if targets.is_floating_point() else LabelCrossEntropy
        return _ROWS[self.name]

    @property
    def contains(self) -> tuple[str, ...]:
        """The output activations that it already contains."""
        return _ROWS[self.name].contains

    def wants_by_neuron(self, outputs: int, device: torch.device) -> bool:
        """Return whether a^L and δ^L are to lie in memory neuron by neuron, for targets of every kind."""
        return _ROWS[self.name].wants_by_neuron(outputs, device)


_ROWS: dict[str, type[Loss]] = {
    "cross_entropy": CrossEntropy,
    "binary_cross_entropy_with_logits": BinaryCross,
    "binary_cross_entropy_per_sample": BinaryCrossPerSample,
    "mse_loss": MSE,
    "quadratic_loss": Quadratic,
    "huber_loss": Huber,
    "l1_loss": L1,
}
_NAMES: dict[Any, str] = {
    function: name for name in _ROWS for module in (F, torch.nn.functional) if (function := getattr(module, name, None))
}
