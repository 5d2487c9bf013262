"""``deltaprop gradcheck``: every promise of a backward pass, of the library's ops or of a user's own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from deltaprop.cli.files import check_file, write_file
from deltaprop.cli.parsing import read_flags
from deltaprop.cli.targets import call_examples, load
from deltaprop.errors import UserError
from deltaprop.gradcheck.check import CHECKS, check_gradients
from deltaprop.gradcheck.context import format_error
from deltaprop.gradcheck.library import library_ops
from deltaprop.gradcheck.report import GradientReport
from deltaprop.training.devices import pick_device

DESCRIPTION = """Check hand-written backward passes: their numbers against central differences, and every promise that
differences do not see.

Without a target: every op of the library. Exit codes: 0 nothing wrong, 1 something is, 2 wrong input."""


@dataclass(frozen=True)
class Arguments:
    """What to check.

    Attributes:
        target: FILE.py:NAME or package.module:NAME, a Function class, a module or any function; every op of the library
            by default.
        shape: Of an input, such as 4x3; once for each. What example_inputs() beside NAME returns by default.
        device: auto (CUDA, else cpu), cpu or cuda:N; differences need float64, which mps has not.
        skip: A check not to make; as often as there are.
        fast: Try some entries of each input, and leave the compiler out.
        json: A file for the report.
        seed: Of inputs and of what is drawn.
    """

    target: tyro.conf.Positional[str | None] = None
    shape: tyro.conf.UseAppendAction[Annotated[tuple[str, ...], tyro.conf.arg(metavar="4x3")]] = ()
    device: str = "auto"
    skip: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    fast: bool = False
    json: Path | None = None
    seed: int = 0


def main(words: Sequence[str]) -> int:
    """Check, tell, and return 0, or 1 if something is wrong.

    Raises:
        UserError: If there is no such target, or it does not take its inputs.
    """
    arguments = read_flags(Arguments, "gradcheck", words, DESCRIPTION)
    if arguments.target is None and arguments.shape:
        raise UserError("--shape is for a target of your own: FILE.py:NAME or package.module:NAME")
    check_file("--json", arguments.json)
    if not 0 <= arguments.seed < 2**63:
        raise UserError(f"--seed must be 0 to 2^63 − 1, got {arguments.seed}")
    if arguments.device == "mps":
        raise UserError("--device mps: it has no float64, which differences need; take cpu")
    device = pick_device(arguments.device)
    device = torch.device("cpu") if device.type == "mps" else device
    console = Console(highlight=False)
    if arguments.target is None:
        reports = [
            check_gradients(op, _to(inputs, device), skip=arguments.skip, fast=arguments.fast, seed=arguments.seed)
            for op, inputs in library_ops()
        ]
        at_a_time = max(1, (console.width - 20) // 3)
        for first in range(0, len(reports), at_a_time):
            console.print(overview(reports[first : first + at_a_time], first + 1))
        console.print(legend(reports), style="dim")
    else:
        fn, examples = load(arguments.target)
        inputs = make_inputs(arguments, examples)
        report = check_gradients(fn, _to(inputs, device), skip=arguments.skip, fast=arguments.fast, seed=arguments.seed)
        reports = [report]
        console.print(report.rich())
        console.print(report.summary())
    if arguments.json is not None:
        write_file("--json", arguments.json, json.dumps([r.to_json() for r in reports], indent=1) + "\n")
    bad = [report for report in reports if not report.ok]
    if arguments.target is None:
        for report in bad:
            for check in report.errors:
                console.print(f"{report.subject}: {check.name}: {check.detail}", markup=False)
        console.print(f"{len(reports) - len(bad)} of {len(reports)} ops ok on {device}")
    return 1 if bad else 0


def make_inputs(arguments: Arguments, examples: Callable[[], Any] | None) -> tuple[Any, ...]:
    """Return random inputs of the shapes that are given, or the user's own.

    Raises:
        UserError: If there are neither.
    """
    if arguments.shape:
        generator = torch.Generator().manual_seed(arguments.seed)
        try:
            return tuple(torch.randn(read_shape(s), generator=generator, dtype=torch.float64) for s in arguments.shape)
        except RuntimeError as error:
            raise UserError(f"--shape {' '.join(arguments.shape)}: {format_error(error)}") from error
    if examples is None:
        raise UserError(
            f"{arguments.target}: inputs are needed: --shape 4x3 for each, or a function example_inputs() beside it"
        )
    return call_examples(str(arguments.target), examples)


def read_shape(text: str) -> tuple[int, ...]:
    """Return the shape that a word such as 4x3 stands for; ``scalar`` is none.

    Raises:
        UserError: If it is none.
    """
    if text == "scalar":
        return ()
    if not re.fullmatch(r"\d+(x\d+)*", text):
        raise UserError(f"--shape must be sizes with x between them, such as 4x3, or scalar, got {text!r}")
    return tuple(int(size) for size in text.split("x"))


def overview(reports: Sequence[GradientReport], first: int) -> Table:
    """Return one table of all checks and some ops; these are numbered from ``first``, as :func:`legend` tells."""
    marks = {"passed": "[green]✓[/]", "skipped": "[dim]·[/]"}
    table = Table(title="gradients of every op", title_justify="left", box=None, padding=(0, 0, 0, 1))
    table.add_column("check", no_wrap=True)
    for number in range(first, first + len(reports)):
        table.add_column(str(number), justify="right", no_wrap=True)
    for name in CHECKS:
        checks = [report[name] for report in reports]
        failed = {"error": "[bold red]✗[/]", "warning": "[yellow]![/]"}
        table.add_row(name, *[marks.get(check.outcome, failed[check.severity]) for check in checks])
    return table


def legend(reports: Sequence[GradientReport]) -> str:
    """Return what the numbers and marks of the overview mean."""
    numbers = ", ".join(f"{number} {report.subject}" for number, report in enumerate(reports, start=1))
    return f"✓ passed   ✗ error   ! warning   · does not apply\n{numbers}"


def _to(inputs: Any, device: torch.device) -> tuple[Any, ...]:
    return tuple(t.to(device) if isinstance(t, Tensor) else t for t in inputs)
