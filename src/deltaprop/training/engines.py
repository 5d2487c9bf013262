"""The two drivers of a run: autograd's tape over hand-written Functions, and the explicit recursion without one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from deltaprop.data import Scaling
from deltaprop.explicit import ExplicitTrainer
from deltaprop.explicit.batches import MOST_BATCHES
from deltaprop.explicit.precision import products_in
from deltaprop.training.evaluate import in_own_units
from deltaprop.training.objective import Objective
from deltaprop.verify.observe import LayerView, observe, observe_explicit


@dataclass
class Progress:
    """How far an epoch has come.

    Attributes:
        total: Σ C N over the steps done, a scalar on the device, in the target's own units.
        done: Steps done.
    """

    total: Tensor
    done: int = 0


Pause = Callable[[int], bool]
"""Asked with the number of steps done, where an epoch can be broken off and go on to the same bits; True ends it."""


def on_and_on(done: int) -> bool:
    """Never pause."""
    return False


class Engine(Protocol):
    """What trains a model, and shows its layers."""

    @property
    def longest_block(self) -> int:
        """The most steps between two questions whether to pause."""

    def epoch(
        self,
        x: Tensor,
        y: Tensor,
        order: Tensor,
        batch_size: int,
        progress: Progress,
        on_steps: Callable[[int], None],
        pause: Pause = on_and_on,
    ) -> None:
        """Take a pass over the rows in order, or what is left of it, and keep ``progress`` up to date.

        ``on_steps`` is told how many steps are done: after each, or after the few that were taken together.
        """

    def up_to_date(self) -> None:
        """Bring the model's parameters and momentum buffers up to date, in a pause."""

    def observe(self, x: Tensor, y: Tensor) -> list[LayerView]:
        """Return every layer on the batch (x, y), learning nothing."""


@dataclass(frozen=True)
class AutogradEngine:
    """Trains by ``loss.backward()``: PyTorch records the hand-written Functions, and calls their backward."""

    model: nn.Sequential
    objective: Objective
    optimizer: torch.optim.Optimizer
    target_scaling: Scaling
    precision: str = "float32"
    longest_block: int = 1

    def epoch(
        self,
        x: Tensor,
        y: Tensor,
        order: Tensor,
        batch_size: int,
        progress: Progress,
        on_steps: Callable[[int], None],
        pause: Pause = on_and_on,
    ) -> None:
        """Take a pass over the rows in order, or what is left of it, and keep ``progress`` up to date."""
        # Minimised on standardised targets, told in the target's own units.
        regression = self.objective.task == "regression"
        reported = in_own_units(self.objective, self.target_scaling) if regression else None
        model, loss = self._called_on(x.device)
        products = products_in(self.precision, x.device)
        train_epoch(
            model, loss, self.optimizer, x, y, order, batch_size,
            progress=progress, on_step=on_steps, pause=pause, reported=reported, products=products,
        )  # fmt: skip

    def up_to_date(self) -> None:
        """Do nothing: they always are."""

    def observe(self, x: Tensor, y: Tensor) -> list[LayerView]:
        """Return every layer on the batch (x, y), learning nothing."""
        with products_in(self.precision, x.device):
            return observe(self.model, self.objective, x, y)

    def _called_on(self, device: torch.device) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]:
        """Return model and loss; for bf16 on CUDA each under autocast, and backward is not, as PyTorch wants it.

        Autocast rounds what a product gives too, where the explicit engine rounds its factors alone.
        """
        if device.type == "cuda" and self.precision == "bf16":
            rounded = torch.autocast("cuda", torch.bfloat16)
            return rounded(self.model), rounded(self.objective)
        return self.model, self.objective


class ExplicitEngine:
    """Trains by the δ recursion of ``explicit/recursion.py``."""

    longest_block = MOST_BATCHES

    def __init__(
        self,
        model: nn.Sequential,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        target_scaling: Scaling,
        precision: str = "float32",
    ) -> None:
        self.trainer = ExplicitTrainer(model, objective.call, optimizer, precision=precision)
        self.units = target_scaling.scale if objective.task == "regression" else None

    def epoch(
        self,
        x: Tensor,
        y: Tensor,
        order: Tensor,
        batch_size: int,
        progress: Progress,
        on_steps: Callable[[int], None],
        pause: Pause = on_and_on,
    ) -> None:
        """Take a pass over the rows in order, or what is left of it, and keep ``progress`` up to date.

        It can be broken off between the blocks of batches that are taken together.
        """

        def on_block(done: int) -> bool:
            progress.done = done
            on_steps(done)
            return pause(done)

        self.trainer.epoch(
            x, y, batch_size,
            order=order, start=progress.done, on_block=on_block, total=progress.total, units=self.units,
        )  # fmt: skip

    def up_to_date(self) -> None:
        """Bring the model's parameters and momentum buffers up to date, in a pause."""
        self.trainer.sync()

    def observe(self, x: Tensor, y: Tensor) -> list[LayerView]:
        """Return every layer on the batch (x, y), learning nothing."""
        return observe_explicit(self.trainer, x, y)


ENGINES: dict[str, Callable[..., Engine]] = {"autograd": AutogradEngine, "explicit": ExplicitEngine}


def train_epoch(
    model: Callable[[Tensor], Tensor],
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    order: Tensor,
    batch_size: int,
    *,
    progress: Progress | None = None,
    on_step: Callable[[int], None] = lambda done: None,
    pause: Pause = on_and_on,
    reported: Callable[[Tensor, Tensor], Tensor] | None = None,
    products: AbstractContextManager[None] | None = None,
) -> None:
    """Take one pass over the rows of x and y in the given order, or what is left of one.

    Args:
        model: Gives outputs [N, n_L] from rows of x.
        loss: C from outputs and rows of y, a mean over samples.
        optimizer: Its step is the update.
        x: Inputs, [N, n_0].
        y: Targets, [N, …].
        order: Row indices.
        batch_size: Rows a step; the last step takes what is left.
        progress: How far the pass has come, and what its losses add up to; kept up to date.
        on_step: Called after each step with the number of steps done.
        pause: Asked after each step; True ends the pass there.
        reported: The loss to add up, where it is not the one that is minimised.
        products: A context for each pass forward and back, for use again and again; none by default.
    """
    products = nullcontext() if products is None else products
    progress = Progress(x.new_zeros(())) if progress is None else progress
    for rows in order.split(batch_size)[progress.done :]:
        batch_x, batch_y = x.index_select(0, rows), y.index_select(0, rows)
        with products:
            outputs = model(batch_x)  # FWD
            c = loss(outputs, batch_y)  # C
            optimizer.zero_grad()
            c.backward()  # BP1-BP4
        optimizer.step()  # SGD
        shown = c.detach() if reported is None else reported(outputs.detach(), batch_y)
        progress.total += shown * len(rows)  # stays on the device: .item() here would wait for it
        progress.done += 1
        on_step(progress.done)
        if pause(progress.done):
            return
