"""What the classifier and the regressor share: the model, its training, and the attributes of a fitted estimator.

Shapes: X [N, n_0], y [N] or [N, n_L]; ``coefs_[l − 1]`` is W^l as scikit-learn has it, [n_{l−1}, n_l].
"""
# ruff: noqa: N803  # X is scikit-learn's name, and users may give it by keyword

from __future__ import annotations

import copy
import math
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, check_X_y, validate_data
from torch import Tensor, nn

from deltaprop.compiled import CompiledTrainer
from deltaprop.data import Scaling
from deltaprop.data.frames import frame_table
from deltaprop.errors import UserError
from deltaprop.explicit import ExplicitTrainer
from deltaprop.loss_spec import LossLike
from deltaprop.nn.modules import MLP
from deltaprop.optim import SGD
from deltaprop.sklearn.frames import EncodedTable, TableEncoder, needs_encoding
from deltaprop.sklearn.parameters import ALIASES, Parameters
from deltaprop.training.config import DTYPES, TrainConfig
from deltaprop.training.defaults import usual_epochs
from deltaprop.training.devices import pick_threads, set_threads
from deltaprop.training.engines import compiled_serves

DENSE = {"dtype": [np.float64, np.float32], "order": "C"}  # X keeps one of these dtypes; others become float64
AUTO = 0  # epochs: as many as `usual_epochs` gives
BATCH = TrainConfig.batch_size
_drawing = threading.Lock()  # initial weights come from PyTorch's one global generator, and fits may run in threads


class MLPEstimator(Parameters, ABC):
    """An MLP that is trained as scikit-learn's estimators are; a subclass defines its targets."""

    _output: ClassVar[str]  # the value of ``out_activation_``
    _made_by: dict[str, Any]
    _optimizer: SGD | None
    table_encoder_: TableEncoder | None
    loss_curve_: list[float]
    validation_scores_: list[float] | None
    best_validation_score_: float | None
    engine_: str

    @abstractmethod
    def _validated(self, X: Any, y: Any, first: bool, classes: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return validated inputs, and targets as :meth:`_targets` takes them."""

    @abstractmethod
    def _fit_targets(self, y: NDArray[Any], weights: NDArray[np.float64] | None) -> int:
        """Fit the scaling of targets, if there is one; return n_L."""

    @abstractmethod
    def _targets(self, y: NDArray[Any]) -> Tensor:
        """Return targets for the loss, on the device."""

    @abstractmethod
    def _loss(self, y: NDArray[Any], all_rows: bool, by_row: bool) -> str | Callable[..., Tensor]:
        """Return the loss.

        ``all_rows`` is False if ``partial_fit`` may be called with further targets; ``by_row`` is True if class weights
        are part of the weight of each row.
        """

    @abstractmethod
    def _score(self, outputs: Tensor, targets: Tensor, weights: NDArray[np.float64] | None) -> float:
        """Return the score of outputs, accuracy or R², each row counting by its weight."""

    def _class_factors(self, y: NDArray[Any], weights: NDArray[np.float64], all_rows: bool) -> NDArray[np.float64]:
        """Return the factor of each row's weight by its class; 1 without class weights."""
        return np.ones(len(y))

    # --- the attributes of a fitted estimator ---

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")

    @property
    def _layers(self) -> list[nn.Linear]:
        return [module for module in self.model_ if isinstance(module, nn.Linear)]

    @property
    def coefs_(self) -> list[NDArray[Any]]:
        """W of each layer as scikit-learn has it, [n_in, n_out], of the net on standardised inputs; on a CPU a view."""
        return [layer.weight.detach().cpu().numpy().T for layer in self._layers]

    @property
    def intercepts_(self) -> list[NDArray[Any]]:
        """The biases b of each layer, [n_out]; on a CPU a view."""
        return [layer.bias.detach().cpu().numpy() for layer in self._layers]

    @property
    def n_layers_(self) -> int:
        """The number of layers, the input layer included."""
        return len(self._layers) + 1

    @property
    def n_outputs_(self) -> int:
        """n_L, the number of outputs of the net."""
        return self._layers[-1].out_features

    @property
    def best_loss_(self) -> float | None:
        """The smallest loss of an epoch; None with early stopping, which uses ``best_validation_score_``."""
        return min(self.loss_curve_, default=math.inf) if self.validation_scores_ is None else None

    # --- training ---

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Train until the loss, or with early stopping the score, no longer improves, or ``max_iter`` is reached.

        Args:
            X: Inputs, [N, n_0], dense and finite.
            y: Labels, [N]; for a regressor numbers, [N] or [N, n_L].
            sample_weight: The weight of each row, [N], at least 0: the loss of a batch is Σ w c / Σ w, as in
                scikit-learn, and a weight of k counts as k equal rows; scaling and the score of early stopping are
                weighted too. A row of weight 0 counts nowhere. In batches of one row weights cancel.

        Returns:
            The estimator.

        Raises:
            UserError: If a parameter or the data cannot be used, or the loss or a weight is no longer finite.
        """
        self._check_parameters()
        first = not (self.warm_start and hasattr(self, "model_"))
        self._train(X, y, first, max_iter=self.max_iter or AUTO, sample_weight=sample_weight)
        self._optimizer = None  # a finished fit keeps its weights, and no momentum buffers
        return self

    def _partial_fit(
        self, X: ArrayLike, y: ArrayLike, classes: ArrayLike | None, sample_weight: ArrayLike | None
    ) -> Self:
        """Train one epoch on these rows, with the scaling of the first call and the momentum of the last."""
        self._check_parameters()
        if self.early_stopping:
            raise UserError("partial_fit does not support early_stopping=True: it always trains one epoch")
        self._train(X, y, not hasattr(self, "model_"), classes=classes, sample_weight=sample_weight)
        return self

    def _train(
        self,
        X: Any,
        y: Any,
        first: bool,
        *,
        classes: Any = None,
        max_iter: int | None = None,
        sample_weight: Any = None,
    ) -> None:
        """Train a new model or, if not ``first``, the present one, until it converges; one epoch if no ``max_iter``."""
        if first or max_iter is not None:
            # None draws from a generator of its own, where scikit-learn would use NumPy's global one.
            own = np.random.RandomState() if self.random_state is None else self.random_state
            self._random, self._optimizer = check_random_state(own), None
        x, y = self._validated(self._encoded(X, first, sample_weight), y, first, classes)
        x, y, weights = self._weighted(x, y, sample_weight)
        w_held = None
        if self.early_stopping:
            parts = [x, y] if weights is None else [x, y, weights]
            x, x_held, y, y_held, *of_weights = train_test_split(
                *parts, stratify=y if is_classifier(self) else None,
                test_size=self.validation_fraction, random_state=self._random,
            )  # fmt: skip
            weights, w_held = of_weights or (None, None)
            if len(x_held) < 2:
                raise UserError(f"validation_fraction={self.validation_fraction} leaves 1 row to validate on: use more")
        if first:
            self._make_model(x, y, weights)
        else:
            self._check_model_parameters()
        inputs, targets = self._inputs(x), self._targets(y)
        held_out = (self._inputs(x_held), self._targets(y_held), w_held) if self.early_stopping else None
        row_weights = None if weights is None else self._row_weights(y, weights, all_rows=max_iter is not None)
        loss_function = self._loss(y, all_rows=max_iter is not None, by_row=weights is not None)
        generator = torch.Generator().manual_seed(self._draw_seed()) if self.shuffle else None
        batch_size = self._clipped_batch_size(len(x))
        if max_iter == AUTO:
            max_iter = usual_epochs(math.ceil(len(x) / batch_size))
        trainer = self._make_trainer(loss_function, batch_size, (max_iter or 1) * math.ceil(len(x) / batch_size))
        schedule = TrainConfig(lr_schedule=self.learning_rate if max_iter else "constant", epochs=max_iter or 1)
        stops = self.learning_rate == "constant" or held_out is not None
        self.validation_scores_ = None if held_out is None else self.validation_scores_ or []
        self.best_validation_score_, self.n_iter_ = None, 0
        best, since = math.inf, 0  # the lowest cost, and the epochs since then
        best_weights = copy.deepcopy(self.model_.state_dict())
        try:
            with set_threads(self._threads(batch_size, self.engine_)):
                for epoch in range(1, (max_iter or 1) + 1):
                    for group in trainer.optimizer.param_groups:
                        group["lr"] = self.learning_rate_init * schedule.lr_factor(epoch - 1)
                    loss = trainer.epoch(
                        inputs, targets, batch_size, generator=generator, sample_weight=row_weights
                    ).item()
                    self._check_finite(math.isfinite(loss), f"the loss of epoch {epoch}")
                    self.n_iter_, self.loss_ = epoch, loss
                    self.loss_curve_.append(loss)
                    self._print(f"Iteration {epoch}, loss = {loss:.8f}")
                    cost = loss if held_out is None else -self._validation_score(*held_out)
                    since = since + 1 if cost > best - self.tol else 0
                    if cost < best:
                        best = cost
                        if held_out is not None:
                            best_weights, self.best_validation_score_ = copy.deepcopy(self.model_.state_dict()), -cost
                    if stops and since > self.n_iter_no_change:
                        self._print(f"No improvement by more than tol={self.tol} for {since} epochs. Stopping.")
                        break
                else:
                    if max_iter is not None and self.learning_rate == "constant":
                        message = (
                            f"max_iter={max_iter} reached and training has not converged: increase max_iter or tol"
                        )
                        warnings.warn(message, ConvergenceWarning, stacklevel=3)
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.", stacklevel=3)
        if held_out is not None:
            self.model_.load_state_dict(best_weights)
        self._check_finite(all(bool(p.isfinite().all()) for p in self.model_.parameters()), "a weight")

    def _encoded(self, X: Any, first: bool, sample_weight: Any) -> Any:
        """Return the inputs of a table that is more than finite numbers; others as they are."""
        if first:
            self.table_encoder_ = None
            if needs_encoding(X):
                weights = None if sample_weight is None else _row_weights(sample_weight, len(frame_table(X).table))
                self.table_encoder_, encoded = TableEncoder.fit(X, weights)
                if line := self.table_encoder_.tell():
                    warnings.warn(line, stacklevel=4)
                return encoded
        encoder = self._table_encoder
        return X if encoder is None else encoder.encode(X, type(self).__name__)

    @property
    def _table_encoder(self) -> TableEncoder | None:
        return getattr(self, "table_encoder_", None)  # an estimator that was pickled by version 0.1 has none

    def _checked(self, X: Any, y: Any, first: bool, **options: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return inputs and targets as arrays; of a table the inputs that its columns become."""
        if not isinstance(X, EncodedTable):
            x, y = validate_data(self, X, y, reset=first, multi_output=True, **options, **DENSE)
            return x, y
        encoder = self._table_encoder
        assert encoder is not None
        x, y = check_X_y(X.x, y, multi_output=True, estimator=self, **options, **DENSE)
        self.n_features_in_, self.feature_names_in_ = len(encoder.names), np.array(encoder.names, dtype=object)
        return x, y

    def _weighted(
        self, x: NDArray[Any], y: NDArray[Any], sample_weight: Any
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float64] | None]:
        """Return the rows of a weight above 0, and the weights with mean 1; None if they are equal."""
        if sample_weight is None:
            return x, y, None
        weights = _row_weights(sample_weight, len(x))
        counts = weights > 0
        x, y, weights = x[counts], y[counts], weights[counts]
        if (weights == weights[0]).all():
            return x, y, None
        if self.batch_size == 1:
            warnings.warn("batch_size=1: the weight of a row cancels in a batch of one", stacklevel=4)
        return x, y, weights / weights.mean()

    def _row_weights(self, y: NDArray[Any], weights: NDArray[np.float64], all_rows: bool) -> Tensor:
        """Return the weight of each row in the loss, on the device, those of classes included."""
        like, products = self._layers[0].weight, weights * self._class_factors(y, weights, all_rows)
        least = torch.finfo(like.dtype).tiny
        return torch.from_numpy(products / products.mean()).to(like.device, like.dtype).clamp(min=least)

    def _make_model(self, x: NDArray[Any], y: NDArray[Any], weights: NDArray[np.float64] | None) -> None:
        """Fit the scaling, and draw the initial weights."""
        sizes = [x.shape[1], *self._hidden(), self._fit_targets(y, weights)]
        device, activation = self._device(), ALIASES.get(self.activation, self.activation)
        self.input_scaling_ = _without_indicators(self._scaling(x, weights), x)
        with _drawing, torch.random.fork_rng(devices=[]):  # leaves the caller's generator as it was
            torch.default_generator.manual_seed(self._draw_seed())
            model = MLP(sizes, activation, init=self.init, dtype=DTYPES[self.dtype])
        self.model_ = model.to(device)  # drawn on the CPU: the same seed gives the same weights on every device
        self.out_activation_, self._made_by = self._output, self._model_parameters()
        self.loss_curve_, self.validation_scores_ = [], None

    def _check_model_parameters(self) -> None:
        now = self._model_parameters()
        for name, before in self._made_by.items():
            if now[name] != before:
                raise UserError(f"{name} of a trained model cannot change from {before!r} to {now[name]!r}")

    def _validation_score(self, inputs: Tensor, targets: Tensor, weights: NDArray[np.float64] | None) -> float:
        """Return the score on the rows held out, and append it to ``validation_scores_``."""
        with torch.no_grad():
            outputs = self.model_(inputs)
        self._check_finite(bool(outputs.isfinite().all()), "an output")
        score = self._score(outputs, targets, weights)
        self.validation_scores_ = [*(self.validation_scores_ or []), score]
        self._print(f"Validation score: {score:.6f}")
        return score

    def _check_finite(self, finite: bool, name: str) -> None:
        """Delete a model that has diverged, and raise a UserError."""
        if finite:
            return
        del self.model_  # a model that predicts NaN only is not fitted
        remedy = f"lower learning_rate_init={self.learning_rate_init}" + ("" if self.standardize else " or standardize")
        raise UserError(f"training has diverged: {name} is non-finite; {remedy}")

    def _print(self, line: str) -> None:
        if self.verbose:
            print(line)

    # --- from parameters and arrays to tensors ---

    def _draw_seed(self) -> int:
        return int(self._random.randint(2**31))

    def _clipped_batch_size(self, rows: int) -> int:
        batch_size = min(BATCH, rows) if self.batch_size == "auto" else int(self.batch_size)
        if batch_size > rows:
            warnings.warn(f"batch_size={batch_size} is clipped to the {rows} rows there are", stacklevel=4)
        return min(batch_size, rows)

    def _threads(self, rows: int, engine: str = "explicit") -> int:
        sizes = [self._layers[0].in_features, *[layer.out_features for layer in self._layers]]
        return pick_threads("auto", sizes, rows, engine)

    def _make_optimizer(self) -> SGD:
        """Return SGD with the present parameters; weights decay, biases do not."""
        if self._optimizer is None:
            weights, biases = [layer.weight for layer in self._layers], [layer.bias for layer in self._layers]
            self._optimizer = SGD([{"params": weights}, {"params": biases}])
        for group, decay in zip(self._optimizer.param_groups, (self.weight_decay, 0.0), strict=True):
            group["lr"], group["momentum"], group["weight_decay"] = self.learning_rate_init, self.momentum, decay
            group["nesterov"] = self.nesterovs_momentum and self.momentum > 0
        return self._optimizer

    def _make_trainer(self, loss: LossLike, batch_size: int, steps: int) -> ExplicitTrainer:
        """Return a compiled trainer for a long fit where there is a compiler, else an explicit one."""
        optimizer, self.engine_ = self._make_optimizer(), "explicit"
        if compiled_serves(self.model_, batch_size, steps):
            with suppress(UserError):  # no compiler, or softmax as an activation
                trainer = CompiledTrainer(self.model_, loss, optimizer)
                self.engine_ = "compiled"
                return trainer
        return ExplicitTrainer(self.model_, loss, optimizer)

    def _scaling(self, columns: NDArray[Any], weights: NDArray[np.float64] | None) -> Scaling:
        if not self.standardize:
            return Scaling.identity(columns.shape[1])
        return Scaling.standard(as_tensor(columns), None if weights is None else as_tensor(weights))

    def _inputs(self, x: NDArray[Any], like: Tensor | None = None) -> Tensor:
        """Return standardised inputs, with dtype and device of the model's weights by default."""
        like = self._layers[0].weight if like is None else like
        inputs = self.input_scaling_.apply(as_tensor(x)).to(like.device, like.dtype)
        if not bool(inputs.isfinite().all()):
            row, column = (~inputs.isfinite()).nonzero()[0].tolist()
            raise self._too_large(x, row, column, f"does not fit in {str(like.dtype)[6:]}, standardised or not")
        return inputs

    def _too_large(self, x: NDArray[Any], row: int, column: int, problem: str) -> UserError:
        encoder = self._table_encoder
        names = getattr(self, "feature_names_in_", None) if encoder is None else encoder.encoding.names
        where = f"column {column}" if names is None else f"column {names[column]!r}"
        return UserError(f"X, row {row}, {where}: {x[row, column]:g} {problem}: correct it, or leave the row out")

    def _net(self) -> MLP:
        """Return the net that predicts."""
        return self.model_

    def _outputs(self, X: ArrayLike) -> Tensor:
        """Return z^L, [N, n_L], on the CPU."""
        check_is_fitted(self)
        encoded, net = self._encoded(X, False, None), self._net()
        x = encoded.x if isinstance(encoded, EncodedTable) else validate_data(self, X, reset=False, **DENSE)
        with torch.no_grad(), set_threads(self._threads(len(x))):
            inputs = self._inputs(x, like=next(net.parameters()))
            outputs: Tensor = net(inputs).cpu()
        if not bool(outputs.isfinite().all()):
            row = int((~outputs.isfinite()).nonzero()[0, 0])
            problem = "is so large that the outputs of the net are not finite"
            raise self._too_large(x, row, int(inputs[row].abs().argmax()), problem)
        return outputs


def _without_indicators(scaling: Scaling, x: NDArray[Any]) -> Scaling:
    """Leave columns of only 0 and 1 as they are, as one-hot columns of a table: a rare 1 would become very large."""
    is_indicator = torch.from_numpy(((x == 0) | (x == 1)).all(axis=0))
    return Scaling(scaling.mean.masked_fill(is_indicator, 0.0), scaling.scale.masked_fill(is_indicator, 1.0))


def as_tensor(array: NDArray[Any]) -> Tensor:
    """Return an array as a tensor that is only read."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())  # PyTorch warns of read-only arrays


def _row_weights(sample_weight: Any, rows: int) -> NDArray[np.float64]:
    """Return weights of rows as an array [N], the largest of them 1."""
    try:
        weights = np.asarray(sample_weight, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"sample_weight must be one number for each row, [{rows}]: {error}") from error
    if weights.shape != (rows,):
        raise UserError(f"sample_weight must be one number for each row, [{rows}], got {list(weights.shape)}")
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        at = int(bad.argmax())
        raise UserError(f"sample_weight must be finite and at least 0, got {weights[at]} in row {at + 1}")
    if not weights.any():
        raise UserError("sample_weight is zero for every row: there is nothing to learn from")
    scaled: NDArray[np.float64] = weights / weights.max()
    return scaled
