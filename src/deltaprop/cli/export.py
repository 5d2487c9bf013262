"""``deltaprop export``: write a trained model for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from deltaprop.cli.console import terminal
from deltaprop.cli.files import OutputFile
from deltaprop.cli.parsing import ModelArguments, optional, read_arguments, training_data
from deltaprop.errors import UserError, unknown_name
from deltaprop.inference.export import EXPORTS, export
from deltaprop.inference.model import load

TO = arg(help="Format. " + " ".join(f"{name}: {format_.describe()}." for name, format_ in EXPORTS.items()))
OUT = optional("FILE", f"exported{'|'.join(format_.suffix for format_ in EXPORTS.values())} in the run folder")


@dataclass(frozen=True)
class Arguments(ModelArguments):
    """The preprocessing is exported with the model as far as the format allows.

    The predictions of the exported model are compared with the model's own, and the largest difference is printed.
    """

    to: Annotated[str, TO] = "onnx"
    out: Annotated[Path | None, OUT] = None  # File to write.


def main(words: Sequence[str]) -> int:
    """Write the model, and print how far its predictions there differ."""
    arguments = read_arguments(Arguments, "export", words)
    run, to = arguments.folder, arguments.to
    if to not in EXPORTS:
        raise unknown_name("format", to, EXPORTS)
    suffix = EXPORTS[to].suffix
    out = arguments.out or run / f"exported{suffix}"
    model = load(run, arguments.weights)
    file = OutputFile("--out", out)
    if out.suffix != suffix:
        raise UserError(f"--out {out}: the name must end in {suffix} for --to {to}")
    file.check_apart(run, *training_data(model.config))
    exported = export(model, to)
    file.write(exported.content)
    difference = f"at most {exported.difference:.2g} from the model's own predictions on {exported.rows} rows"
    lines = [
        f"{out}: {len(exported.content)} bytes, {model.weights} weights",
        f"parity: {difference}, by {exported.by}",
        *exported.notes,
    ]
    terminal().print("\n".join(lines))
    return 0
