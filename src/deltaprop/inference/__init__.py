"""A trained model: load it, predict on new data, evaluate it, export it."""

from deltaprop.inference.model import Model, load

__all__ = ["Model", "load"]
