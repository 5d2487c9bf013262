"""The two drivers of a run: autograd's tape over hand-written Functions, and the explicit recursion without one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from deltaprop.data import Scaling
from deltaprop.epoch_state import EpochState
from deltaprop.explicit import ExplicitTrainer
from deltaprop.explicit.precision import products_in
from deltaprop.training.evaluate import in_own_units
from deltaprop.training.objective import Objective


class Engine(Protocol):
    """What trains a model."""

    @property
    def longest_block(self) -> int:
        """The most steps between two questions whether to pause."""

    def epoch(self, x: Tensor, y: Tensor, order: Tensor, batch_size: int, state: EpochState) -> None:
        """Take a pass over the rows in order, or what is left of it, and keep ``state`` up to date."""


@dataclass(frozen=True)
class AutogradEngine:
    """Trains by ``loss.backward()``: PyTorch records the hand-written Functions, and calls their backward."""

    model: nn.Sequential
    objective: Objective
    optimizer: torch.optim.Optimizer
    target_scaling: Scaling
    precision: str = "float32"
    longest_block: int = 1

    def epoch(self, x: Tensor, y: Tensor, order: Tensor, batch_size: int, state: EpochState) -> None:
        """Take a pass over the rows in order, or what is left of it, and keep ``state`` up to date."""
        state.report = reported_loss(self.objective, self.target_scaling)
        model, loss = self._called_on(x.device)
        autocast = x.device.type == "cuda" and self.precision == "bf16"
        products = nullcontext() if autocast else products_in(self.precision, x.device)
        train_epoch(model, loss, self.optimizer, x, y, order, batch_size, state=state, products=products)

    def _called_on(self, device: torch.device) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]:
        """Return model and loss; for bf16 on CUDA each under autocast, and backward is not, as PyTorch wants it.

        Autocast rounds what a product gives too, where the explicit engine rounds its factors alone.
        """
        if device.type == "cuda" and self.precision == "bf16":
            rounded = torch.autocast("cuda", torch.bfloat16)
            return rounded(self.model), rounded(self.objective)
        return self.model, self.objective


class ExplicitEngine:
    """Trains by the δ recursion of ``core/recursion.py``, without a tape."""

    longest_block = 16  # to ask after each step would take as long as an operation of a small net

    def __init__(
        self,
        model: nn.Sequential,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        target_scaling: Scaling,
        precision: str = "float32",
    ) -> None:
        self.trainer = ExplicitTrainer(model, objective.call, optimizer, precision=precision)
        self.report = reported_loss(objective, target_scaling)

    def epoch(self, x: Tensor, y: Tensor, order: Tensor, batch_size: int, state: EpochState) -> None:
        """Take a pass over the rows in order, or what is left of it, and keep ``state`` up to date."""
        state.report, state.interval = self.report, self.longest_block
        self.trainer._epoch(x, y, batch_size, order, state)


def reported_loss(objective: Objective, target_scaling: Scaling) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return the loss to add up, where it is not the one that is minimised.

    For numbers: it is minimised on standardised targets, and reported in the target's own units.
    """
    return in_own_units(objective, target_scaling) if objective.task == "regression" else None


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
    state: EpochState | None = None,
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
        state: How far the pass has come, and what its losses add up to; kept up to date.
        products: A context for each pass forward and back, for use again and again; none by default.
    """
    products = nullcontext() if products is None else products
    state = EpochState(x.new_zeros(())) if state is None else state
    for rows in order.split(batch_size)[state.done :]:
        batch_x, batch_y = x.index_select(0, rows), y.index_select(0, rows)
        with products:
            outputs = model(batch_x)  # FWD
            c = loss(outputs, batch_y)  # C
            optimizer.zero_grad()
            c.backward()  # BP1-BP4
        optimizer.step()  # SGD
        with torch.no_grad():
            state.add(c if state.report is None else state.report(outputs, batch_y), len(rows))
        if state.step_done():
            return
