"""The command line: ``deltaprop COMMAND``, the same as ``python -m deltaprop COMMAND``. One file per command."""

from __future__ import annotations

import gc
import importlib
import io
import sys
from collections.abc import Sequence

from deltaprop._version import __version__
from deltaprop.cli.errors import guarded
from deltaprop.errors import unknown_name

# A command is a module of this package with `main(arguments) -> exit code`, imported only when it is asked for.
COMMANDS = {
    "train": "train a multilayer perceptron with hand-written backpropagation",
    "evaluate": "evaluate a trained model on data",
    "predict": "predict with a trained model",
    "export": "export a trained model: ONNX, torch.export, plain weights",
    "info": "show what a model was trained on, and how",
    "gradcheck": "check the backward passes of the library, or of your own",
    "depths": "show gradients vanish and explode, layer by layer",
    "trace": "show one batch going through a network, equation by equation",
}

USAGE = "\n".join(
    [
        "usage: deltaprop COMMAND [options]",
        "",
        "Backpropagation written by hand in PyTorch.",
        "",
        "commands:",
        *(f"  {name:<12} {text}" for name, text in COMMANDS.items()),
        "",
        "deltaprop COMMAND --help tells a command's options; deltaprop --version the version.",
    ]
)


def program(arguments: Sequence[str] | None = None) -> int:
    """Run a command as all that a process does; the rest is that of :func:`main`."""
    gc.freeze()  # what PyTorch's import left lives to the end: 0.2 s, not to look through it again and again
    return main(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code: 0 done, 1 failure, 2 the user's input, 130 interrupted.

    Args:
        arguments: Words after the program's name; those of this process by default.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without η shows ?, and the run goes on
    return guarded(lambda: _dispatch(words), debug="--debug" in words)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if words[0] in ("-V", "--version"):
        print(f"deltaprop {__version__}")
        return 0
    if words[0] not in COMMANDS:
        raise unknown_name("command", words[0], COMMANDS)
    command = importlib.import_module(f"deltaprop.cli.{words[0]}")
    return int(command.main(words[1:]))
