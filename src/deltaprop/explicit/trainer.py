"""The explicit engine: an MLP trained without autograd, in place on its Parameters.

This class checks its input (``checks.py``), feeds batches to the layers and sums the loss. The step itself is
:func:`~deltaprop.core.recursion.feed_forward` and :func:`~deltaprop.core.recursion.back_propagate`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deltaprop._torch_compat import mark_step
from deltaprop.core.casting import cast
from deltaprop.core.recursion import back_propagate, feed_forward
from deltaprop.distributed import Exchange, World, world_of
from deltaprop.epoch_state import EpochState
from deltaprop.errors import UserError
from deltaprop.explicit.batches import EpochRows, Share, batches
from deltaprop.explicit.checks import (
    ChangeDetector,
    check_inputs,
    check_labels,
    check_momentum,
    check_optimizer,
    check_order,
    check_parameters,
    check_sample_weights,
    check_targets,
    refuse_entry_weights,
    whole_number,
)
from deltaprop.explicit.graph import can_capture, is_ours
from deltaprop.explicit.precision import check_precision, products_in
from deltaprop.explicit.update import Updater
from deltaprop.explicit.workspace import Workspace
from deltaprop.loss_spec import LossLike, LossSpec, SampleWeighted, parse_loss
from deltaprop.nn.layers import read_layers, refuse_contained_activation


class ExplicitTrainer:
    """Trains an MLP by the δ recursion, without autograd: the same steps, faster.

    It works in place on the model's own Parameters and on the optimizer's momentum buffers, and leaves ``.grad`` alone:
    with plain SGD no ∂C/∂W is ever stored. Parameters may be read, saved, and written to in place between two calls and
    in an ``on_step``. Learning rate and the other options are read from ``optimizer.param_groups`` at every call and
    after every ``on_step``, so schedulers work as always.

    Args:
        model: An :class:`~deltaprop.MLP`, or an ``nn.Sequential`` of linear layers, each with one activation or none
            after it (ours or PyTorch's).
        loss: A function of :mod:`deltaprop.functional`, its name, a ``functools.partial`` of one with options, or a
            loss module of ``torch.nn`` that has a counterpart here.
        optimizer: An :class:`~deltaprop.SGD` or ``torch.optim.SGD`` over the model's parameters.
        precision: Precision of matrix products: ``"float32"``, or ``"tf32"`` or ``"bf16"`` on a device that has them;
            everything else stays float32 (``precision.py``).
        world: The processes that train this model together, of :func:`deltaprop.distributed.join`. Each calls the same
            methods with the same rows, of which it takes its share of each batch, and begins with the parameters of
            process 0. The result is that of one process, but for rounding.
        exchange: How they add their gradients: ``"sums"``, ``"factors"`` or ``"auto"`` (``distributed/exchange.py``).
        exchange_dtype: Data type of what they send; by default that of the parameters.

    Raises:
        UserError: If one of them is not supported: a module of another kind, hooks, shared weights, an output
            activation that the loss already contains, another optimizer, a precision the device does not have.

    Example:
        >>> from deltaprop import MLP, SGD
        >>> model = MLP([4, 8, 3])
        >>> trainer = ExplicitTrainer(model, "cross_entropy", SGD(model.parameters(), lr=0.1))
        >>> x, y = torch.randn(100, 4), torch.randint(3, (100,))
        >>> mean = trainer.epoch(x, y, batch_size=16, generator=torch.Generator().manual_seed(0))
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossLike,
        optimizer: torch.optim.Optimizer,
        *,
        precision: str = "float32",
        world: World | None = None,
        exchange: str = "auto",
        exchange_dtype: torch.dtype | None = None,
    ) -> None:
        self._model, self._optimizer, self._precision = model, optimizer, precision
        self._world = world_of(world)
        of_all = Exchange(self._world, exchange, exchange_dtype)
        self._exchange = of_all if self._world.size > 1 else None
        self._loss = parse_loss(loss)
        refuse_entry_weights(self._loss)
        self._set_up()
        for layer in self._workspace.layers:
            for p in (layer.weight, layer.bias):
                if p is not None:
                    self._world.broadcast(p.detach())

    _world = World()  # one that is unpickled trains alone
    _exchange: Exchange | None = None

    def _set_up(self) -> None:
        self._running = False  # within an epoch
        self._changes: ChangeDetector | None = None
        self._update = Updater(self._optimizer)
        self._read_model()

    @property
    def model(self) -> nn.Module:
        """The model (read-only)."""
        return self._model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer (read-only)."""
        return self._optimizer

    @property
    def loss(self) -> LossSpec:
        """The loss with its options (read-only)."""
        return self._loss

    @property
    def precision(self) -> str:
        """Precision of matrix products (read-only)."""
        return self._precision

    def __repr__(self) -> str:
        """Return layer sizes, loss and precision."""
        layers = self._workspace.layers
        sizes = [layers[0].weight.shape[1], *[len(layer.weight) for layer in layers]]
        return f"ExplicitTrainer({'-'.join(map(str, sizes))}, {self.loss.name}, precision={self._precision!r})"

    def __getstate__(self) -> dict[str, Any]:
        """Return the constructor's arguments; the workspace is rebuilt when it is unpickled."""
        return {name: vars(self)[name] for name in ("_model", "_loss", "_optimizer", "_precision")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Rebuild a trainer from the constructor's arguments."""
        vars(self).update(state)
        self._set_up()

    # --- what users call ---

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Take one step on a batch.

        Args:
            x: Inputs, [N, n_0].
            y: Targets, as the loss takes them.

        Returns:
            C before the step, a scalar on the device.

        Raises:
            UserError: If x or y do not fit the model.
        """
        self._refresh()
        y = self._check_batch(x, y)
        loss = self.loss.on_targets(y) if y.device.type == "cpu" else self.loss  # on a GPU it would wait for the device
        with torch.no_grad():
            try:
                if self._world.size > 1:
                    check_labels(self.loss, y, self._outputs)  # of all rows: else one process would raise alone
                    data = EpochRows(x, y, len(x), world=self._world)
                    ((x, targets, share),) = batches(loss, data, 0, self._outputs)
                    assert share is not None
                    c = self._train(loss, x, targets, share)[0]
                    return share.whole(self._world.sum(share.part(c)))
                targets = loss.targets(y, x.new_empty(len(x), self._outputs))
                return self._train(loss, x, targets)[0]
            except (IndexError, RuntimeError):  # before any update: a label that is not a class
                check_labels(self.loss, y, self._outputs)
                raise

    def epoch(
        self,
        x: Tensor,
        y: Tensor,
        batch_size: int,
        *,
        order: Tensor | None = None,
        generator: torch.Generator | None = None,
        start: int = 0,
        on_step: Callable[[int], object] | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """Take one pass over the rows.

        Args:
            x: Inputs, [M, n_0].
            y: Targets, [M, …].
            batch_size: Rows per step; the last step takes the rest.
            order: Indices of the rows, in order. With neither order nor generator, the rows in order.
            generator: Draws a random order.
            start: The first batch, counted from 0: continues an epoch that was interrupted after so many steps.
            on_step: Called after each step with the number of steps done in this epoch, those before ``start``
                included. It may read or change the model and the optimizer's options. If it returns True, the epoch
                ends there.
            sample_weight: A weight above 0 for each row, [M], with the dtype of x: C of a batch is Σ w_n C_n / Σ w_n.

        Returns:
            The mean of C over the steps taken, each sample counting once (by its own weight or that of its class, where
            there are some; one whose label is ignored does not count), a scalar on the device; NaN if no step was
            taken.

        Raises:
            UserError: If an argument does not fit; nothing has been changed then.
        """
        check_inputs(x, y, self._workspace.layers[0].weight)
        state = EpochState(x.new_zeros(()), start)
        if on_step is not None and not callable(on_step):
            raise UserError(f"on_step must be a function of the number of steps done, got {on_step!r}")
        if generator is not None and not isinstance(generator, torch.Generator):
            raise UserError(f"generator must be a torch.Generator, got {generator!r}")
        if order is not None and generator is not None:
            raise UserError("order and generator both say in which order: give one of them")
        if generator is not None:
            order = torch.randperm(len(x), generator=generator, device=generator.device).to(x.device)
        self._epoch(x, y, batch_size, order, state, on_step, sample_weight)
        if self._world.size > 1:
            self._world.sum(state.total)
        return state.mean()

    # --- the epoch, shared with the training loop ---

    def _epoch(
        self,
        x: Tensor,
        y: Tensor,
        batch_size: int,
        order: Tensor | None,
        state: EpochState,
        on_step: Callable[[int], object] | None = None,
        sample_weight: Tensor | None = None,
    ) -> None:
        """Train on the rows in order, or on the rest of an interrupted epoch, and keep ``state`` up to date."""
        batch_size = whole_number(batch_size)
        if batch_size < 1:
            raise UserError(f"batch_size must be a whole number, at least 1, got {batch_size}")
        if self._running:
            raise UserError("epoch was called within an epoch of the same trainer: it would overwrite its batches")
        self._refresh()
        if len(x) or state.shares is None:  # a process may have no row where each has its own
            y = self._check_batch(x, y)
            check_labels(self.loss, y, self._outputs)
        loss = self.loss.on_targets(y)
        if sample_weight is not None:
            check_sample_weights(loss, sample_weight, x, y)
            loss = SampleWeighted(loss.name, loss.options)
        if order is not None:
            check_order(order, x)
        rows = len(x) if order is None else len(order)
        steps = math.ceil(rows / batch_size) if state.shares is None else len(state.shares)
        if not 0 <= whole_number(state.done, "start") <= steps:
            raise UserError(f"start must be a step of the epoch, 0 to {steps}, got {state.done!r}")
        data = EpochRows(x, y, batch_size, order, sample_weight, self._world, state.shares)
        self._running, shape, grad_mode = True, self._shape, torch.is_grad_enabled()
        try:
            with torch.inference_mode():
                for taken in self._steps(loss, data, state, one_by_one=on_step is not None):
                    ended = state.steps_done(taken)
                    if on_step is not None:
                        with torch.inference_mode(False), torch.set_grad_enabled(grad_mode):  # as it is for the caller
                            ended = on_step(state.done) is True
                            self._refresh()
                        if self._shape != shape:
                            raise UserError(
                                "on_step has changed the inputs, outputs or dtype of the model: "
                                "end the epoch there, by True, and begin another"
                            )
                    if ended:
                        break
        finally:
            self._running = False

    def _steps(self, loss: LossSpec, data: EpochRows, state: EpochState, *, one_by_one: bool) -> Iterator[int]:
        """Take the steps from ``state.done`` on and add their losses to the state; yield how many were just taken."""
        # A captured step has no messages of other processes in it.
        is_captured = can_capture(data.x.device) and self._world.size == 1
        take_steps = self._replay_steps if is_captured else self._take_steps
        for c, a, targets, share in take_steps(loss, data, state.done):
            c = c if state.report is None else state.report(a, targets[0])
            if share is None:
                state.add(c, loss.count(a, targets))
            else:
                state.add(share.part(c), share.count)
            yield 1

    def _take_steps(
        self, loss: LossSpec, data: EpochRows, start: int
    ) -> Iterator[tuple[Tensor, Tensor, tuple[Tensor, ...], Share | None]]:
        """Take the steps one by one; yield C, a^L, targets and share of each."""
        for x_batch, targets, share in batches(loss, data, start, self._outputs):
            yield *self._train(loss, x_batch, targets, share), targets, share

    def _replay_steps(
        self, loss: LossSpec, data: EpochRows, start: int
    ) -> Iterator[tuple[Tensor, Tensor, tuple[Tensor, ...], Share | None]]:
        """Take the steps, most of them by replaying a captured one; yield C, a^L, targets and share of each."""
        order = torch.arange(len(data), device=data.x.device) if data.order is None else data.order
        read = [t for t in (data.x, data.y, data.weights) if t is not None]

        def gather_and_train(rows: Tensor) -> tuple[Tensor, ...]:
            of_rows = EpochRows(data.x, data.y, len(rows), rows, data.weights)
            ((x_batch, targets, _),) = batches(loss, of_rows, 0, self._outputs)
            return *self._train(loss, x_batch, targets), *targets

        for first in range(start * data.batch_size, len(order), data.batch_size):
            rows = order[first : first + data.batch_size]
            self._workspace.fit(len(rows))
            captured = self._workspace.captured(loss, read, gather_and_train)
            captured(rows, self._update.version)
            c, a, *targets = captured.results
            yield c, a, tuple(targets), None

    def _train(
        self, loss: LossSpec, x: Tensor, targets: tuple[Tensor, ...], share: Share | None = None
    ) -> tuple[Tensor, Tensor]:
        """Take one step of gradient descent on a batch, and return C and a^L before it.

        With several processes these are the rows of this one, and C is by ``share.loss``.
        """
        loss = loss if share is None else share.loss
        self._workspace.fit(len(x))
        layers = self._workspace.layers
        with self._products:
            a = feed_forward(layers, x)  # FWD
            c, saved = loss.of_batch(a, targets)  # C
            grad_a = cast(loss.grad_input(saved, targets), a.dtype)  # BP1, left factor; cast: pos_weight may be wider
            if self._exchange is None or share is None:
                back_propagate(layers[self._lowest :], grad_a, self._update)  # BP1-BP4, SGD
            else:
                grad_a = grad_a * share.factor
                of_layers = partial(back_propagate, layers[self._lowest :], grad_a)  # BP1-BP4
                self._exchange.step(share.rows, share.largest, of_layers, self._update)  # SGD
        return c, a

    # --- before a step ---

    def _refresh(self) -> None:
        """Read the model again if it has changed, and the optimizer's options."""
        if self._changes is None or self._changes.changed():
            self._changes = None  # until it has been read: a refused model is read again at the next call
            self._read_model()
        self._update.refresh()
        mark_step(self._optimizer)

    def _read_model(self) -> None:
        """Read the model.

        Raises:
            UserError: If the recursion does not support it, or no parameter is trained.
        """
        check_optimizer(self._optimizer)
        layers = read_layers(self._model)
        params = check_parameters(layers)
        check_momentum(self._optimizer, params)
        refuse_contained_activation(layers, self.loss.name, self.loss.definition.contains)
        device = params[0].device
        check_precision(self._precision, device, params[0].dtype)
        in_optimizer = {p for group in self._optimizer.param_groups for p in group["params"]}

        def is_trained(p: Tensor | None) -> bool:
            return p is not None and p.requires_grad and p in in_optimizer

        for layer in layers:
            layer.learns = is_trained(layer.weight), is_trained(layer.bias)
        learning = [number for number, layer in enumerate(layers) if any(layer.learns)]
        if not learning:
            raise UserError("nothing to learn: no parameter both requires a gradient and is in the optimizer")
        self._lowest, self._outputs = learning[0], len(layers[-1].weight)
        self._products = products_in(self._precision, device)
        ours = all(map(is_ours, [self.loss.definition, *[layer.activation for layer in layers]]))
        self._workspace = Workspace(layers, self._lowest, holdable=ours)
        self._prepare_library()
        if self._exchange is not None:
            self._exchange.clear()
        self._changes = ChangeDetector(self._model, params, self._optimizer)

    def _prepare_library(self) -> None:
        """Prepare what a subclass needs for the layers that were read."""

    @property
    def _shape(self) -> tuple[int, int, torch.dtype, torch.device]:
        """n_0, n_L, dtype and device of the model."""
        weight = self._workspace.layers[0].weight
        return weight.shape[1], self._outputs, weight.dtype, weight.device

    def _check_batch(self, x: Tensor, y: Tensor) -> Tensor:
        """Check x and y against the model; return targets as the loss takes them."""
        like = self._workspace.layers[0].weight
        rows = check_inputs(x, y, like)
        return check_targets(self.loss, y, rows, self._outputs, like.dtype)
