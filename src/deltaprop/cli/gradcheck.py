"""``deltaprop gradcheck``: check the backward passes of the library's ops or of the user's own code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tyro.conf import Positional, UseAppendAction, arg

from deltaprop.cli.files import OutputFile
from deltaprop.cli.parsing import optional, read_arguments
from deltaprop.cli.targets import load_target
from deltaprop.errors import UserError
from deltaprop.gradcheck.check import CHECKS, check_gradients
from deltaprop.gradcheck.context import format_error
from deltaprop.gradcheck.library import library_ops
from deltaprop.gradcheck.report import GradientReport
from deltaprop.training.devices import pick_device

MARKS = {"passed": "[green]✓[/]", "skipped": "[dim]·[/]", "error": "[bold red]✗[/]", "warning": "[yellow]![/]"}


@dataclass(frozen=True)
class Arguments:
    """Gradients are compared with central differences, and other properties of a backward pass are checked."""

    #: Function class, module or function: FILE.py:NAME or package.module:NAME.
    target: Annotated[Positional[str | None], optional("[TARGET]", "every op of the library")] = None
    #: Shape of an input, such as 4x3; repeat for each input. By default, example_inputs() beside NAME is called.
    shape: UseAppendAction[Annotated[tuple[str, ...], arg(metavar="4x3")]] = ()
    device: str = "auto"  # Device: auto (CUDA, else cpu), cpu or cuda:N; mps has no float64.
    skip: UseAppendAction[Annotated[tuple[str, ...], arg(metavar="CHECK")]] = ()  # Check to skip.
    fast: bool = False  # Perturb only some entries of each input, and skip the compile check.
    json: Annotated[Path | None, optional("FILE", "")] = None  # Write the report to this file.
    seed: int = 0  # Seed of the random inputs and directions.


def main(words: Sequence[str]) -> int:
    """Check the gradients and print the report; return 1 if a check failed."""
    arguments = read_arguments(Arguments, "gradcheck", words)
    if arguments.target is None and arguments.shape:
        raise UserError("--shape is for a target of your own: FILE.py:NAME or package.module:NAME")
    file = OutputFile("--json", arguments.json)
    if not 0 <= arguments.seed < 2**63:
        raise UserError(f"--seed must be 0 to 2^63 − 1, got {arguments.seed}")
    if arguments.device == "mps":
        raise UserError("--device mps: it has no float64, which differences need; take cpu")
    device = pick_device(arguments.device)
    device = torch.device("cpu") if device.type == "mps" else device
    console = Console(highlight=False)

    def check(fn: Any, inputs: Sequence[Any]) -> GradientReport:
        on_device = tuple(t.to(device) if isinstance(t, Tensor) else t for t in inputs)
        return check_gradients(fn, on_device, skip=arguments.skip, fast=arguments.fast, seed=arguments.seed)

    if arguments.target is None:
        reports = [check(op, inputs) for op, inputs in library_ops()]
        _print_overview(console, reports)
        console.print(f"{sum(report.ok for report in reports)} of {len(reports)} ops ok on {device}")
    else:
        fn, examples = load_target(arguments.target)
        reports = [check(fn, _make_inputs(arguments, examples))]
        console.print(reports[0].rich(), reports[0].summary(), sep="\n")
    if file.path is not None:
        file.write(json.dumps([report.to_json() for report in reports], indent=1) + "\n")
    return 0 if all(report.ok for report in reports) else 1


def _make_inputs(arguments: Arguments, examples: Callable[[], tuple[Any, ...]] | None) -> tuple[Any, ...]:
    """Return random inputs of the given shapes, or the user's own."""
    if arguments.shape:
        generator = torch.Generator().manual_seed(arguments.seed)
        try:
            return tuple(torch.randn(_shape(s), generator=generator, dtype=torch.float64) for s in arguments.shape)
        except RuntimeError as error:
            raise UserError(f"--shape {' '.join(arguments.shape)}: {format_error(error)}") from error
    if examples is None:
        hint = "--shape 4x3 for each, or a function example_inputs() beside it"
        raise UserError(f"{arguments.target}: inputs are needed: {hint}")
    return examples()


def _shape(text: str) -> tuple[int, ...]:
    """Return the shape of a word such as 4x3 or scalar."""
    if not re.fullmatch(r"scalar|\d+(x\d+)*", text):
        raise UserError(f"--shape must be sizes with x between them, such as 4x3, or scalar, got {text!r}")
    return tuple(map(int, re.findall(r"\d+", text)))


def _print_overview(console: Console, reports: Sequence[GradientReport]) -> None:
    """Print tables of all checks by numbered ops, as many ops in each as fit the width, their names and the errors."""
    most = max(1, (console.width - 20) // 3)
    for first in range(0, len(reports), most):
        table = Table(title="gradients of every op", title_justify="left", box=None, padding=(0, 0, 0, 1))
        table.add_column("check", no_wrap=True)
        shown = reports[first : first + most]
        for number in range(first + 1, first + len(shown) + 1):
            table.add_column(str(number), justify="right", no_wrap=True)
        for name in CHECKS:
            checks = [report[name] for report in shown]
            table.add_row(name, *[MARKS[c.severity if c.outcome == "failed" else c.outcome] for c in checks])
        console.print(table)
    names = ", ".join(f"{number} {report.subject}" for number, report in enumerate(reports, start=1))
    console.print(f"✓ passed   ✗ error   ! warning   · does not apply\n{names}", style="dim")
    for report in reports:
        for error in report.errors:
            console.print(f"{report.subject}: {error.name}: {error.detail}", markup=False)
