"""What the explicit engine refuses: models, optimizers and batches that it cannot train correctly.

Each function raises a :class:`~deltaprop.errors.UserError` that names what it cannot accept.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deltaprop._torch_compat import GLOBAL_MODULE_HOOKS, children, optimizer_hooks, parameters, tensor_hooks
from deltaprop.core import ElementwiseLoss
from deltaprop.core.recursion import Layer
from deltaprop.errors import UserError
from deltaprop.loss_spec import LossSpec
from deltaprop.nn.layers import ELSEWHERE, hook_tables
from deltaprop.nn.modules import Activation, from_torch
from deltaprop.optim import SGD


def check_parameters(layers: Sequence[Layer]) -> list[Tensor]:
    """Return the parameters of the layers, distinct, contiguous, of one dtype and device, without hooks."""
    params = [p for layer in layers for p in (layer.weight, layer.bias) if p is not None]
    if len({p.data_ptr() or id(p) for p in params}) < len(params):  # by .data two may share memory
        raise UserError(f"layers share a parameter, whose gradients would have to be added up: {ELSEWHERE}")
    first = params[0]
    for p in params:
        if (p.dtype, p.device) != (first.dtype, first.device):
            raise UserError(f"parameters must all be {first.dtype} on {first.device}, got {p.dtype} on {p.device}")
        if not p.is_floating_point():
            raise UserError(f"parameters must be real numbers, got {p.dtype}")
        if not p.is_contiguous():
            raise UserError(f"parameters must be contiguous, got strides {p.stride()} for shape {list(p.shape)}")
        if any(tensor_hooks(p)):
            raise UserError(f"a parameter of shape {list(p.shape)} has hooks, which would not be called: {ELSEWHERE}")
    return params


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer other than SGD, and one with hooks on its step."""
    known = type(optimizer) in (SGD, torch.optim.SGD)
    hooks = known and any(optimizer_hooks(optimizer))
    if not known or hooks:
        got = f"{type(optimizer).__name__}{' with step hooks' if hooks else ''}"
        raise UserError(f"training without autograd supports dp.SGD and torch.optim.SGD, got {got}: {ELSEWHERE}")


def check_momentum(optimizer: torch.optim.Optimizer, params: Sequence[Tensor]) -> None:
    """Refuse momentum buffers with another dtype, device or shape than their parameter, as after ``model.double()``."""
    for p in params:
        buffer = optimizer.state.get(p, {}).get("momentum_buffer")
        if buffer is not None and (buffer.dtype, buffer.device, buffer.shape) != (p.dtype, p.device, p.shape):
            raise UserError(
                f"the momentum buffer of a parameter, {list(p.shape)} {p.dtype} on {p.device}, is "
                f"{list(buffer.shape)} {buffer.dtype} on {buffer.device}: "
                "make the optimizer after the model is moved or cast"
            )


class ChangeDetector:
    """Detects changes of a model or its optimizer since it was made."""

    def __init__(self, model: nn.Module, params: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
        self._modules = list(model.modules())
        self._params, self._optimizer = params, optimizer
        self._hooks = [*GLOBAL_MODULE_HOOKS, *hook_tables(self._modules), *optimizer_hooks(optimizer)]
        self._children = [children(module) for module in self._modules if children(module)]
        self._parameters = [parameters(module) for module in self._modules if parameters(module)]
        single = [(module, from_torch(module)) for module in self._modules if not children(module)]
        self._constants = [(m, name) for m, ours in single if isinstance(ours, Activation) for name in ours.constants]
        self._before = self._snapshot()

    def changed(self) -> bool:
        """Return whether anything that the engine has read has changed."""
        return self._snapshot() != self._before

    def _snapshot(self) -> tuple[Any, ...]:
        """Return everything that was read; this runs at every single step, and so in little Python."""
        return (
            [tuple(named.values()) for named in self._children],
            [id(p) for named in self._parameters for p in named.values()],
            [
                (p.data_ptr(), p.dtype, p.shape, p.is_contiguous(), p.requires_grad, *tensor_hooks(p))
                for p in self._params
            ],
            # A tensor by its id: comparing two gives no single truth value.
            [id(c) if isinstance(c := getattr(m, name), Tensor) else c for m, name in self._constants],
            any(self._hooks),
            ["forward" in vars(module) for module in self._modules],
            [list(map(id, group["params"])) for group in self._optimizer.param_groups],
        )


def check_inputs(x: Tensor, y: Tensor, like: Tensor) -> int:
    """Return N, once inputs and targets are tensors that fit W of the first layer, [n_1, n_0]."""
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        got = f"{type(x).__name__} and {type(y).__name__}"
        raise UserError(f"inputs and targets must be tensors (torch.from_numpy makes one), got {got}")
    if x.dim() != 2 or x.shape[1] != like.shape[1] or not len(x):
        raise UserError(f"inputs must be [N, {like.shape[1]}] with N at least 1, got {list(x.shape)}")
    if y.is_complex():
        raise UserError(f"targets must be real numbers or labels, got {y.dtype}")
    if x.layout != torch.strided or y.layout != torch.strided:
        raise UserError(f"inputs and targets must be dense tensors, got {x.layout} and {y.layout}")
    if x.dtype != like.dtype:
        raise UserError(f"inputs must have the model's dtype, {like.dtype}, got {x.dtype}")
    if x.device != like.device or y.device != like.device:
        raise UserError(f"inputs and targets must be on {like.device} with the model, got {x.device} and {y.device}")
    return len(x)


def check_targets(loss: LossSpec, y: Tensor, rows: int, outputs: int, dtype: torch.dtype) -> Tensor:
    """Return targets of a batch or data set as the loss takes them, if they and its options fit outputs [N, n_L]."""
    if loss.definition.takes_labels and not y.is_floating_point():
        if y.shape != (rows,):
            raise UserError(f"labels must be {[rows]}, one for each row, got {list(y.shape)}")
        if y.dtype not in (torch.int64, torch.uint8):  # as in PyTorch, and so in the other engine
            raise UserError(f"labels must be of int64 or uint8, got {y.dtype}")
        y = y.long()  # −100 compared with uint8 would be 156
    elif y.shape != (rows, outputs):
        if loss.definition.takes_labels:
            got = f"targets of {y.dtype} are class probabilities, {[rows, outputs]}, got {list(y.shape)}"
            raise UserError(f"{got}; labels are whole numbers, {[rows]} of int64")
        raise UserError(f"targets must be {[rows, outputs]}, as the outputs are, got {list(y.shape)}")
    else:
        y = y.to(dtype)
    if loss.options:
        _check_options(loss, y, outputs, dtype)
    return y


def _check_options(loss: LossSpec, y: Tensor, outputs: int, dtype: torch.dtype) -> None:
    weight = loss.options.get("weight")
    if loss.name == "cross_entropy":
        fits = isinstance(weight, Tensor) and weight.shape == (outputs,) and weight.dtype == dtype
        if weight is not None and not fits:
            got = f"{list(weight.shape)} of {weight.dtype}" if isinstance(weight, Tensor) else repr(weight)
            raise UserError(f"weight must hold one number a class, [{outputs}] of {dtype}, got {got}")
        if y.is_floating_point() and loss.options.get("ignore_index", -100) >= 0:
            raise UserError("ignore_index is for labels, not for targets of class probabilities")
        return
    for name, value in (("weight", weight), ("pos_weight", loss.options.get("pos_weight"))):
        if value is not None and not isinstance(value, Tensor):
            raise UserError(f"{name} must be a tensor, [{outputs}], got {value!r}")
        if value is not None and tuple(value.shape) not in ((), (1,), (outputs,), (1, 1), (1, outputs)):
            got = f"{name} must be one number an output, [{outputs}], got {list(value.shape)}"
            raise UserError(f"{got}; if it differs from sample to sample, {ELSEWHERE}")


def check_labels(loss: LossSpec, y: Tensor, outputs: int) -> None:
    """Refuse labels that are not a class; this synchronizes with the device, so it is not done at every step."""
    if y.is_floating_point():
        return
    lowest, highest = y.aminmax()
    if lowest >= 0 and highest < outputs:
        return
    wrong = y[((y < 0) | (y >= outputs)) & (y != loss.options.get("ignore_index", -100))]
    if len(wrong):
        raise UserError(f"labels must be 0 to {outputs - 1}, as there are {outputs} outputs, got {int(wrong[0])}")


def refuse_entry_weights(loss: LossSpec) -> None:
    """Refuse weights of single entries in a loss of a − y: those of a whole data set do not fit a batch."""
    residual = issubclass(loss.definition, ElementwiseLoss) and not loss.definition.contains
    if "weight" in loss.options and residual:
        raise UserError(
            f"training without autograd does not support weights of the entries in {loss.name}: {ELSEWHERE}"
        )


def check_sample_weights(loss: LossSpec, weights: Tensor, x: Tensor, y: Tensor) -> None:
    """Refuse weights of samples that are not above 0 or do not fit the inputs, and losses that have no place for them.

    ``loss`` is that of :meth:`~deltaprop.loss_spec.LossSpec.on_targets`.
    """
    if not isinstance(weights, Tensor) or weights.shape != (len(x),):
        got = str(list(weights.shape)) if isinstance(weights, Tensor) else type(weights).__name__
        raise UserError(f"sample_weight must be a tensor, [{len(x)}], one number for each row, got {got}")
    if (weights.dtype, weights.device) != (x.dtype, x.device):
        got = f"{weights.dtype} on {weights.device}"
        raise UserError(f"sample_weight must be of {x.dtype} on {x.device}, as the inputs are, got {got}")
    if not bool(((weights > 0) & weights.isfinite()).all()):
        raise UserError("sample_weight must be finite and above 0 for each row: leave rows of weight 0 out")
    if "weight" in loss.options:
        raise UserError("sample_weight and weight are both given: multiply them into sample_weight")
    options = {**loss.definition.options(), **loss.options}
    if "reduction" not in options:
        raise UserError(f"{loss.name} has no reduction 'none', which sample_weight needs")
    if not y.is_floating_point() and options.get("ignore_index") is not None:
        raise UserError("sample_weight is not supported where labels are ignored: leave these rows out")


def whole_number(number: object, name: str = "batch_size") -> int:
    """Return a whole number of any type, such as NumPy's, as an int; True and False are refused."""
    try:
        return operator.index(None if isinstance(number, bool) else number)  # type: ignore[arg-type]  # raises
    except TypeError:
        expected = "a whole number, at least 1" if name == "batch_size" else "a step of the epoch, a whole number"
        raise UserError(f"{name} must be {expected}, got {number!r}") from None


def check_order(order: Tensor, x: Tensor) -> None:
    """Refuse an order that does not consist of indices of rows."""
    if not isinstance(order, Tensor):
        raise UserError(f"order must be a tensor of row indices, got {type(order).__name__}")
    if order.dim() != 1 or order.dtype not in (torch.int64, torch.int32):
        raise UserError(f"order must be row indices [M] of int64, got {order.dtype} {list(order.shape)}")
    if order.device != x.device:
        raise UserError(f"order must be on {x.device} with the inputs, got {order.device}")
    if len(order) and not 0 <= int(order.min()) <= int(order.max()) < len(x):
        raise UserError(f"order must hold rows 0 to {len(x) - 1}, got {int(order.min())} to {int(order.max())}")
