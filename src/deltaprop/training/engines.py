"""The engines of a run: autograd over hand-written Functions, the explicit recursion, and the same in C++."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deltaprop.compiled import BuildError, CompiledTrainer
from deltaprop.distributed import World, is_part, replicate
from deltaprop.epoch_state import EpochState
from deltaprop.errors import UserError, setting
from deltaprop.explicit import ExplicitTrainer
from deltaprop.explicit.precision import products_in
from deltaprop.nn.modules import MLP
from deltaprop.optim import SGD
from deltaprop.training.config import EngineName
from deltaprop.training.devices import WIDE_PRODUCT
from deltaprop.training.objective import Objective

AGREED = 16  # steps after which the processes of a run agree whether to stop


@dataclass(frozen=True)
class Engine:
    """A way to train a model.

    Attributes:
        train: Trains on rows x and y in an order, so many rows per step, from step ``state.done`` on, and updates the
            state.
        interval: Returns, for a batch size, the steps between two calls of ``state.pause``.
    """

    train: Callable[[Tensor, Tensor, Tensor, int, EpochState], None]
    interval: Callable[[int], int]


def autograd_engine(
    model: nn.Sequential,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    precision: str = "float32",
    world: World | None = None,
) -> Engine:
    """Return an engine that trains by ``loss.backward()``, which calls the backward of the hand-written Functions.

    With several processes the sum of losses in the state of an epoch is that of this one. Each has the whole model,
    unless it is sharded already.
    """
    several = world is not None and world.size > 1
    shared = replicate(model) if several and not any(map(is_part, model.parameters())) else model

    def epoch(x: Tensor, y: Tensor, order: Tensor, batch_size: int, state: EpochState) -> None:
        network: Callable[[Tensor], Tensor] = shared
        loss: Callable[[Tensor, Tensor], Tensor] = objective
        products = products_in(precision, x.device)
        if x.device.type == "cuda" and precision == "bf16":
            # Model and loss under autocast, backward not, as PyTorch recommends. Autocast rounds the result of a
            # product too, while the explicit engine rounds only its factors.
            rounded = torch.autocast("cuda", torch.bfloat16)
            network, loss, products = rounded(network), rounded(loss), nullcontext()
        train_epoch(network, loss, optimizer, x, y, order, batch_size, state=state, products=products, world=world)

    return Engine(epoch, lambda batch_size: AGREED if several else 1)


def explicit_engine(
    model: nn.Sequential,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    precision: str = "float32",
    world: World | None = None,
    exchange: str = "auto",
    exchange_dtype: str = "same",
) -> Engine:
    """Return an engine that trains by the δ recursion of ``core/recursion.py``, without autograd.

    With several processes the sum of losses in the state of an epoch is that of this one.
    """
    trainer = ExplicitTrainer(
        model, objective.call, optimizer, precision=precision, world=world, exchange=exchange,
        exchange_dtype=None if exchange_dtype == "same" else torch.bfloat16,
    )  # fmt: skip
    # A pause after every step would take as long as an operation of it.
    return Engine(
        lambda x, y, order, batch_size, state: trainer._epoch(x, y, batch_size, order, state), lambda batch_size: AGREED
    )


def compiled_engine(
    model: nn.Sequential,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    precision: str = "float32",
    on_build: Callable[[], object] = lambda: None,
) -> Engine:
    """Return an engine that trains by the same recursion in C++; ``on_build`` is called if that has to be built.

    Raises:
        BuildError: If there is no C++ compiler, or it fails.
        UserError: If the model is not one for it.
    """
    if precision != "float32":
        raise UserError(f"{setting('precision', precision)}: the compiled engine computes products in float32 alone")
    trainer = CompiledTrainer(model, objective.call, optimizer, on_build=on_build)
    return Engine(
        lambda x, y, order, batch_size, state: trainer._epoch(x, y, batch_size, order, state), trainer.steps_at_once
    )


ENGINES: dict[str, Callable[..., Engine]] = {
    "autograd": autograd_engine,
    "explicit": explicit_engine,
    "compiled": compiled_engine,
}

# Steps of a run from which the compiled engine repays its build: explicit takes 50 to 200 µs longer for each.
REPAID = 2**15


def compiled_serves(model: MLP, batch_size: int, steps: int, precision: str = "float32") -> bool:
    """Return whether the compiled engine is the one for a run: by sizes alone, since the bits depend on the engine.

    It is on a CPU, for at least 2^15 steps whose products are not so wide that only they count.
    """
    weights = [layer.weight for layer in model if isinstance(layer, nn.Linear)]
    narrow = batch_size * max(w.numel() for w in weights) < WIDE_PRODUCT
    return weights[0].device.type == "cpu" and precision == "float32" and narrow and steps >= REPAID


def choose_engine(
    name: EngineName,
    model: MLP,
    objective: Objective,
    precision: str,
    batch_size: int,
    steps: int,
    on_build: Callable[[], object] = lambda: None,
) -> tuple[EngineName, str]:
    """Return the engine that trains, and a line for the user if it is not the one asked for.

    ``auto`` is compiled where :func:`compiled_serves`, else explicit. Without a C++ compiler explicit takes its place.

    Args:
        name: The engine asked for.
        model: The model, on its device.
        objective: The loss.
        precision: Of the products.
        batch_size: Rows per step.
        steps: Steps of the whole run.
        on_build: Called if the compiled engine has to be built.

    Raises:
        UserError: If ``compiled`` was asked for, and the model is not one for it.
    """
    if name == "auto" and not compiled_serves(model, batch_size, steps, precision):
        return "explicit", ""
    if name not in ("auto", "compiled"):
        return name, ""
    try:
        # Builds the library, or finds it built.
        compiled_engine(model, objective, SGD(model.parameters()), precision, on_build)
    except BuildError as error:
        return "explicit", f"{error}; the explicit engine trains instead"
    except UserError:
        if name == "compiled":
            raise
        return "explicit", ""
    return "compiled", ""


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
    world: World | None = None,
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
        world: The processes that share each batch; ``model`` averages their gradients then.

    Raises:
        LostError: If another process has ended or does not answer. The step has updated no parameter; those of FSDP may
            be left gathered.
    """
    products, world = nullcontext() if products is None else products, world or World()
    state = EpochState(x.new_zeros(())) if state is None else state
    for rows, of_all in _shared(order, batch_size, state, world):
        batch_x, batch_y = x.index_select(0, rows), y.index_select(0, rows)
        with products, world.exchanging():
            outputs = model(batch_x)  # FWD
            c = loss(outputs, batch_y) if len(rows) else outputs.sum()  # C; a mean over no rows would be NaN
            counted = world.size * len(rows)
            optimizer.zero_grad()
            (c if counted == of_all else c * (counted / of_all)).backward()  # BP1-BP4
        optimizer.step()  # SGD
        if len(rows):
            with torch.no_grad():
                state.add(c if state.report is None else state.report(outputs, batch_y), len(rows))
        if state.steps_done():
            return


def _shared(order: Tensor, batch_size: int, state: EpochState, world: World) -> Iterator[tuple[Tensor, int]]:
    """Yield this process's rows of each batch that is left, and the number of rows of all."""
    if state.shares is None:
        for batch in order.split(batch_size)[state.done :]:
            yield batch[world.share(len(batch))], len(batch)
        return
    own = order.split([share.own for share in state.shares])
    for rows, share in [*zip(own, state.shares, strict=True)][state.done :]:
        yield rows, share.rows
