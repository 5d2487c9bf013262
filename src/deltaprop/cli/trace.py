"""``deltaprop trace``: one batch through a net, equation by equation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from deltaprop.cli.parsing import read_flags
from deltaprop.errors import UserError, unknown_name
from deltaprop.initialization import INITS
from deltaprop.modules import MLP
from deltaprop.verify.steps import as_text, is_tiny, steps
from deltaprop.verify.trace import LOSSES, Trace, trace

DESCRIPTION = """Follow one batch through a fresh net: z, a, σ'(z), δ and the gradients of each layer, by the
hand-written formulas, compared with autograd and with central differences.

A tiny net is a worked example for pencil and paper, down to the update; of a larger one the norms are shown.
Exit codes: 0 all agree, 1 they do not, 2 wrong input."""


@dataclass(frozen=True)
class Arguments:
    """What to trace.

    Attributes:
        sizes: n_0 to n_L, such as 2 3 1.
        activation: Of the hidden layers.
        output_activation: Of the last layer, or none.
        loss: C.
        rows: Samples in the batch.
        init: How weights are drawn; as PyTorch does by default.
        lr: η of the update.
        seed: Of weights, inputs and targets.
    """

    sizes: tuple[int, ...] = (2, 3, 1)
    activation: str = "sigmoid"
    output_activation: str = "none"
    loss: str = "quadratic_loss"
    rows: int = 1
    init: str | None = None
    lr: float = 0.5
    seed: int = 0


def main(words: Sequence[str]) -> int:
    """Trace, tell, and return 0, or 1 if autograd or differences have other numbers.

    Raises:
        UserError: If there is no such net.
    """
    arguments = read_flags(Arguments, "trace", words, DESCRIPTION)
    found = make(arguments)
    console = Console(highlight=False)
    if is_tiny(found):
        for line in as_text(steps(found, arguments.lr)):
            console.print(line, markup=False, style="bold" if not line.startswith(" ") else None, soft_wrap=True)
    else:
        console.print(overview(found))
        console.print(f"{found.loss_name}: C = {found.loss:.6g}")
    console.print(verdict(found))
    return 0 if found.ok else 1


def make(arguments: Arguments) -> Trace:
    """Return the trace of a fresh net on a random batch; of a tiny one, all numbers have two decimals.

    Raises:
        UserError: If the arguments do not fit each other.
    """
    if arguments.rows < 1:
        raise UserError(f"--rows must be at least 1, got {arguments.rows}")
    if not 0 <= arguments.lr < math.inf:
        raise UserError(f"--lr must be a number of at least 0, got {arguments.lr}")
    if arguments.loss not in LOSSES:
        raise unknown_name("loss", arguments.loss, LOSSES)
    if arguments.init is not None and arguments.init not in INITS:
        raise unknown_name("initialisation", arguments.init, INITS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(arguments.seed)
        output = None if arguments.output_activation == "none" else arguments.output_activation
        model = MLP(arguments.sizes, arguments.activation, output, init=arguments.init, dtype=torch.float64)
        x = torch.rand(arguments.rows, arguments.sizes[0], dtype=torch.float64) * 2 - 1
        labels = torch.randint(arguments.sizes[-1], (arguments.rows,))
        y: Tensor = labels
        if arguments.loss != "cross_entropy":
            y = torch.rand(arguments.rows, arguments.sizes[-1], dtype=torch.float64).round()
    few = trace(model, arguments.loss, x, y)
    if not is_tiny(few):
        return few
    with torch.no_grad():
        for p in model.parameters():
            p.copy_((100 * p).round() / 100)  # numbers that a pencil can hold
    return trace(model, arguments.loss, x.sign() * (9 * x.abs()).ceil() / 10, y)  # ±0.1 to ±0.9


def overview(found: Trace) -> Table:
    """Return one row a layer: sizes, norms, saturation and errors."""
    title = f"one batch of {len(found.input)} through {'-'.join(map(str, found.sizes))}"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("layer", no_wrap=True)
    for column in ("|a|", "saturated", "‖δ‖", "‖∂C/∂W‖", "‖∂C/∂b‖", "autograd", "diff."):
        table.add_column(column, justify="right", no_wrap=True)
    for number, layer in enumerate(found.layers, start=1):
        saturated = layer.saturated
        table.add_row(
            f"{number} {layer.activation}".strip(),
            f"{float(layer.a.abs().mean()):.3g}",
            "" if saturated is None else f"{100 * saturated:.0f} %",
            f"{layer.delta_norm:.3g}",
            f"{float(layer.grad_weight.norm()):.3g}",
            "" if layer.grad_bias is None else f"{float(layer.grad_bias.norm()):.3g}",
            _power(found.error(number, "autograd")),
            _power(found.error(number, "differences")),
        )
    return table


def verdict(found: Trace) -> str:
    """Return how far others have the same numbers, in one line."""
    numbers = range(1, len(found.layers) + 1)
    by_autograd, by_differences = (max(found.error(n, who) for n in numbers) for who in ("autograd", "differences"))
    both = f"autograd differs by {_power(by_autograd)} of the largest entry, differences by {_power(by_differences)}"
    return f"{'ok' if found.ok else 'NOT OK'}: {both}"


def _power(error: float) -> str:
    return f"{error:.0e}" if error else "0"
