"""A trained model in use: it predicts on data that it has not seen, is judged by it, and told about."""

from deltaprop.inference.model import Model, load

__all__ = ["Model", "load"]
