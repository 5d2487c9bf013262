"""``deltaprop export``: a trained model for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path

from rich.console import Console

from deltaprop.cli.files import check_apart, check_file, write_file
from deltaprop.cli.parsing import read_flags
from deltaprop.cli.runs import RunArgument, learnt_from, named
from deltaprop.errors import UserError, unknown_name
from deltaprop.inference.export import FORMATS, Format, export
from deltaprop.inference.model import load


def _help_of_format(name: str, found: Format) -> str:
    return f"{name}: {found.help}" + (f" (pip install 'deltaprop[{found.extra}]')" if found.extra else "")


NEWLINES = "\n\n"
DESCRIPTION = f"""Export a trained model, with its preprocessing as far as the format allows:

{NEWLINES.join(starmap(_help_of_format, FORMATS.items()))}

The exported model's predictions are compared with the model's own, and the largest difference is printed. Exit codes:
0 done, 2 wrong input, or predictions that differ by more than rounding (nothing is written then)."""


@dataclass(frozen=True)
class Arguments:
    """What to export, and whereto.

    Attributes:
        run: The folder of the run.
        to: onnx, torch-export or state-dict.
        out: The file; by default exported.onnx, .pt2 or .safetensors in the folder of the run.
        weights: final, or best for those of the lowest validation loss.
    """

    run: RunArgument = None
    to: str = "onnx"
    out: Path | None = None
    weights: str = "final"


def main(words: Sequence[str]) -> int:
    """Export, print what was exported, and return 0.

    Raises:
        UserError: If the run or the flags are at fault, or the predictions of the export are not those of the model.
    """
    arguments = read_flags(Arguments, "export", words, DESCRIPTION)
    run = named(arguments.run)
    if arguments.to not in FORMATS:
        raise unknown_name("format", arguments.to, FORMATS)
    suffix = FORMATS[arguments.to].suffix
    out = arguments.out or run / f"exported{suffix}"
    model = load(run, arguments.weights)
    check_file("--out", out)
    if out.suffix != suffix:
        raise UserError(f"--out {out}: a file of {arguments.to} ends in {suffix}")
    check_apart("--out", out, run, *learnt_from(model.config))
    found = export(model, arguments.to)
    write_file("--out", out, found.content)
    console = Console(highlight=False)
    console.print(f"{out}: {len(found.content)} bytes", markup=False, soft_wrap=True)
    console.print(
        f"parity: at most {found.difference:.2g} from the model's own predictions on {found.rows} rows, by {found.by}",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    for line in found.notes:
        console.print(line, markup=False, soft_wrap=True)
    return 0
