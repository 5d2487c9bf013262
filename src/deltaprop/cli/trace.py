"""``deltaprop trace``: one batch through a net, equation by equation, on the terminal, as a page, in TensorBoard."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from tyro.conf import Positional

from deltaprop.cli.console import PART_NAMES, terminal
from deltaprop.cli.files import OutputFile
from deltaprop.cli.parsing import optional, read_arguments
from deltaprop.cli.targets import load_target
from deltaprop.errors import UserError, unknown_name
from deltaprop.loss_spec import parse_loss
from deltaprop.nn.modules import MLP
from deltaprop.tracing.summary import LEGEND, headline, tables, verdict
from deltaprop.tracing.trace import Trace, trace
from deltaprop.tracing.worked_example import as_text, is_tiny, steps
from deltaprop.training.load_run import WEIGHTS, load_run, recorded_weights
from deltaprop.training.run_folder import RunFolder, check_folder


@dataclass(frozen=True)
class Arguments:
    """Compares z, a, σ'(z), δ and the gradients of each layer with autograd and with central differences.

    The network is a new one, that of a run, or your own: FILE.py:NAME, with a function example_inputs() in the same
    file that returns inputs and targets. For a tiny network every number is printed, down to the update; for a larger
    one the norms, saturation and errors of each layer.
    """

    #: Run folder, or your own network: FILE.py:NAME or package.module:NAME.
    target: Annotated[Positional[str | None], optional("[TARGET]", "a new network")] = None
    sizes: Annotated[tuple[int, ...] | None, optional("INT ...", "2 3 1")] = (
        None  # New network: layer sizes, n_0 to n_L.
    )
    activation: Annotated[str | None, optional("NAME", "sigmoid")] = None  # New network: activation of hidden layers.
    output_activation: Annotated[str | None, optional("NAME", "none")] = None  # New network: output activation.
    init: Annotated[str | None, optional("NAME", "torch")] = None  # New network: initialisation of the weights.
    seed: Annotated[int | None, optional("INT", "0")] = None  # New network: seed of the weights, inputs and targets.
    loss: Annotated[str | None, optional("NAME", "quadratic_loss")] = None  # New or own network: loss.
    rows: Annotated[int | None, optional("INT", "1, run: 16")] = None  # New network or run: samples in the batch.
    #: Run: weights to load, final or best.
    weights: Annotated[str | None, optional("final|best", "as the run records")] = None
    part: Annotated[str | None, optional("NAME", "train")] = None  # Run: part of the data, train, val or test.
    data: Annotated[str | None, optional("PATH", "as in training")] = None  # Run: its data, if the files have moved.
    lr: Annotated[float | None, optional("FLOAT", "0.5, run: its own")] = None  # Learning rate η of the update.
    html: Annotated[Path | None, optional("FILE.html", "")] = None  # Write an interactive page to this file.
    tensorboard: bool = False  # Write scalars, images and text for TensorBoard.
    run_dir: Annotated[Path | None, optional("PATH", "runs/trace-<date>-<time>")] = None  # Folder for TensorBoard.


KINDS = {"fresh": "a new network", "run": "the folder of a run", "own": "a network of your own"}
# Arguments that only some kinds of targets have.
KINDS_OF = {
    **dict.fromkeys(("sizes", "activation", "output_activation", "init", "seed"), ("fresh",)),
    **dict.fromkeys(("weights", "part", "data"), ("run",)),
    "rows": ("fresh", "run"),
    "loss": ("fresh", "own"),
}


def main(words: Sequence[str]) -> int:
    """Print the trace, and write it where asked; return 1 if autograd or differences disagree."""
    arguments = read_arguments(Arguments, "trace", words)
    page = OutputFile("--html", arguments.html, (".html", ".htm"))
    _check(arguments)
    traced, lr = make_trace(arguments)
    console = terminal()
    if is_tiny(traced):
        note = "numbers are shown to four digits; sums use the unrounded values"
        console.print(note, style="dim", soft_wrap=False)
        for line in as_text(steps(traced, lr)):
            console.print(line, style="dim" if line.startswith("#") else None if line.startswith(" ") else "bold")
    else:
        console.print(headline(traced), style="bold")
        console.print(*tables(traced), sep="\n", soft_wrap=False)
        after = traced.loss_after(lr)
        hint = ": the step is too long, try a smaller --lr" if after > traced.loss else ""
        summary = f"{traced.loss_name}: C = {traced.loss:.6g}, and {after:.6g} after a step of η = {lr:g}{hint}"
        console.print(summary, soft_wrap=False)
        console.print(f"{LEGEND} --html page.html shows the sums of each neuron.", style="dim", soft_wrap=False)
    console.print(verdict(traced))
    folder = RunFolder.make(arguments.run_dir, "trace").path if arguments.tensorboard else None
    if page.path is not None:
        from deltaprop.tracing.page import html_page

        page.write(html_page(traced, lr))
        console.print(f"page    {page.path}")
    if folder is not None:
        from deltaprop.training.report.tensorboard_trace import write_trace  # TensorBoard is slow to import

        write_trace(traced, lr, folder)
        console.print(f"look    tensorboard --logdir {folder.parent}")
    return 0 if traced.ok else 1


def _kind(target: str | None) -> str:
    """Return the kind of a target; your own net is a file, or has a colon in its name."""
    if target is None:
        return "fresh"
    is_own = ":" in target or target.endswith(".py") or Path(target).is_file()
    return "own" if is_own and not Path(target).is_dir() else "run"


def _check(arguments: Arguments) -> None:
    """Check the arguments before anything is read or written."""
    target = arguments.target
    for name, kinds in KINDS_OF.items():
        if getattr(arguments, name) is not None and _kind(target) not in kinds:
            rule = f"--{name.replace('_', '-')} is for {' or '.join(KINDS[kind] for kind in kinds)}"
            raise UserError(f"{rule}, and the target is {target}" if target else f"{rule}: name one")
    if arguments.rows is not None and arguments.rows < 1:
        raise UserError(f"--rows must be at least 1, got {arguments.rows}")
    if arguments.lr is not None and not 0 <= arguments.lr < math.inf:
        raise UserError(f"--lr must be a number of at least 0, got {arguments.lr}")
    if arguments.seed is not None and not 0 <= arguments.seed < 2**63:
        raise UserError(f"--seed must be 0 to 2^63 − 1, got {arguments.seed}")
    if arguments.run_dir is not None and not arguments.tensorboard:
        raise UserError("--run-dir is for --tensorboard: give both")
    if arguments.run_dir is not None:
        check_folder(arguments.run_dir)


def make_trace(arguments: Arguments) -> tuple[Trace, float]:
    """Return the trace of the target, and the learning rate of its update.

    Raises:
        UserError: If a name is unknown, the target cannot be loaded, or it does not accept the batch.
    """
    kind, target = _kind(arguments.target), str(arguments.target)
    if kind == "run":
        return _trace_run(Path(target), arguments)
    loss, lr = parse_loss(arguments.loss or "quadratic_loss").name, 0.5 if arguments.lr is None else arguments.lr
    if kind == "fresh":
        return _trace_fresh(arguments, loss), lr
    model, examples = load_target(target)
    if not isinstance(model, torch.nn.Module):
        raise UserError(f"{target}: trace takes an nn.Sequential, got {type(model).__name__}")
    if examples is None:
        raise UserError(f"{target}: a batch is needed: a function example_inputs() in the same file, returning x and y")
    batch = examples()
    if len(batch) != 2:
        raise UserError(f"{target}: example_inputs() must return x and y, got {len(batch)} values")
    return trace(model, loss, *batch), lr


def _trace_run(folder: Path, arguments: Arguments) -> tuple[Trace, float]:
    """Return the trace of a run's net on the first rows of a part of its data, and the run's learning rate."""
    weights, part = arguments.weights or recorded_weights(folder), arguments.part or "train"
    for what, name, known in (("weights", weights, WEIGHTS), ("part", part, PART_NAMES)):
        if name not in known:
            raise unknown_name(what, name, known)
    setup = load_run(folder, arguments.weights, arguments.data)
    split = getattr(setup.dataset, part)
    if not len(split):
        raise UserError(f"--part {part}: the run has no rows in it")
    rows = slice(arguments.rows or 16)
    x = split.inputs(rows)
    traced = trace(setup.model, setup.objective.call, x, setup.objective.targets(split.y[rows], x.dtype))
    about = f"{folder}: its {weights} weights, the first {len(x)} rows of its {part} part, scaled"
    extras = {"momentum": setup.config.momentum, "weight decay": setup.config.weight_decay}
    left_out = " and ".join(name for name, value in extras.items() if value)
    about += f"; the update is plain SGD, without the run's {left_out}" if left_out else ""
    return dataclasses.replace(traced, about=about), setup.config.rate if arguments.lr is None else arguments.lr


def _trace_fresh(arguments: Arguments, loss: str) -> Trace:
    """Return the trace of a fresh net on a random batch; the parameters of a tiny one have two decimals."""
    sizes = (2, 3, 1) if arguments.sizes is None else arguments.sizes
    rows, output = arguments.rows or 1, None if arguments.output_activation == "none" else arguments.output_activation
    if loss == "cross_entropy" and sizes and sizes[-1] == 1:
        raise UserError("--loss cross_entropy needs at least two outputs: end --sizes with 2 or more")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(arguments.seed or 0)
        model = MLP(sizes, arguments.activation or "sigmoid", output, init=arguments.init, dtype=torch.float64)
        x = torch.rand(rows, sizes[0], dtype=torch.float64) * 2 - 1
        labels, y = torch.randint(sizes[-1], (rows,)), torch.rand(rows, sizes[-1], dtype=torch.float64).round()
        y = labels if loss == "cross_entropy" else y
    traced = trace(model, loss, x, y)
    if not is_tiny(traced):
        return traced
    with torch.no_grad():
        for p in model.parameters():
            p.copy_((100 * p).round() / 100)
    return trace(model, loss, x.sign() * (9 * x.abs()).ceil() / 10, y)  # inputs ±0.1 to ±0.9
