"""The compiled engine: backpropagation over whole epochs in C++. ``epoch.cpp`` is the page to read first."""

from deltaprop.compiled.build import BuildError, Toolchain, find_toolchain
from deltaprop.compiled.trainer import CompiledTrainer

__all__ = ["BuildError", "CompiledTrainer", "Toolchain", "find_toolchain"]
