"""The compiled engine: whole epochs in C++, by the formulas of ``core/``."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from deltaprop._torch_compat import blas_gemm
from deltaprop.compiled.build import Toolchain, find_toolchain, load_library
from deltaprop.compiled.library import LayerSpec, Options, Param, address, call_train
from deltaprop.compiled.source import (
    EXPLICIT,
    REALS,
    activation_number,
    distinct_activations,
    loss_constants,
    source_for,
)
from deltaprop.core import CrossEntropy
from deltaprop.core.recursion import Layer
from deltaprop.epoch_state import EpochState
from deltaprop.errors import UserError
from deltaprop.explicit import ExplicitTrainer
from deltaprop.explicit.batches import EpochRows, Share
from deltaprop.explicit.checks import check_momentum
from deltaprop.loss_spec import LossLike, LossSpec

# Multiply-adds of a call into C++: 4 to 40 ms, or one step, so that Ctrl-C and a pause do not wait longer. And what a
# step, and each entry of z, take besides the products: erf and its derivative in float64 as long as 400.
CALL, STEP, ENTRY = 2**29, 2**15, 400
# Multiply-adds of a layer's product, N · n_in · n_out, from which PyTorch's BLAS is faster than the tiles, and from
# which threads share the tiles' work. Measured: docs/performance.md.
WIDE, SHARED = 2**23, 2**21


class CompiledTrainer(ExplicitTrainer):
    """Trains an MLP by the δ recursion in C++: the steps of :class:`~deltaprop.ExplicitTrainer`, faster.

    ``epoch.cpp`` is that recursion over whole epochs, without Python between the steps. Activations and element-wise
    losses in it are written from their definitions in ``core/``, and the machine's own C++ compiler builds it: about
    three seconds, once for a kind of model. The interface, and what is refused, are those of ExplicitTrainer; besides,
    the model must be on the CPU, of float32 or float64, and every formula one that works entry by entry, as all but
    softmax and log-softmax as activations do.

    Args:
        model: As for :class:`~deltaprop.ExplicitTrainer`, on the CPU.
        loss: Likewise.
        optimizer: Likewise.
        on_build: Called before the compiler runs, if it has to.

    Raises:
        BuildError: If there is no C++ compiler, or it fails; a UserError.
        UserError: If one of them is not supported.

    Example:
        >>> from deltaprop import MLP, SGD
        >>> model = MLP([4, 8, 3])
        >>> trainer = CompiledTrainer(model, "cross_entropy", SGD(model.parameters(), lr=0.1))
        >>> x, y = torch.randn(100, 4), torch.randint(3, (100,))
        >>> mean = trainer.epoch(x, y, batch_size=16, generator=torch.Generator().manual_seed(0))
    """

    _on_build: Callable[[], object] = staticmethod(lambda: None)  # not pickled

    def __init__(
        self,
        model: nn.Module,
        loss: LossLike,
        optimizer: torch.optim.Optimizer,
        *,
        on_build: Callable[[], object] = lambda: None,
    ) -> None:
        self._on_build = on_build
        super().__init__(model, loss, optimizer)

    def __repr__(self) -> str:
        """Return layer sizes and loss."""
        return f"CompiledTrainer({'-'.join(map(str, self._sizes))}, {self.loss.name})"

    @property
    def toolchain(self) -> Toolchain:
        """The compiler, its version and flags, and the processor."""
        return self._toolchain

    def steps_at_once(self, batch_size: int) -> int:
        """Return the number of steps between two chances to stop, a fixed one: no bit depends on time."""
        products = sum(n_in * n_out for n_in, n_out in pairwise(self._sizes))
        return max(1, CALL // (batch_size * (3 * products + ENTRY * sum(self._sizes[1:])) + STEP))

    def _prepare_library(self) -> None:
        layers = self._workspace.layers
        weight = layers[0].weight
        if weight.device.type != "cpu":
            raise UserError(f"the compiled engine is for the CPU, and the model is on {weight.device}: {EXPLICIT}")
        if weight.dtype not in REALS:
            raise UserError(f"the compiled engine has float32 and float64, and the model {weight.dtype}: {EXPLICIT}")
        self._sizes = [weight.shape[1], *[len(layer.weight) for layer in layers]]
        self._toolchain = find_toolchain()
        activations = self._activations()
        source = source_for(activations, self.loss, weight.dtype)
        self._library = load_library(source, self._toolchain, on_build=self._on_build)
        self._numbers = [activation_number(layer, activations) for layer in layers]

    def _activations(self) -> list[Layer]:
        """Return a layer for each activation that the library is to have."""
        return distinct_activations(self._workspace.layers)

    # --- the steps ---

    def _train(
        self, loss: LossSpec, x: Tensor, targets: tuple[Tensor, ...], share: Share | None = None
    ) -> tuple[Tensor, Tensor]:
        outputs = x.new_empty(len(x), self._outputs)
        losses, counts = self._call(loss, x, torch.arange(len(x)), targets, len(x), outputs)
        return torch.where(counts == 0, math.nan, losses)[0].to(x.dtype), outputs  # all labels are ignored: 0/0

    def _steps(self, loss: LossSpec, data: EpochRows, state: EpochState, *, one_by_one: bool) -> Iterator[int]:
        if not len(data):
            return
        order = torch.arange(len(data)) if data.order is None else data.order.long().contiguous()
        x, size, done = data.x.contiguous(), min(data.batch_size, len(data)), state.done
        ends = 1 if one_by_one else self.steps_at_once(size), state.interval if state.pause else sys.maxsize
        while done < math.ceil(len(data) / size):
            # Blocks end at multiples, wherever the epoch began: the same sums, the same bits.
            end = min((done // multiple + 1) * multiple for multiple in ends)
            first, last = done * size, min(end * size, len(data))
            targets = data.targets(loss, first, last, self._outputs)
            outputs = None if state.report is None else x.new_empty(last - first, self._outputs)
            losses, counts = self._call(loss, x, order[first:last], targets, size, outputs)
            count = counts.sum().item()  # a number: C keeps the dtype of the model
            total = torch.where(counts == 0, 0.0, losses * counts).sum()
            if state.report is not None and outputs is not None:
                total = state.report(outputs, targets[0]) * count
            state.add_sum(total, count)
            yield len(losses)
            done += len(losses)

    def _call(
        self, loss: LossSpec, x: Tensor, order: Tensor, targets: tuple[Tensor, ...], size: int, outputs: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Train on these rows of x in batches; return C of each step, [steps], and its weight in a mean of several."""
        labels = loss.definition is CrossEntropy
        tensors = [t for t in loss_constants(loss) if isinstance(t, Tensor)] if not labels else []
        constants = torch.stack([self._by_output(t, x) for t in tensors]) if tensors else None
        weight = loss.options.get("weight")
        grad_entries, counts = self._factors(loss, x, targets, size)
        losses = torch.zeros(len(counts), dtype=torch.float64)
        rows = {
            "x": x.contiguous().resolve_neg(),
            "order": order,
            "targets": targets[1 if labels else 0].contiguous().resolve_neg(),
            "grad_entries": grad_entries,
            "output_weights": None if labels or weight is None else self._by_output(weight, x),
            "constants": constants,
            "losses": losses,
            "outputs": outputs,
        }
        call_train(self._library, self._layer_specs(size), self._lowest, size, self._threads(size), rows)
        increment_version(self._written)  # as PyTorch's own writes do: a graph that holds the old values is refused
        return losses, counts

    def _by_output(self, constant: Tensor, like: Tensor) -> Tensor:
        return constant.to(like.dtype).expand(1, self._outputs).reshape(-1).contiguous()

    def _factors(self, loss: LossSpec, x: Tensor, targets: tuple[Tensor, ...], size: int) -> tuple[Tensor, Tensor]:
        """Return ∂C/∂c of each row, [rows], and the weight of each batch in a mean over several, [steps]."""
        rows = len(targets[0])
        whole = rows // size * size  # the last batch may be smaller
        parts = [(first, last, n) for first, last, n in ((0, whole, size), (whole, rows, rows - whole)) if first < last]
        found = [
            _factors_of_batches(loss, x.new_empty(n, self._outputs), [t[first:last] for t in targets], n)
            for first, last, n in parts
        ]
        factors, counts = zip(*found, strict=True)
        return torch.cat(factors), torch.cat(counts)

    def _threads(self, size: int) -> int:
        """Return the number of threads that share a step: 1 where it is not worth it, and where BLAS has its own."""
        weights = [layer.weight for layer in self._workspace.layers]
        if size * max(weight.numel() for weight in weights) < SHARED or any(self._gemm(w, size) for w in weights):
            return 1
        return torch.get_num_threads()

    def _layer_specs(self, size: int) -> list[LayerSpec]:
        self._written: list[Tensor] = []
        return [
            LayerSpec(
                *reversed(layer.weight.shape), number, self._gemm(layer.weight, size),
                self._param(layer.weight, layer.learns[0]), self._param(layer.bias, layer.learns[1]),
            )
            for layer, number in zip(self._workspace.layers, self._numbers, strict=True)
        ]  # fmt: skip

    def _gemm(self, weight: Tensor, size: int) -> int | None:
        """Return the address of PyTorch's product where it is faster than the tiles of ``epoch.cpp``."""
        return blas_gemm(weight.dtype) if weight.numel() * size >= WIDE else None

    def _param(self, param: Tensor | None, learns: bool) -> Param:
        if param is None or not learns:
            return Param(address(param))
        velocity, first_step = self._update.velocity(param)
        if velocity is not None:
            check_momentum(self._optimizer, [param])
            velocity = self._optimizer.state[param]["momentum_buffer"] = velocity.contiguous()
        self._written += [param] if velocity is None else [param, velocity]
        options = self._update.options(param)
        return Param(
            address(param),
            address(velocity),
            Options(*options[:4], bool(options.nesterov), bool(options.maximize), first_step),
            learns,
        )


def _factors_of_batches(loss: LossSpec, a: Tensor, targets: list[Tensor], n: int) -> tuple[Tensor, Tensor]:
    """Return ∂C/∂c of each row and the weight of each batch, for batches of n rows; a is like the outputs of one."""
    rows = len(targets[0])
    steps = rows // n

    def of_batch(*batch: Tensor) -> tuple[Tensor | float, Tensor | int]:
        return loss.grad_entries(a, batch), loss.count(a, batch)

    factor, count = of_batch(*[t[:n] for t in targets])
    if not isinstance(factor, Tensor) and not isinstance(count, Tensor):  # the same numbers for each batch
        return a.new_full((rows,), factor), torch.full((steps,), count, dtype=torch.float64)
    in_batches = [t.unflatten(0, (steps, n)) for t in targets]
    factor, count = torch.vmap(lambda *batch: tuple(map(torch.as_tensor, of_batch(*batch))))(*in_batches)
    return factor.to(a.dtype).reshape(steps, -1).expand(steps, n).reshape(-1), count.double()
