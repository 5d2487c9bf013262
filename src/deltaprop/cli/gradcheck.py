"""``deltaprop gradcheck``: check the backward passes of the library's ops or of the user's own code."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor
from tyro.conf import Positional, UseAppendAction, arg

from deltaprop._torch_compat import tree_flatten, tree_unflatten
from deltaprop.cli.files import OutputFile
from deltaprop.cli.parsing import optional, read_arguments
from deltaprop.cli.targets import Examples, is_file_of_functions, load_functions, load_target
from deltaprop.errors import UserError, format_error, unknown_name
from deltaprop.gradcheck.check import CHECKS, check_gradients
from deltaprop.gradcheck.formats import to_annotations, to_junit
from deltaprop.gradcheck.library import library_ops
from deltaprop.gradcheck.report import Check, GradientReport
from deltaprop.training.devices import pick_device


@dataclass(frozen=True)
class Arguments:
    """Gradients are compared with central differences, and other properties of a backward pass are checked."""

    #: What to check: FILE.py (every Function in it), FILE.py:NAME or package.module:NAME.
    target: Annotated[Positional[str | None], optional("[TARGET]", "every op of the library")] = None
    #: Shape of an input, such as 4x3; repeat for each input. By default, example_inputs() of NAME or its file.
    shape: UseAppendAction[Annotated[tuple[str, ...], arg(metavar="4x3")]] = ()
    device: str = "auto"  # Device: auto (CUDA, else cpu), cpu or cuda:N; mps has no float64.
    skip: UseAppendAction[Annotated[tuple[str, ...], arg(metavar="CHECK")]] = ()  # Check to skip.
    fast: bool = False  # Perturb only some entries of each input, and skip the compile check.
    deep: bool = False  # Check third derivatives too.
    format: Literal["table", "github"] = "table"  # What to print: a table, or annotations for GitHub's actions.
    json: Annotated[Path | None, optional("FILE", "")] = None  # Write the report to this file.
    junit: Annotated[Path | None, optional("FILE", "")] = None  # Write it to this file in JUnit's XML.
    seed: int = 0  # Seed of the random inputs and directions.


def main(words: Sequence[str]) -> int:
    """Check the gradients and print the report; return 1 if a check failed."""
    arguments = read_arguments(Arguments, "gradcheck", words)
    target = arguments.target
    several = target is None or is_file_of_functions(target)
    if several and arguments.shape:
        raise UserError("--shape is for one target of your own: FILE.py:NAME or package.module:NAME")
    as_json, as_junit = OutputFile("--json", arguments.json), OutputFile("--junit", arguments.junit)
    if not 0 <= arguments.seed < 2**63:
        raise UserError(f"--seed must be 0 to 2^63 − 1, got {arguments.seed}")
    if arguments.device == "mps":
        raise UserError("--device mps: it has no float64, which differences need; take cpu")
    device = pick_device(arguments.device)
    device = torch.device("cpu") if device.type == "mps" else device
    skip = [name for words in arguments.skip for name in words.split(",")]

    def check(fn: Any, inputs: Callable[[], tuple[Any, ...]]) -> GradientReport:
        torch.manual_seed(arguments.seed)  # of example_inputs()
        fn = fn.to(device) if isinstance(fn, torch.nn.Module) else fn
        flat, spec = tree_flatten(inputs())
        on_device = [t.to(device) if isinstance(t, Tensor) else t for t in flat]
        return check_gradients(
            fn,
            tree_unflatten(on_device, spec),
            skip=skip,
            fast=arguments.fast,
            deep=arguments.deep,
            seed=arguments.seed,
        )

    without: list[str] = []
    cases: list[tuple[Any, Callable[[], tuple[Any, ...]]]]
    if target is None:
        cases = [(fn, partial(tuple, inputs)) for fn, inputs in library_ops()]
    elif several:
        cases, without = load_functions(target)
    else:
        fn, example = load_target(target, "FILE.py, FILE.py:NAME or package.module:NAME")
        cases = [(fn, partial(_make_inputs, arguments, example))]
    for name in skip:
        if name not in CHECKS:
            raise unknown_name("check", name, CHECKS)
    reports = []
    for fn, inputs in cases:
        try:
            reports.append(check(fn, inputs))
        except UserError as error:
            if not several:
                raise
            reports.append(GradientReport(fn.__name__, (Check("values", "failed", detail=str(error)),)))
    console = Console(highlight=False)
    if arguments.format == "github":
        for (fn, _), report in zip(cases, reports, strict=True):
            print(*to_annotations(report, fn), report.summary().splitlines()[0], sep="\n")
        print(*[f"not checked, no example_inputs(): {name}" for name in without], sep="\n", end="\n" * bool(without))
    elif several:
        _print_overview(console, reports)
        if without:
            console.print(f"not checked, no example_inputs(): {', '.join(without)}", markup=False)
        console.print(f"{sum(report.ok for report in reports)} of {len(reports)} ok on {device}")
    else:
        console.print(reports[0].rich(), Text(reports[0].summary().splitlines()[0]), sep="\n")
    if as_json.path is not None:
        as_json.write(json.dumps([report.to_json() for report in reports], indent=1) + "\n")
    if as_junit.path is not None:
        as_junit.write(to_junit(reports))
    return 0 if all(report.ok for report in reports) else 1


def _make_inputs(arguments: Arguments, examples: Examples | None) -> tuple[Any, ...]:
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
    """Print a row for each function, what is wrong with which, and what was skipped and why."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    for name in ("function", "result", "passed", "skipped"):
        table.add_column(name, overflow="fold", justify="right" if name in ("passed", "skipped") else "left")
    for report in reports:
        failed = [(check.name, "bold red") for check in report.errors] + [(c.name, "yellow") for c in report.warnings]
        outcomes = Counter(check.outcome for check in report.checks)
        result = Text(", ").join([Text(*one) for one in failed]) if failed else Text("ok", style="green")
        table.add_row(Text(report.subject), result, str(outcomes["passed"]), str(outcomes["skipped"]))
    console.print(table)
    for report in reports:
        for check in [*report.errors, *report.warnings]:
            console.print(f"{report.subject}: {check.severity}: {check.name}: {check.detail}", markup=False)
    reasons: dict[str, Counter[str]] = {}
    for check in (check for report in reports for check in report.checks if check.outcome == "skipped"):
        reasons.setdefault(check.detail, Counter())[check.name] += 1
    console.print("skipped", style="dim")
    for reason, names in reasons.items():
        which = ", ".join(name if count == len(reports) else f"{name} ({count})" for name, count in names.items())
        console.print(Text(f"  {which}: {reason}", style="dim"))
