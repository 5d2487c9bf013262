"""The explicit driver: an MLP trained without a tape, in place on its Parameters.

What it takes is checked here, memory is laid out, and Parameters are kept true for everyone who looks. The step itself
is in ``recursion.py``.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from deltaprop.errors import UserError
from deltaprop.explicit.batches import Stage, batches_per_block
from deltaprop.explicit.graph import can_capture
from deltaprop.explicit.layers import Layer
from deltaprop.explicit.layout import Layout
from deltaprop.explicit.losses import Loss, ResidualLoss, Rule
from deltaprop.explicit.packing import Packed
from deltaprop.explicit.precision import products_in
from deltaprop.explicit.recursion import back_propagate, feed_forward
from deltaprop.explicit.teaching import Teacher

__all__ = ["ExplicitTrainer"]


class ExplicitTrainer:
    """Trains an MLP by the δ recursion, with no tape: the same steps as by autograd, only faster.

    It works in place on the model's own Parameters and on the optimizer's momentum buffers, and leaves ``.grad`` alone:
    with plain SGD no ∂C/∂W is ever stored. Between two calls Parameters are up to date, and so in an ``on_step`` that
    reads them; they may be read, saved, and written to in place. Learning rate and the other options are read from
    ``optimizer.param_groups`` whenever an ``on_step`` or ``on_block`` may have changed them, and at every call, so
    schedulers work as always.

    Args:
        model: An :class:`~deltaprop.MLP`, or an ``nn.Sequential`` of linear layers, each with one activation or none
            after it (ours or PyTorch's).
        loss: A function of :mod:`deltaprop.functional`, its name, or a ``functools.partial`` of one with options.
        optimizer: An :class:`~deltaprop.SGD` or ``torch.optim.SGD`` over the model's parameters.
        precision: Of the products of matrices: ``"float32"``, or ``"tf32"`` or ``"bf16"`` on a device that has them;
            weights and all else stay float32 (``precision.py``).

    Raises:
        UserError: If one of them is what it cannot train: a module of another kind, hooks, weights that layers share,
            an output activation that the loss already contains, another optimizer, a precision that the device does not
            have. It says so at once.

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
        loss: str | Callable[..., Tensor],
        optimizer: torch.optim.Optimizer,
        *,
        precision: str = "float32",
    ) -> None:
        self._model, self._optimizer, self._precision = model, optimizer, precision
        self.loss = Rule(loss)
        self._begin()

    def _begin(self) -> None:
        self._behind: list[Packed] = []  # whose Parameters are not up to date
        self._running = False  # within an epoch
        self._inference = torch.inference_mode()  # for steps taken singly: to make one takes a microsecond
        self._teacher = Teacher(self._optimizer)
        self._total: Tensor | None = None  # where an epoch adds up its losses
        self._lay_out(0)

    @property
    def model(self) -> nn.Module:
        """The model; for another make another trainer."""
        return self._model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer; for another make another trainer."""
        return self._optimizer

    @property
    def precision(self) -> str:
        """Of the products of matrices; for another make another trainer."""
        return self._precision

    def __repr__(self) -> str:
        """Return what it trains, and how."""
        linears = [m for m in self._model.modules() if isinstance(m, nn.Linear)]
        sizes = [linears[0].in_features, *[m.out_features for m in linears]]
        return f"ExplicitTrainer({'-'.join(map(str, sizes))}, {self.loss.name}, precision={self._precision!r})"

    def __getstate__(self) -> dict[str, Any]:
        """Return what it was made of; its memory is made anew where it is needed."""
        self.sync()
        return {name: vars(self)[name] for name in ("_model", "loss", "_optimizer", "_precision")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin with what another was made of."""
        vars(self).update(state)
        self._begin()

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
        if self._behind:
            raise UserError("a step within an epoch needs on_step_reads=True: parameters are not up to date")
        rows = _rows(x, y)
        self._enter(rows)
        looks = (x.shape, y.shape, x.dtype, y.dtype, x.device, y.device)
        stage = self._layout.checked.get(looks)
        if stage is None:
            given, y = y, self._checked(x, y, rows)
            stage = self._layout.stage(rows, 0, self.loss.kind(y), packs=False)
            if y is given:
                self._layout.checked = {looks: stage}
        self._optimizer._opt_called = True  # type: ignore[attr-defined]  # as its own step does, for schedulers
        with self._inference:
            stage.take(x, y)
            self._teacher.heed_rates(stage)
            with self._products:
                stage.train()
        return stage.loss.total_value(1)

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
        on_step_reads: bool = True,
        on_block: Callable[[int], object] | None = None,
        total: Tensor | None = None,
        units: Tensor | None = None,
    ) -> Tensor:
        """Take one pass over the rows.

        Args:
            x: Inputs, [M, n_0].
            y: Targets, [M, …].
            batch_size: Rows a step; the last step takes what is left.
            order: Indices of the rows, in order. With neither order nor generator, rows as they come.
            generator: Draws an order.
            start: The first batch, counted from 0: what is left of an epoch that was broken off after so many steps.
            on_step: Called after each step with the number of steps done in this epoch, those before ``start``
                included. If it returns True, the epoch ends there.
            on_step_reads: Whether ``on_step`` may look at parameters and momentum buffers, or change them, freeze
                them, or change the model. With False steps are as fast as without it (of small nets up to twice as
                fast), and it may do none of that: parameters are behind until it calls :meth:`sync`, and what it does
                to them or to the model is lost or seen by the next epoch only; it runs in inference mode. Learning
                rate and options of the optimizer it may change either way. The two differ in rounding
                (``packing.py``).
            on_block: Called between the blocks of batches that are taken together, with the number of steps done. If it
                returns True, the epoch ends there. One that ended so and goes on from there takes the same blocks as
                one that never ended, and so adds up its losses to the same bits. Parameters are behind as for
                ``on_step_reads=False`` until it calls :meth:`sync`.
            total: A scalar that holds Σ C N of the steps before ``start``; those of this call are added to it, and the
                mean that is returned is over all of them. To carry the sum of an epoch over a break.
            units: What one unit of the targets is in the units that the mean loss is to be told in, [n_L] or a scalar;
                for losses of a − y.

        Returns:
            The mean of C over the steps taken, each sample counting once, a scalar on the device; NaN if none was.

        Raises:
            UserError: If something does not fit; nothing has been changed then.
        """
        rows = _rows(x, y)
        batch_size = _whole(batch_size)
        if batch_size < 1:
            raise UserError(f"batch_size must be a whole number, at least 1, got {batch_size}")
        if self._running:
            raise UserError("an epoch within an epoch of the same trainer would write over its batches")
        if on_step is not None and not callable(on_step):
            raise UserError(f"on_step must be a function of the number of steps done, got {on_step!r}")
        if generator is not None and not isinstance(generator, torch.Generator):
            raise UserError(f"generator must be a torch.Generator, got {generator!r}")
        if order is not None:
            if generator is not None:
                raise UserError("order and generator both say in which order: give one of them")
            _check_order(order, x)
        self._enter(min(batch_size, rows if order is None else len(order)))
        y = self._checked(x, y, rows)
        kind = self.loss.kind(y)
        if units is not None:
            self._check_units(units, kind, x)
        kind.check_values(self.loss.options, y, self._layout.outputs)
        if order is None and generator is not None:
            order = torch.randperm(len(x), generator=generator, device=generator.device).to(x.device)
        rows = len(x) if order is None else len(order)
        steps = math.ceil(rows / batch_size)
        if not 0 <= _whole(start, "start") <= steps:
            raise UserError(f"start must be a step of the epoch, 0 to {steps}, got {start!r}")
        packs = on_step is None or not on_step_reads
        captures = can_capture(x.device)
        if order is None and captures:
            order = torch.arange(rows, device=x.device)  # a graph gathers by numbers
        if self._total is None or (self._total.dtype, self._total.device) != (x.dtype, x.device):
            self._total = x.new_zeros(())
        carried, total = total, self._total
        self._optimizer._opt_called = True  # type: ignore[attr-defined]  # as its own step does, for schedulers
        done, seen = start, 0
        with torch.inference_mode():
            if carried is None:
                total.zero_()
            else:
                total.copy_(carried)
                seen = start * batch_size
            try:
                self._behind, self._running = self._layout.packed if packs else [], True
                for packed in self._behind:
                    packed.read()
                while done < steps:
                    first = done * batch_size
                    here = min(batch_size, rows - first)
                    if not self._layout.holds(here):  # on_step has changed what a layout hangs on
                        self._lay_out(here)
                    sizes = self._layout.outputs, self._layout.weights
                    batches = batches_per_block(x, batch_size, *sizes) if here == batch_size else 1
                    batches = min(batches, max(1, rows // here))
                    stage = self._layout.stage(here, batches, kind, packs)
                    batches = min(stage.batches, (rows - first) // here)
                    block = slice(first, first + batches * here)
                    if order is not None and captures:
                        captured = self._layout.captured(stage, x, y, units, total)
                        step = partial(captured.step, order[block])
                        ended, taken = self._steps([step], stage, done, on_step, on_step_reads)
                    else:
                        if order is None:
                            stage.load(x[block], y[block], batches * here)
                        else:
                            stage.load(x, y, batches * here, order[block])
                        ended, taken = self._steps(stage.steps[:batches], stage, done, on_step, on_step_reads)
                        stage.add_values(total, taken, units)
                    done, seen = done + taken, seen + taken * here
                    if carried is not None and on_block is not None:
                        carried.copy_(total)
                    if ended or (on_block is not None and on_block(done) is True):
                        break
            finally:
                self.sync()
                self._behind, self._running = [], False
                if carried is not None:
                    carried.copy_(total)
        return total / seen if seen else total + math.nan

    def _steps(
        self,
        steps: Sequence[Callable[[], object]],
        stage: Stage,
        done: int,
        on_step: Callable[[int], object] | None,
        on_step_reads: bool,
    ) -> tuple[bool, int]:
        """Take the steps of a block, or some; return whether ``on_step`` ended the epoch, and how many were taken."""
        layout, teacher = self._layout, self._teacher
        if on_step is None:  # nobody is asked in between, so options stay what they are
            teacher.heed_rates(stage)
            with self._products:
                for step in steps:
                    step()
                    if stage.lesson is None:  # the first velocity was the gradient; from now on it is carried
                        teacher.heed_rates(stage)
            return False, len(steps)
        for number, step in enumerate(steps, start=1):
            teacher.heed_rates(stage)
            with self._products:
                step()
            if on_step_reads:
                with torch.inference_mode(False):
                    ended = on_step(done + number)
                teacher.heed_velocities()
                if self._layout is not layout or not layout.holds(stage.rows):  # a step within may have seen to it
                    return ended is True, number  # what is left of the block is laid out anew
            else:
                ended = on_step(done + number)
            if ended is True:
                return True, number
        return False, len(steps)

    def sync(self) -> None:
        """Bring parameters and momentum buffers up to date, in an ``on_step`` that reads them only now and then."""
        for packed in self._behind:
            packed.write()

    def look(self, x: Tensor, y: Tensor) -> Sequence[Layer]:
        """Feed a batch forward and back and learn nothing from it.

        Returns:
            The layers from the first, with a_prev, a and δ in their buffers; the next look writes over them.
        """
        rows = _rows(x, y)
        self.sync()
        self._enter(0)  # it has buffers of its own
        y = self._checked(x, y, rows)
        stage = self._layout.looking_stage(rows, self.loss.kind(y))
        with torch.no_grad():
            stage.take(x, y)
            with self._products:
                feed_forward(stage.layers)
                back_propagate(stage.layers, stage.loss)
        return stage.layers

    # --- what is there before a step ---

    def _enter(self, rows: int) -> None:
        """Make sure that what was laid out still fits, and take over what others have written."""
        if not self._layout.holds(rows):
            self._lay_out(rows)
        self._teacher.heed_velocities()

    def _lay_out(self, rows: int) -> None:
        """Read the model anew, and make memory for batches of so many rows."""
        self._layout = Layout(self._model, self.loss, self._optimizer, rows, self._precision)
        self._products = products_in(self._precision, self._layout.device)
        self._teacher.begin(self._layout.learning)

    def _check_units(self, units: Tensor, kind: type[Loss], x: Tensor) -> None:
        """Refuse units that do not fit.

        Raises:
            UserError: If they do not.
        """
        if not issubclass(kind, ResidualLoss):
            raise UserError(f"units are for losses of a − y, got {self.loss.name}")
        outputs = self._layout.outputs
        fits = isinstance(units, Tensor) and tuple(units.shape) in ((), (1,), (outputs,)) and units.device == x.device
        if not fits:
            got = f"{list(units.shape)} on {units.device}" if isinstance(units, Tensor) else repr(units)
            raise UserError(f"units must be a tensor, one number or [{outputs}], on {x.device}, got {got}")

    def _checked(self, x: Tensor, y: Tensor, rows: int) -> Tensor:
        """Return targets as a block holds them.

        Raises:
            UserError: If x or y do not fit the model.
        """
        like = self._layout.params[0]
        if x.dim() != 2 or x.shape[1] != like.shape[1] or rows == 0:
            raise UserError(f"inputs must be [N, {like.shape[1]}] with N at least 1, got {list(x.shape)}")
        if x.layout != torch.strided or y.layout != torch.strided:
            raise UserError(f"inputs and targets must be dense tensors, got {x.layout} and {y.layout}")
        if x.dtype != like.dtype:
            raise UserError(f"inputs must have the model's dtype, {like.dtype}, got {x.dtype}")
        if x.device != like.device or y.device != like.device:
            raise UserError(
                f"inputs and targets must be on {like.device} with the model, got {x.device} and {y.device}"
            )
        return self.loss.kind(y).check(self.loss.options, y, rows, self._layout.outputs, like.dtype)


def _rows(x: Tensor, y: Tensor) -> int:
    """Return how many rows there are.

    Raises:
        UserError: If inputs and targets are no tensors.
    """
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise UserError(
            f"inputs and targets must be tensors (torch.from_numpy makes one), "
            f"got {type(x).__name__} and {type(y).__name__}"
        )
    return x.shape[0] if x.dim() else 0


def _whole(number: object, name: str = "batch_size") -> int:
    """Return a whole number as Python's.

    Raises:
        UserError: If it is none.
    """
    try:
        if not isinstance(number, bool):
            return operator.index(number)  # type: ignore[arg-type]  # what has none is told
    except TypeError:
        pass
    what = "a whole number, at least 1" if name == "batch_size" else "a step of the epoch, a whole number"
    raise UserError(f"{name} must be {what}, got {number!r}")


def _check_order(order: Tensor, x: Tensor) -> None:
    """Refuse an order that is not one of indices of rows.

    Raises:
        UserError: If it is not.
    """
    if not isinstance(order, Tensor):
        raise UserError(f"order must be a tensor of row indices, got {type(order).__name__}")
    if order.dim() != 1 or order.dtype not in (torch.int64, torch.int32):
        raise UserError(f"order must be row indices [M] of int64, got {order.dtype} {list(order.shape)}")
    if order.device != x.device:
        raise UserError(f"order must be on {x.device} with the inputs, got {order.device}")
    if len(order) and not 0 <= int(order.min()) <= int(order.max()) < len(x):
        raise UserError(f"order must hold rows 0 to {len(x) - 1}, got {int(order.min())} to {int(order.max())}")
