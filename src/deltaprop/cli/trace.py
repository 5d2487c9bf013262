"""``deltaprop trace``: one batch through a net, equation by equation, on the terminal, as a page, in TensorBoard."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from torch import Tensor

from deltaprop.cli.files import check_file, write_file
from deltaprop.cli.parsing import read_flags
from deltaprop.cli.targets import call_examples, load
from deltaprop.core import LOSSES
from deltaprop.errors import UserError, unknown_name
from deltaprop.nn.init import INITS
from deltaprop.nn.modules import MLP
from deltaprop.tracing.summary import LEGEND, headline, tables, verdict
from deltaprop.tracing.trace import Trace, trace
from deltaprop.tracing.worked_example import as_text, is_tiny, steps
from deltaprop.training.load_run import WEIGHTS, load_run
from deltaprop.training.objective import losses
from deltaprop.training.run_folder import RunFolder, check_folder

DESCRIPTION = """Follow one batch through a net: z, a, σ'(z), δ and the gradients of each layer, by the hand-written
formulas, compared with autograd and with central differences.

The net is a fresh one (--sizes 2 3 1), that of a run (its folder), or your own, FILE.py:NAME, beside which
example_inputs() returns inputs and targets. A tiny net is a worked example for pencil and paper, down to the update;
of a larger one norms, saturation and errors are shown. --html writes a page to walk through step by step.
Exit codes: 0 all agree, 1 they do not, 2 wrong input."""


@dataclass(frozen=True)
class Arguments:
    """What to trace, and where to show it.

    Attributes:
        target: The folder of a run, or FILE.py:NAME or package.module:NAME, a net of your own; a fresh net by default.
        sizes: Of a fresh net: n_0 to n_L; 2 3 1 by default.
        activation: Of its hidden layers; sigmoid by default.
        output_activation: Of its last layer; none by default.
        init: How its weights are drawn; as PyTorch does by default.
        seed: Of its weights, inputs and targets; 0 by default.
        loss: C; quadratic_loss by default, for a run its own.
        rows: Samples in the batch; 1 by default, for a run the first 16.
        weights: Of a run: final or best.
        part: Of a run: which samples, train, val or test.
        data: Of a run: where its data lies now.
        lr: η of the update; 0.5 by default, for a run its own.
        html: A file for the page.
        tensorboard: Write figures and text for TensorBoard into a run folder.
        run_dir: That folder; by default runs/trace-<date>-<time>.
    """

    target: tyro.conf.Positional[str | None] = None
    sizes: tuple[int, ...] | None = None
    activation: str | None = None
    output_activation: str | None = None
    init: str | None = None
    seed: int | None = None
    loss: str | None = None
    rows: int | None = None
    weights: str | None = None
    part: str | None = None
    data: str | None = None
    lr: float | None = None
    html: Path | None = None
    tensorboard: bool = False
    run_dir: Path | None = None


OTHER_NAMES = losses()  # as deltaprop train has them
FRESH = ("sizes", "activation", "output_activation", "init", "seed")
OF_A_RUN = ("weights", "part", "data")


def main(words: Sequence[str]) -> int:
    """Trace, tell, and return 0, or 1 if autograd or differences have other numbers.

    Raises:
        UserError: If there is no such net, or it does not take the batch.
    """
    arguments = read_flags(Arguments, "trace", words, DESCRIPTION)
    if arguments.loss in OTHER_NAMES:
        arguments = dataclasses.replace(arguments, loss=OTHER_NAMES[arguments.loss])
    check(arguments)
    found, lr = make(arguments)
    console = Console(highlight=False)
    if is_tiny(found):
        console.print("numbers are rounded to four digits, the sums are of the unrounded ones", style="dim")
        for line in as_text(steps(found, lr)):
            style = "dim" if line.startswith("#") else None if line.startswith(" ") else "bold"
            console.print(line, markup=False, style=style, soft_wrap=True)
    else:
        console.print(headline(found), markup=False, style="bold", soft_wrap=True)
        console.print(*tables(found), sep="\n")
        after = found.loss_after(lr)
        far = ": too long a step, a smaller --lr goes down" if after > found.loss else ""
        console.print(f"{found.loss_name}: C = {found.loss:.6g}, and {after:.6g} after a step of η = {lr:g}{far}")
        console.print(f"{LEGEND} The sums of so large a net: --html page.html.", style="dim")
    console.print(verdict(found), soft_wrap=True)
    folder = RunFolder.make(arguments.run_dir, "trace").path if arguments.tensorboard else None
    if arguments.html is not None:
        from deltaprop.tracing.page import html_page

        write_file("--html", arguments.html, html_page(found, lr))
        console.print(f"page {arguments.html}", markup=False, soft_wrap=True)
    if folder is not None:
        from deltaprop.training.report.tensorboard_trace import (
            write_trace,  # TensorBoard and matplotlib: slow to import
        )

        write_trace(found, lr, folder)
        console.print(f"look tensorboard --logdir {folder.parent}", markup=False, soft_wrap=True)
    return 0 if found.ok else 1


def check(arguments: Arguments) -> None:
    """Refuse what cannot be right, before anything is read or written.

    Raises:
        UserError: In one line.
    """
    given = {field.name for field in dataclasses.fields(arguments) if getattr(arguments, field.name) is not None}
    kind = kind_of(arguments.target)
    for names, right, of in ((FRESH, "fresh", "a fresh net"), (OF_A_RUN, "run", "the folder of a run")):
        for name in names:
            if name in given and kind != right:
                raise UserError(f"--{name.replace('_', '-')} is for {of}, and the target is {arguments.target}"
                                if arguments.target else f"--{name} is for {of}: name one")  # fmt: skip
    if kind == "own" and arguments.rows is not None:
        raise UserError("--rows is not for a net of your own: example_inputs() beside it says which samples")
    if kind == "run" and arguments.loss is not None:
        raise UserError("--loss is not for a run, which has its own")
    if arguments.rows is not None and arguments.rows < 1:
        raise UserError(f"--rows must be at least 1, got {arguments.rows}")
    if arguments.lr is not None and not 0 <= arguments.lr < math.inf:
        raise UserError(f"--lr must be a number of at least 0, got {arguments.lr}")
    if arguments.seed is not None and not 0 <= arguments.seed < 2**63:
        raise UserError(f"--seed must be 0 to 2^63 − 1, got {arguments.seed}")
    choices: tuple[tuple[str, str | None, Any], ...] = (
        ("loss", arguments.loss, LOSSES),
        ("initialisation", arguments.init, INITS),
        ("weights", arguments.weights, WEIGHTS),
        ("part", arguments.part, ("train", "val", "test")),
    )
    for what, choice, known in choices:
        if choice is not None and choice not in known:
            raise unknown_name(what, choice, known)
    check_file("--html", arguments.html)
    if arguments.html is not None and arguments.html.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--html {arguments.html}: the name must end in .html; what is there would be written over")
    if arguments.run_dir is not None:
        if not arguments.tensorboard:
            raise UserError("--run-dir is for --tensorboard: give both")
        check_folder(arguments.run_dir)


def kind_of(target: str | None) -> str:
    """Return what a target is: ``"fresh"`` (none), ``"run"`` (a folder) or ``"own"`` (with a colon and a name)."""
    if target is None:
        return "fresh"
    is_own = ":" in target or target.endswith(".py") or Path(target).is_file()
    return "own" if is_own and not Path(target).is_dir() else "run"


def make(arguments: Arguments) -> tuple[Trace, float]:
    """Return the trace that is asked for, and η.

    Raises:
        UserError: If the arguments do not fit each other, or the files are not there.
    """
    kind = kind_of(arguments.target)
    lr = 0.5 if arguments.lr is None else arguments.lr
    if kind == "fresh":
        return of_fresh(arguments), lr
    target = str(arguments.target)
    if kind == "run":
        return of_run(Path(target), arguments)
    model, examples = load(target)
    if not isinstance(model, torch.nn.Module):
        raise UserError(f"{target}: trace takes an nn.Sequential, got {type(model).__name__}")
    if examples is None:
        raise UserError(f"{target}: a batch is needed: a function example_inputs() beside it, returning x and y")
    batch = call_examples(target, examples)
    if len(batch) != 2:
        raise UserError(f"{target}: example_inputs() beside it must return x and y, got {len(batch)} things")
    return trace(model, arguments.loss or "quadratic_loss", *batch), lr


def of_run(folder: Path, arguments: Arguments) -> tuple[Trace, float]:
    """Return the trace of a run's net on the first rows of a part of its data, and the η that it began with.

    Raises:
        UserError: If the folder holds no run, or the part has no rows.
    """
    setup = load_run(folder, arguments.weights or "final", arguments.data)
    part = arguments.part or "train"
    split = getattr(setup.dataset, part)
    if not len(split):
        raise UserError(f"--part {part}: the run has no rows in it")
    rows = slice(arguments.rows or 16)
    x = split.inputs(rows)
    y = setup.objective.targets(split.y[rows], x.dtype)
    found = trace(setup.model, setup.objective.call, x, y)
    about = f"{folder}: its {arguments.weights or 'final'} weights, the first {len(x)} rows of its {part} part, scaled"
    extras = {"momentum": setup.config.momentum, "weight decay": setup.config.weight_decay}
    left_out = " and ".join(name for name, value in extras.items() if value)
    about += f"; the step is plain, without the run's {left_out}" if left_out else ""
    found = dataclasses.replace(found, about=about)
    return found, setup.config.rate if arguments.lr is None else arguments.lr


def of_fresh(arguments: Arguments) -> Trace:
    """Return the trace of a fresh net on a random batch; of a tiny one, all numbers have two decimals.

    Raises:
        UserError: If the arguments do not fit each other.
    """
    sizes = (2, 3, 1) if arguments.sizes is None else arguments.sizes
    rows, loss = arguments.rows or 1, arguments.loss or "quadratic_loss"
    if loss == "cross_entropy" and sizes and sizes[-1] == 1:
        raise UserError(
            "--loss cross_entropy of one output is 0 whatever the net does: give --sizes two or more at the end"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(arguments.seed or 0)
        output = None if arguments.output_activation in (None, "none") else arguments.output_activation
        activation = arguments.activation or "sigmoid"
        model = MLP(sizes, activation, output, init=arguments.init, dtype=torch.float64)
        x = torch.rand(rows, sizes[0], dtype=torch.float64) * 2 - 1
        labels = torch.randint(sizes[-1], (rows,))
        y: Tensor = labels
        if loss != "cross_entropy":
            y = torch.rand(rows, sizes[-1], dtype=torch.float64).round()
    few = trace(model, loss, x, y)
    if not is_tiny(few):
        return few
    with torch.no_grad():
        for p in model.parameters():
            p.copy_((100 * p).round() / 100)  # numbers that a pencil can hold
    return trace(model, loss, x.sign() * (9 * x.abs()).ceil() / 10, y)  # ±0.1 to ±0.9
