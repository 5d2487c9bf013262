"""The two engines of a run: autograd over hand-written Functions, and the explicit recursion."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from deltaprop.epoch_state import EpochState
from deltaprop.explicit import ExplicitTrainer
from deltaprop.explicit.precision import products_in
from deltaprop.training.objective import Objective

# Trains on rows x and y in an order, batch_size rows per step, from step state.done on, and updates the state.
Engine = Callable[[Tensor, Tensor, Tensor, int, EpochState], None]


def autograd_engine(
    model: nn.Sequential, objective: Objective, optimizer: torch.optim.Optimizer, precision: str = "float32"
) -> Engine:
    """Return an engine that trains by ``loss.backward()``, which calls the backward of the hand-written Functions."""

    def epoch(x: Tensor, y: Tensor, order: Tensor, batch_size: int, state: EpochState) -> None:
        network: Callable[[Tensor], Tensor] = model
        loss: Callable[[Tensor, Tensor], Tensor] = objective
        products = products_in(precision, x.device)
        if x.device.type == "cuda" and precision == "bf16":
            # Model and loss under autocast, backward not, as PyTorch recommends. Autocast rounds the result of a
            # product too, while the explicit engine rounds only its factors.
            rounded = torch.autocast("cuda", torch.bfloat16)
            network, loss, products = rounded(network), rounded(loss), nullcontext()
        train_epoch(network, loss, optimizer, x, y, order, batch_size, state=state, products=products)

    return epoch


def explicit_engine(
    model: nn.Sequential, objective: Objective, optimizer: torch.optim.Optimizer, precision: str = "float32"
) -> Engine:
    """Return an engine that trains by the δ recursion of ``core/recursion.py``, without autograd."""
    trainer = ExplicitTrainer(model, objective.call, optimizer, precision=precision)
    return lambda x, y, order, batch_size, state: trainer._epoch(x, y, batch_size, order, state)


ENGINES: dict[str, Callable[..., Engine]] = {"autograd": autograd_engine, "explicit": explicit_engine}
# Steps between two calls of `state.pause`; the explicit engine would spend as long on one as on an operation.
PAUSE_INTERVAL = {"autograd": 1, "explicit": 16}


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
    """Train for one epoch, from step ``state.done`` on.

    Args:
        model: Returns outputs [N, n_L] for rows of x.
        loss: Returns C, a mean over samples, for outputs and rows of y.
        optimizer: Its step is the update.
        x: Inputs, [N, n_0].
        y: Targets, [N, …].
        order: Row indices, in the order of training.
        batch_size: Rows per step; the last step may have fewer.
        state: Steps done and the sum of their losses, updated in place.
        products: A reusable context manager entered for each forward and backward pass.
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
        if state.steps_done():
            return
