"""A trained network with its preprocessing: it takes raw data, and predicts classes or numbers."""

from __future__ import annotations

import re
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from deltaprop.data import Encoding, Scaling
from deltaprop.data.columns import Missing, Numbers
from deltaprop.data.splits import Array
from deltaprop.errors import UserError, setting, unknown_name
from deltaprop.inference.inputs import InputBlocks, Preprocessing, blocks_of
from deltaprop.inference.intervals import check_level, interval_radius
from deltaprop.inference.retrain import picture_array, pixel_settings, retrain
from deltaprop.nn.modules import MLP
from deltaprop.training.config import TrainConfig, is_int
from deltaprop.training.devices import pick_device
from deltaprop.training.load_run import WEIGHTS, read_run
from deltaprop.training.objective import Objective, choose_objective, losses
from deltaprop.training.validation_outputs import ValidationOutputs, read_validation_outputs

if TYPE_CHECKING:
    from deltaprop.inference.estimator import RunClassifier, RunRegressor


def load(run: str | Path, weights: str | None = None, *, device: str = "cpu") -> Model:
    """Return the model of a run; the data of the run is not needed.

    Args:
        run: The folder of the run.
        weights: ``"final"``, or ``"best"`` for those of the lowest validation loss; by default those that the run
            records as its model.
        device: The device that it computes on.

    Raises:
        UserError: If the folder is not a finished run, or its files are damaged. Nothing is unpickled.

    Example:
        >>> import tempfile
        >>> from deltaprop.training import TrainConfig, train
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = TrainConfig(data="xor", hidden=(8,), epochs=20, log_every=0, run_dir=Path(folder) / "run")
        ...     model = load(train(config).folder)
        >>> model.predict(np.array([[1.0, 1.0], [1.0, -1.0]])).tolist()
        ['same sign', 'opposite sign']
    """
    if weights is not None and weights not in WEIGHTS:
        raise unknown_name("weights", weights, WEIGHTS)
    folder = Path(run)
    config, resolved, state = read_run(folder, weights)
    try:
        model = _build_model(config, resolved, state, pick_device(device), weights or config.weights)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:  # a UserError is a ValueError
        message = str(error) if isinstance(error, UserError) else f"damaged: {type(error).__name__}: {error}"
        raise UserError(f"{folder / 'config.json'}: {message}") from error
    return replace(model, validation=read_validation_outputs(folder, state))


def _build_model(
    config: TrainConfig, resolved: dict[str, Any], state: dict[str, Tensor], device: torch.device, weights: str
) -> Model:
    """Return the model of a run's configuration and weights, after checking that they fit each other."""
    sizes, names, task = resolved["sizes"], resolved["class_names"], resolved["task"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len({*names}) != len(names):
        raise UserError("damaged: its class names")
    encoding = None if (columns := resolved.get("columns")) is None else Encoding.from_json(columns)
    outputs = sizes[-1] if task == "regression" else 1 if config.one_logit else len(names)
    inputs = sizes[0] if encoding is None else len(encoding)
    if task not in ("classification", "regression") or (inputs, outputs) != (sizes[0], sizes[-1]):
        raise UserError(
            f"damaged: its network has the sizes {sizes}, its columns {inputs} inputs, its targets {outputs}"
        )
    if resolved["loss"] not in losses():
        raise UserError(f"damaged: its loss {resolved['loss']!r}")
    shape, class_weights = resolved.get("image_shape"), resolved.get("class_weights")
    dtype = next(iter(state.values())).dtype
    output = None if config.output_activation == "none" else config.output_activation
    net = MLP(sizes, config.activations, output, device="meta", dtype=dtype)
    net.load_state_dict(state, assign=True)
    return Model(
        net=net.to(device).eval(),
        objective=choose_objective(
            resolved["loss"], task, len(names), config.output_activation, one_logit=config.one_logit,
            class_weights=None if class_weights is None else torch.tensor(class_weights, dtype=dtype),
        ),
        class_names=tuple(names),
        encoding=encoding,
        image_shape=None if shape is None else (int(shape[0]), int(shape[1])),
        input_scaling=_read_scaling(resolved["input_scaling"], inputs),
        target_scaling=_read_scaling(resolved["target_scaling"], sizes[-1] if task == "regression" else 1),
        missing=config.missing,
        config=config,
        classes_left_out=_read_names(resolved.get("classes_left_out", [])),
        class_counts=_read_counts(resolved.get("class_counts"), len(names)),
        weights=weights,
    )  # fmt: skip


def _read_names(saved: Any) -> tuple[str, ...]:
    """Return the names in a list of config.json."""
    if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
        raise UserError("damaged: its classes_left_out")
    return tuple(saved)


def _read_counts(saved: Any, classes: int) -> tuple[int, ...]:
    """Return the training rows of each class that config.json contains, if it has them."""
    if saved is None:
        return ()
    if not isinstance(saved, list) or len(saved) != classes or not all(is_int(count) and count >= 0 for count in saved):
        raise UserError(f"damaged: its class counts {saved!r:.80}")
    return tuple(saved)


def _read_scaling(saved: Any, n: int) -> Scaling:
    """Return the scaling of n columns that config.json contains."""
    mean, scale = (torch.tensor(saved[name], dtype=torch.float64) for name in ("mean", "scale"))
    for values in (mean, scale):
        if values.dim() > 1 or (values.dim() == 1 and len(values) != n) or not values.isfinite().all():
            raise UserError(f"damaged: a scaling of {list(values.shape)} for {n} columns, or not finite")
    if not (scale > 0).all():
        raise UserError("damaged: a scaling by 0 or less")
    return Scaling(mean.expand(n).clone(), scale.expand(n).clone())


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Model:
    """A trained network with its preprocessing.

    Data may be a file (a table, ``.npz`` or ``.npy``), a NumPy array or tensor [N, …] with the inputs in the order of
    the training data, a dict of columns, or a table with named columns that supports Arrow (pyarrow, polars, pandas).
    Columns are found by their names, in any order; other columns are ignored.

    Attributes:
        net: The :class:`~deltaprop.MLP`, from scaled inputs to outputs.
        objective: Its loss, which determines what the outputs mean.
        class_names: One name per class; empty for numbers.
        encoding: Encoding of the columns of a table; None if it was trained on arrays.
        image_shape: (rows, columns) if each sample is an image.
        input_scaling: Scaling of the encoded inputs.
        target_scaling: Scaling of the targets, for numbers.
        missing: How missing cells are handled: ``"refuse"``, ``"mean"`` or ``"drop"``.
        config: The configuration that it was trained with.
        classes_left_out: Classes of a single row, which it was not trained on.
        class_counts: The training rows of each class; empty for numbers, and for runs of older versions.
        weights: Which weights of the run these are: ``"final"``, or ``"best"``, those of the lowest validation loss.
        validation: Its outputs for validation rows, for intervals and thresholds; None if they are not stored.
    """

    net: MLP
    objective: Objective
    class_names: tuple[str, ...]
    encoding: Encoding | None
    image_shape: tuple[int, int] | None
    input_scaling: Scaling
    target_scaling: Scaling
    missing: Missing
    config: TrainConfig
    classes_left_out: tuple[str, ...] = ()
    class_counts: tuple[int, ...] = ()
    weights: str = "final"
    validation: ValidationOutputs | None = None

    def __repr__(self) -> str:
        """Return the network, its training data and what it predicts, in one line."""
        what = f"{len(self.class_names)} classes" if self.class_names else "numbers"
        return f"<Model {'-'.join(map(str, self.sizes))} of {what}, trained on {self.config.data}>"

    @property
    def task(self) -> str:
        """``"classification"`` or ``"regression"``."""
        return self.objective.task

    @property
    def sizes(self) -> list[int]:
        """[n_0, …, n_L]."""
        linears = [module for module in self.net if isinstance(module, nn.Linear)]
        return [linears[0].in_features, *[linear.out_features for linear in linears]]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.net.parameters()).dtype

    @property
    def classes(self) -> Array:
        """The classes, [C], in the order of the probabilities: integers if all names are integers, else text."""
        if all(re.fullmatch(r"0|-?[1-9][0-9]{0,17}", name) for name in self.class_names):  # fits in int64
            return np.array([int(name) for name in self.class_names], dtype=np.int64)
        return np.array(self.class_names)

    @property
    def target_names(self) -> tuple[str, ...]:
        """The names of the targets; for arrays, which have no names, y."""
        if self.encoding is not None:
            return self.encoding.targets
        outputs = len(self.target_scaling.mean)
        return ("y",) if outputs == 1 else tuple(f"y{number + 1}" for number in range(outputs))

    def predict(self, data: Any) -> Array:
        """Return the class of each row, [N], or its numbers, [N] or [N, k], in the units of the training data.

        Args:
            data: Inputs, in any form that :class:`Model` lists.

        Raises:
            UserError: If a column is missing, or a cell does not fit.
        """
        outputs = self.outputs(data)
        if self.task == "classification":
            labels: Array = self.classes[self.objective.decide(outputs).cpu().numpy()]
            return labels
        values: Array = self.in_units(outputs).cpu().numpy()
        return values[:, 0] if values.shape[1] == 1 else values

    def predict_proba(self, data: Any) -> Array:
        """Return the probability of each class, [N, C], in the order of ``classes``.

        Raises:
            UserError: If the model has no probabilities: it predicts numbers, or its loss is not one of probabilities.
        """
        if not self.objective.has_probabilities:
            what = "numbers" if self.task == "regression" else f"by the loss {self.objective.name}"
            raise UserError(f"the model was trained on {what}: it has no probabilities")
        probabilities: Array = self.objective.probabilities(self.outputs(data)).cpu().numpy()
        return probabilities

    def as_sklearn(self) -> RunClassifier | RunRegressor:
        """Return a fitted estimator of scikit-learn that predicts with this model.

        A clone of it, as in ``cross_val_predict``, is not fitted; its ``fit`` trains with the settings of the run.
        """
        from deltaprop.inference.estimator import estimator_of  # imports scikit-learn

        return estimator_of(self)

    def retrained(self, data: Any, y: Any) -> Model:
        """Return a model that is trained with the same settings on other rows, in a temporary folder.

        Args:
            data: A table with the columns of the run, or an array [N, n] if it was trained on one.
            y: Labels, [N], or numbers, [N] or [N, k].

        Raises:
            UserError: If the data do not fit.
        """
        config = self.config
        if self.encoding is None:
            data = data.detach().cpu().numpy() if isinstance(data, Tensor) else np.asarray(data)
            expected = len(self.input_scaling.mean)
            if data.ndim < 2 or int(np.prod(data.shape[1:])) != expected or data.dtype.kind not in "biuf":
                raise UserError(f"X must be [N, {expected}], numbers, got {list(data.shape)} of {data.dtype}")
            if not np.isfinite(data).all():
                raise UserError("Input X contains NaN or infinity")
            if self.image_shape is not None:
                data = picture_array(data, self.image_shape)
                config = replace(config, **pixel_settings(self.input_scaling.scale))
        with tempfile.TemporaryDirectory() as folder:
            return load(retrain(config, data, np.asarray(y), self.target_names, self.task, Path(folder)))

    def predict_interval(self, data: Any, level: float = 0.9) -> tuple[Array, Array]:
        """Return the lower and the upper end of an interval for each row, each [N] or [N, k], as ``predict``.

        An interval is the prediction ± a residual of the validation rows: split conformal prediction. It contains the
        target of a new row with a probability of at least ``level`` if that row and the validation rows are
        exchangeable. Validation rows that were also used to choose among epochs make it slightly too narrow.

        Args:
            data: Inputs, in any form that :class:`Model` lists.
            level: The level, in (0, 1).

        Raises:
            UserError: If the model predicts classes, or the run has too few validation rows for the level.
        """
        radius = self.interval_radius(level)
        predicted: Array = self.predict(data)
        radius = radius[0] if predicted.ndim == 1 else radius
        return predicted - radius, predicted + radius

    def interval_radius(self, level: float) -> Numbers:
        """Return half the width of the intervals of :meth:`predict_interval`, [k], in the units of the targets."""
        check_level(level)
        if self.class_names:
            raise UserError(f"{setting('interval', level)}: it is for numbers, and the model predicts classes")
        if self.validation is None:
            raise UserError(
                "the run folder has no outputs for validation rows, which intervals need: train again, with a "
                f"{setting('val_fraction')} above 0"
            )
        errors = (self.validation.outputs.double() - self.validation.targets.double()).abs()
        return interval_radius((errors * self.target_scaling.scale).numpy(), level)

    def outputs(self, data: Any) -> Tensor:
        """Return a^L of each row, [N, n_L], as the loss takes it."""
        blocks = self.blocks(data)
        outputs = [self.feed(x) for x in blocks.inputs()]
        for line in blocks.warnings:
            warnings.warn(line, stacklevel=3)
        return torch.cat(outputs or [self.feed(torch.empty(0, len(self.input_scaling.mean), dtype=self.dtype))])

    @torch.no_grad()
    def feed(self, x: Tensor) -> Tensor:
        """Return a^L of scaled inputs, [N, n_L]."""
        outputs: Tensor = self.net(x.to(next(self.net.parameters()).device))
        return outputs

    def in_units(self, outputs: Tensor) -> Tensor:
        """Return the outputs of a regression in the units of the training data, float64."""
        return self.target_scaling.in_own_units(outputs.cpu())

    def blocks(self, data: Any, **options: Any) -> InputBlocks:
        """Return the rows of data, block by block, as inputs of the network."""
        absent = tuple(word.lower() for word in self.config.na_values)
        steps = Preprocessing(self.encoding, self.input_scaling, self.dtype, self.missing, absent)
        return blocks_of(data, steps, **{"reading": self.config.reading, **options})
