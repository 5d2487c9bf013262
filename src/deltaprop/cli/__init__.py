"""The command line: ``deltaprop COMMAND``, the same as ``python -m deltaprop COMMAND``. One module per command."""

from __future__ import annotations

import gc
import importlib
import io
import sys
from collections.abc import Sequence

from deltaprop._version import __version__
from deltaprop.cli.errors import guarded
from deltaprop.errors import unknown_name

# Each command is a module of this package, imported only when it is run. Its function `main` takes the words after the
# command and returns the exit code, or raises UserError.
COMMANDS = {
    "train": "Train a multilayer perceptron with hand-written backpropagation.",
    "evaluate": "Evaluate a trained model on data.",
    "predict": "Predict with a trained model.",
    "export": "Export a trained model: ONNX, torch.export or plain weights.",
    "info": "Show the data, settings and metrics of a run.",
    "gradcheck": "Check the backward passes of the library or of your own code.",
    "depths": "Show vanishing and exploding gradients, layer by layer.",
    "trace": "Show one batch passing through a network, equation by equation.",
}

USAGE = f"""usage: deltaprop COMMAND [options]

Backpropagation written by hand in PyTorch.

commands:
{"".join(f"  {name:<12} {summary}" + chr(10) for name, summary in COMMANDS.items())}
exit codes: 0 done; 1 failure, or a check failed; 2 wrong input, and nothing is written; 130 interrupted

deltaprop COMMAND --help lists the options of a command; deltaprop --version prints the version."""


def program(arguments: Sequence[str] | None = None) -> int:
    """Run :func:`main` as the only work of a process."""
    gc.freeze()  # exempt PyTorch's modules from garbage collection: saves 0.2 s
    return main(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code: 0 done, 1 failure, 2 wrong input, 130 interrupted.

    Args:
        arguments: Words after the program's name; ``sys.argv[1:]`` by default.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot encode η shows ?
    return guarded(lambda: _run(words), debug="--debug" in words)


def _run(words: list[str]) -> int:
    name = words[0] if words else "help"
    if name in ("-h", "--help", "help"):
        print(USAGE)
    elif name in ("-V", "--version"):
        print(f"deltaprop {__version__}")
    elif name in COMMANDS:
        return int(importlib.import_module(f"deltaprop.cli.{name}").main(words[1:]))
    else:
        raise unknown_name("command", name, COMMANDS)
    return 0
