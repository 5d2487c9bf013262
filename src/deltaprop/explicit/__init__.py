"""The explicit engine: backpropagation without autograd. ``core/recursion.py`` is the page to read first."""

from deltaprop.explicit.trainer import ExplicitTrainer

__all__ = ["ExplicitTrainer"]
