"""The parameters of both estimators, as scikit-learn requires: stored as given, validated in fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator

from deltaprop import core
from deltaprop.errors import UserError, unknown_name
from deltaprop.nn.init import INITS
from deltaprop.training.config import DTYPES, TrainConfig
from deltaprop.training.defaults import TABLE_DECAY
from deltaprop.training.devices import pick_device

ALIASES = {"logistic": "sigmoid"}  # scikit-learn's names of activations


@dataclass(eq=False, repr=False)
class Parameters(BaseEstimator):
    """The constructor parameters, described in :class:`MLPClassifier`; a dataclass, whose fields they are."""

    hidden_layer_sizes: int | Sequence[int] = TrainConfig.hidden
    activation: str = "relu"
    _: KW_ONLY
    batch_size: int | str = "auto"
    learning_rate: str = "cosine"
    learning_rate_init: float = 0.01
    max_iter: int | None = None
    shuffle: bool = True
    random_state: int | np.random.RandomState | None = None
    tol: float = 1e-4
    verbose: bool = False
    warm_start: bool = False
    momentum: float = 0.9
    nesterovs_momentum: bool = True
    early_stopping: bool = False
    validation_fraction: float = 0.1
    n_iter_no_change: float = 10
    weight_decay: float = TABLE_DECAY
    init: str = TrainConfig.init
    dtype: str = "float32"
    device: str = "cpu"
    standardize: bool = True

    _losses: ClassVar[tuple[str, ...]]  # the allowed values of ``loss``

    def _check_parameters(self) -> None:
        """Raise a UserError if a parameter is out of its range."""
        for name, (is_valid, expected) in _RULES.items():
            value = getattr(self, name)
            if not is_valid(value):
                raise UserError(f"{name} must be {expected}, got {value!r}")
        if not all(_is_count(n) for n in self._hidden()):
            raise UserError(f"hidden_layer_sizes must be whole numbers > 0, got {self.hidden_layer_sizes!r}")
        for name, known in (("activation", [*core.ACTIVATIONS, *ALIASES]), ("init", INITS), ("loss", self._losses)):
            if getattr(self, name) not in list(known):
                raise unknown_name(name, getattr(self, name), known)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled estimator; one of version 0.1 has a constant learning rate."""
        super().__setstate__({"learning_rate": "constant", **state})

    def _hidden(self) -> tuple[int, ...]:
        sizes: Any = self.hidden_layer_sizes
        return tuple(sizes) if hasattr(sizes, "__iter__") else (sizes,)

    def _model_parameters(self) -> dict[str, Any]:
        """Return the parameters that cannot change while a model is trained further."""
        names = ("activation", "init", "dtype", "device", "standardize")
        return {"hidden_layer_sizes": self._hidden(), **{name: getattr(self, name) for name in names}}

    def _device(self) -> torch.device:
        """Return the device to train on; raise a UserError if it is missing, or does not have the dtype."""
        device = pick_device(self.device)
        if device.type == "mps" and self.dtype == "float64":
            raise UserError("`dtype='float64'`: mps has no float64; take `device='cpu'`")
        return device


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "batch_size": (lambda v: v == "auto" if isinstance(v, str) else _is_count(v), "'auto' or a whole number above 0"),
    "learning_rate_init": (lambda v: _is_real(v) and 0 < v < math.inf, "a number above 0"),
    "learning_rate": (lambda v: v in ("constant", "cosine"), "'constant' or 'cosine'"),
    "max_iter": (lambda v: v is None or _is_count(v), "None or a whole number above 0"),
    "tol": (lambda v: _is_real(v) and v >= 0, "a number, at least 0"),
    "n_iter_no_change": (lambda v: _is_count(v) or (_is_real(v) and v == math.inf), "a whole number above 0, or inf"),
    "momentum": (lambda v: _is_real(v) and 0 <= v <= 1, "a number from 0 to 1"),
    "weight_decay": (lambda v: _is_real(v) and 0 <= v < math.inf, "a number, at least 0"),
    "validation_fraction": (lambda v: _is_real(v) and 0 < v < 1, "a number between 0 and 1"),
    "dtype": (lambda v: v in list(DTYPES), "'float32' or 'float64'"),
    "device": (lambda v: isinstance(v, str), "a name, such as 'cpu' or 'cuda'"),
    **dict.fromkeys(
        ("shuffle", "warm_start", "nesterovs_momentum", "early_stopping", "standardize"),
        (lambda v: isinstance(v, bool | np.bool_), "True or False"),
    ),
}
