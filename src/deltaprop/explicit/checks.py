"""What the explicit driver takes: every model, optimizer and batch that it cannot train rightly is refused here."""

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
    """Return the parameters of the layers, in order.

    Raises:
        UserError: If layers share one, or not all are contiguous, real, of one dtype, on one device, without hooks.
    """
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
            raise UserError(f"a parameter of shape {list(p.shape)} has hooks, which nothing would call: {ELSEWHERE}")
    return params


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer whose step would do anything but SGD.

    Raises:
        UserError: If it is of another kind, or has hooks on its step.
    """
    known = type(optimizer) in (SGD, torch.optim.SGD)
    hooks = known and any(optimizer_hooks(optimizer))
    if not known or hooks:
        raise UserError(
            f"the explicit driver fuses SGD itself into its products, got {type(optimizer).__name__}"
            f"{' with step hooks' if hooks else ''}: {ELSEWHERE}"
        )


def check_momentum(optimizer: torch.optim.Optimizer, params: Sequence[Tensor]) -> None:
    """Refuse momentum buffers that are not as their parameters are, as after ``model.double()``.

    Raises:
        UserError: If there is one.
    """
    for p in params:
        buffer = optimizer.state.get(p, {}).get("momentum_buffer")
        if buffer is not None and (buffer.dtype, buffer.device, buffer.shape) != (p.dtype, p.device, p.shape):
            raise UserError(
                f"the momentum buffer of a parameter, {p.dtype} on {p.device}, is {buffer.dtype} on {buffer.device}: "
                "make the optimizer after the model is moved or cast"
            )


class Watch:
    """Notices when a model or its optimizer has been changed since it was read.

    Args:
        model: The model.
        params: Its parameters.
        optimizer: Over them.
    """

    def __init__(self, model: nn.Module, params: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
        modules = list(model.modules())
        self._params, self._optimizer = params, optimizer
        self._hooks = [*GLOBAL_MODULE_HOOKS, *hook_tables(modules), *optimizer_hooks(optimizer)]
        self._watched = modules
        self._children = [children(module) for module in modules if children(module)]
        self._parameters = [parameters(module) for module in modules if parameters(module)]
        single = [(module, from_torch(module)) for module in modules if not children(module)]
        self._constants = [(m, name) for m, ours in single if isinstance(ours, Activation) for name in ours.constants]
        self._seen = self._look()

    def changed(self) -> bool:
        """Return whether anything that the driver has read is another now."""
        return self._look() != self._seen

    def _look(self) -> tuple[Any, ...]:
        """Return all that was read; this is done at every single step, and so in little Python."""
        return (
            [tuple(named.values()) for named in self._children],
            [id(p) for named in self._parameters for p in named.values()],
            [
                (p.data_ptr(), p.dtype, p.shape, p.is_contiguous(), p.requires_grad, *tensor_hooks(p))
                for p in self._params
            ],
            [_comparable(getattr(module, name)) for module, name in self._constants],
            any(self._hooks),
            ["forward" in vars(module) for module in self._watched],
            [list(map(id, group["params"])) for group in self._optimizer.param_groups],
        )


def _comparable(constant: Any) -> Any:
    """Return a constant, or what tells a tensor from another: entries have no single truth."""
    return id(constant) if isinstance(constant, Tensor) else constant


def check_inputs(x: Tensor, y: Tensor, like: Tensor) -> int:
    """Return N, once inputs and targets are tensors that go with the model.

    Args:
        x: Inputs.
        y: Targets.
        like: W of the first layer, [n_1, n_0].

    Raises:
        UserError: If they are not.
    """
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise UserError(
            f"inputs and targets must be tensors (torch.from_numpy makes one), "
            f"got {type(x).__name__} and {type(y).__name__}"
        )
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
    """Return targets as the loss takes them.

    Args:
        loss: The loss.
        y: Targets, which may be those of all rows of a data set.
        rows: N.
        outputs: n_L.
        dtype: Of the outputs.

    Raises:
        UserError: If they, or the options of the loss, do not fit outputs [N, n_L].
    """
    if loss.definition.takes_labels and not y.is_floating_point():
        if y.shape != (rows,):
            raise UserError(f"labels must be {[rows]}, one for each row, got {list(y.shape)}")
        if y.dtype not in (torch.int64, torch.uint8):  # as PyTorch has it, and so the other driver
            raise UserError(f"labels must be of int64 or uint8, got {y.dtype}")
        y = y.long()  # −100 against uint8 would be 156
    elif y.shape != (rows, outputs):
        if loss.definition.takes_labels:
            what = f"targets of {y.dtype} are class probabilities, {[rows, outputs]}, got {list(y.shape)}"
            raise UserError(f"{what}; labels are whole numbers, {[rows]} of int64")
        raise UserError(f"targets must be {[rows, outputs]}, as the outputs are, got {list(y.shape)}")
    else:
        y = y.to(dtype)
    if loss.options:
        _check_options(loss, y, outputs, dtype)
    return y


def _check_options(loss: LossSpec, y: Tensor, outputs: int, dtype: torch.dtype) -> None:
    options = loss.options
    if loss.name == "cross_entropy":
        weight = options.get("weight")
        if weight is not None and not _is_tensor_of(weight, [(outputs,)], dtype):
            raise UserError(f"weight must hold one number a class, [{outputs}] of {dtype}, got {_shown(weight)}")
        if y.is_floating_point() and options.get("ignore_index", -100) >= 0:
            raise UserError("ignore_index is for labels: targets of class probabilities have none")
        return
    for name in ("weight", "pos_weight"):
        given = options.get(name)
        if given is not None and not isinstance(given, Tensor):
            raise UserError(f"{name} must be a tensor, [{outputs}], got {given!r}")
        if given is not None and tuple(given.shape) not in ((), (1,), (outputs,), (1, 1), (1, outputs)):
            what = f"{name} must be one number an output, [{outputs}], got {list(given.shape)}"
            raise UserError(f"{what}; if it differs from sample to sample, {ELSEWHERE}")


def _is_tensor_of(value: Any, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> bool:
    return isinstance(value, Tensor) and tuple(value.shape) in shapes and value.dtype == dtype


def _shown(value: Any) -> str:
    return f"{list(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else repr(value)


def check_labels(loss: LossSpec, y: Tensor, outputs: int) -> None:
    """Refuse labels that are not a class; it waits for the device, so not at every step.

    Raises:
        UserError: If there is one.
    """
    if y.is_floating_point():
        return
    wrong = y[((y < 0) | (y >= outputs)) & (y != loss.options.get("ignore_index", -100))]
    if len(wrong):
        raise UserError(f"labels must be 0 to {outputs - 1}, as there are {outputs} outputs, got {int(wrong[0])}")


def refuse_entry_weights(loss: LossSpec) -> None:
    """Refuse weights of single entries: a weight for each row of a data set has no place in a batch.

    Raises:
        UserError: If a loss of a − y has some.
    """
    residual = issubclass(loss.definition, ElementwiseLoss) and not loss.definition.contains
    if "weight" in loss.options and residual:
        raise UserError(f"{loss.name} with weights of the entries is not in the explicit driver: {ELSEWHERE}")


def whole_number(number: object, name: str = "batch_size") -> int:
    """Return a whole number as Python's.

    Raises:
        UserError: If it is not one.
    """
    try:
        if not isinstance(number, bool):
            return operator.index(number)  # type: ignore[arg-type]  # what has none is told
    except TypeError:
        pass
    what = "a whole number, at least 1" if name == "batch_size" else "a step of the epoch, a whole number"
    raise UserError(f"{name} must be {what}, got {number!r}")


def check_order(order: Tensor, x: Tensor) -> None:
    """Refuse an order that does not consist of indices of rows.

    Raises:
        UserError: If it does not.
    """
    if not isinstance(order, Tensor):
        raise UserError(f"order must be a tensor of row indices, got {type(order).__name__}")
    if order.dim() != 1 or order.dtype not in (torch.int64, torch.int32):
        raise UserError(f"order must be row indices [M] of int64, got {order.dtype} {list(order.shape)}")
    if order.device != x.device:
        raise UserError(f"order must be on {x.device} with the inputs, got {order.device}")
    if len(order) and not 0 <= int(order.min()) <= int(order.max()) < len(x):
        raise UserError(f"order must hold rows 0 to {len(x) - 1}, got {int(order.min())} to {int(order.max())}")
