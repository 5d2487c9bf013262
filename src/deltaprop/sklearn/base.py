"""What the classifier and the regressor have in common: a model, its training, and what a fitted estimator shows.

Shapes: X [N, n_0], y [N] or [N, n_L]; ``coefs_[l − 1]`` is W^l as scikit-learn has it, [n_{l−1}, n_l].
"""
# ruff: noqa: N803  # X is scikit-learn's name, and users may give it by keyword

from __future__ import annotations

import math
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from deltaprop.data import Scaling
from deltaprop.errors import UserError
from deltaprop.explicit import ExplicitTrainer
from deltaprop.nn.modules import MLP
from deltaprop.optim import SGD
from deltaprop.sklearn.parameters import ALIASES, DTYPES, Parameters
from deltaprop.training.devices import pick_threads, set_threads

DENSE = {"dtype": [np.float64, np.float32], "order": "C"}  # X stays in one of these, and becomes the first else
_drawing = threading.Lock()  # initial weights come from PyTorch's one global generator, and fits may run in threads


class MLPEstimator(Parameters, ABC):
    """An MLP that is trained as scikit-learn's estimators are; a subclass says what its targets are."""

    _output: ClassVar[str]  # what makes of z^L what is told, as ``out_activation_`` names it
    _made_by: dict[str, Any]
    _optimizer: SGD | None

    @abstractmethod
    def _validated(self, X: Any, y: Any, first: bool, classes: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return inputs, and targets as :meth:`_targets` takes them."""

    @abstractmethod
    def _begin_targets(self, y: NDArray[Any]) -> int:
        """Fit what is fitted on targets; return n_L."""

    @abstractmethod
    def _targets(self, y: NDArray[Any]) -> Tensor:
        """Return the targets that the loss takes, on the device."""

    @abstractmethod
    def _loss(self, y: NDArray[Any], all_rows: bool) -> str | Callable[..., Tensor]:
        """Return the loss; ``all_rows`` says whether these targets are all that there will be."""

    @abstractmethod
    def _strata(self, y: NDArray[Any]) -> NDArray[Any] | None:
        """Return the groups to hold rows out of in proportion."""

    @abstractmethod
    def _score(self, outputs: Tensor, targets: Tensor) -> float:
        """Return how good outputs are; the higher the better."""

    # --- what a fitted estimator shows ---

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
        """How many layers there are, the inputs counted as one."""
        return len(self._layers) + 1

    @property
    def n_outputs_(self) -> int:
        """n_L, how many numbers the net gives."""
        return self._layers[-1].out_features

    @property
    def best_loss_(self) -> float | None:
        """The smallest loss of an epoch; None with early stopping, which goes by ``best_validation_score_``."""
        return min(self.loss_curve_, default=math.inf) if self.validation_scores_ is None else None

    # --- training ---

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train until the loss, or with early stopping the score, no longer improves, or ``max_iter`` is reached.

        Args:
            X: Inputs, [N, n_0], dense and finite.
            y: Labels, [N]; of a regressor numbers, [N] or [N, n_L].

        Returns:
            The estimator.

        Raises:
            UserError: If a parameter or the data cannot be used, or the loss or a weight is no longer a finite number.
        """
        self._check_parameters()
        first = not (self.warm_start and hasattr(self, "model_"))
        self._random, self._optimizer = _random_state(self.random_state), None
        inputs, targets = self._validated(X, y, first, None)
        held_out: tuple[NDArray[Any], NDArray[Any]] | None = None
        if self.early_stopping:
            inputs, x_held, targets, y_held = train_test_split(
                inputs, targets, stratify=self._strata(targets),
                test_size=self.validation_fraction, random_state=self._random,
            )  # fmt: skip
            if len(x_held) < 2:
                raise UserError(
                    f"validation_fraction={self.validation_fraction} leaves 1 row to validate on: take more"
                )
            held_out = x_held, y_held
        self._begin(inputs, targets, first)
        self._train(inputs, targets, self.max_iter, held_out)
        self._optimizer = None  # a finished fit keeps its weights, and no velocities
        return self

    def _partial_fit(self, X: ArrayLike, y: ArrayLike, classes: ArrayLike | None = None) -> Self:
        """Take one epoch over these rows, with the scaling of the first call and the velocities of the last."""
        self._check_parameters()
        if self.early_stopping:
            raise UserError("partial_fit does not support early_stopping=True: it takes one epoch, whatever its score")
        first = not hasattr(self, "model_")
        if first:
            self._random, self._optimizer = _random_state(self.random_state), None
        inputs, targets = self._validated(X, y, first, classes)
        self._begin(inputs, targets, first)
        self._train(inputs, targets, None, None)
        return self

    def _begin(self, x: NDArray[Any], y: NDArray[Any], first: bool) -> None:
        """Fit the scaling and make a model; or see that those there are still fit.

        Raises:
            UserError: If they do not.
        """
        shaping = self._shaping()
        if not first:
            for name, was in self._made_by.items():
                if shaping[name] != was:
                    raise UserError(f"{name} of a trained model cannot change from {was!r} to {shaping[name]!r}")
            return
        sizes = [x.shape[1], *self._hidden(), self._begin_targets(y)]
        device, activation = self._device(), ALIASES.get(self.activation, self.activation)
        self.input_scaling_ = self._scaling(x)
        with _drawing, torch.random.fork_rng(devices=[]):  # the caller's generator is not ours to move
            torch.default_generator.manual_seed(self._draw_seed())
            model = MLP(sizes, activation, init=self.init, dtype=DTYPES[self.dtype])
        self.model_ = model.to(device)  # drawn on the CPU: the same seed gives the same weights on every device
        self.out_activation_, self._made_by = self._output, shaping
        self.loss_curve_: list[float] = []
        self.validation_scores_: list[float] | None = None

    def _train(
        self,
        x: NDArray[Any],
        y: NDArray[Any],
        max_iter: int | None,
        held_out: tuple[NDArray[Any], NDArray[Any]] | None,
    ) -> None:
        """Take epochs until there is a reason to stop; without ``max_iter`` a single one."""
        inputs, targets = self._inputs(x), self._targets(y)
        held = None if held_out is None else (self._inputs(held_out[0]), self._targets(held_out[1]))
        loss_function = self._loss(y, all_rows=max_iter is not None)
        trainer = ExplicitTrainer(self.model_, loss_function, self._tuned_optimizer())
        generator = torch.Generator().manual_seed(self._draw_seed()) if self.shuffle else None
        batch = self._rows_a_step(len(x))
        self.validation_scores_ = None if held is None else self.validation_scores_ or []
        self.best_validation_score_: float | None = None
        self.n_iter_ = 0
        best, since, kept = math.inf, 0, _copied(self.model_)  # the least cost, epochs since it, the weights to keep
        try:
            with set_threads(self._threads(batch)):
                for epoch in range(1, (max_iter or 1) + 1):
                    loss = trainer.epoch(inputs, targets, batch, generator=generator).item()
                    self._check_finite(math.isfinite(loss), f"the loss of epoch {epoch}")
                    self.n_iter_, self.loss_ = epoch, loss
                    self.loss_curve_.append(loss)
                    self._say(f"Iteration {epoch}, loss = {loss:.8f}")
                    cost = loss if held is None else -self._judge(*held)
                    since = since + 1 if cost > best - self.tol else 0
                    if cost < best:
                        best = cost
                        if held is not None:
                            kept, self.best_validation_score_ = _copied(self.model_), -cost
                    if since > self.n_iter_no_change:
                        self._say(f"No progress of tol={self.tol} in {since} epochs. Stopping.")
                        break
                else:
                    if max_iter is not None:
                        message = f"max_iter={max_iter} reached and training has not converged: raise it, or tol"
                        warnings.warn(message, ConvergenceWarning, stacklevel=3)
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.", stacklevel=3)
        if held is not None:
            self.model_.load_state_dict(kept)
        self._check_finite(all(bool(p.isfinite().all()) for p in self.model_.parameters()), "a weight")

    def _judge(self, inputs: Tensor, targets: Tensor) -> float:
        """Return the score on the rows held out, and note it."""
        with torch.no_grad():
            outputs = self.model_(inputs)
        self._check_finite(bool(outputs.isfinite().all()), "an output")
        score = self._score(outputs, targets)
        self.validation_scores_ = [*(self.validation_scores_ or []), score]
        self._say(f"Validation score: {score:.6f}")
        return score

    def _check_finite(self, finite: bool, what: str) -> None:
        """Give up a model that has diverged.

        Raises:
            UserError: If it has.
        """
        if finite:
            return
        del self.model_  # what predicts nothing but NaN is not fitted
        calmer = f"lower learning_rate_init={self.learning_rate_init}" + ("" if self.standardize else " or standardize")
        raise UserError(f"training has diverged: {what} is non-finite; {calmer}")

    def _say(self, line: str) -> None:
        if self.verbose:
            print(line)

    # --- from parameters and arrays to what trains ---

    def _draw_seed(self) -> int:
        return int(self._random.randint(2**31))

    def _rows_a_step(self, rows: int) -> int:
        if self.batch_size == "auto":
            return min(200, rows)
        batch = int(self.batch_size)
        if batch > rows:
            warnings.warn(f"batch_size={batch} is clipped to the {rows} rows there are", stacklevel=4)
        return min(batch, rows)

    def _threads(self, rows: int) -> int:
        return pick_threads(
            "auto", [self._layers[0].in_features, *[layer.out_features for layer in self._layers]], rows
        )

    def _tuned_optimizer(self) -> SGD:
        """Return SGD by what the parameters now say, on weights, which decay, and biases, which do not."""
        if self._optimizer is None:
            weights, biases = [layer.weight for layer in self._layers], [layer.bias for layer in self._layers]
            self._optimizer = SGD([{"params": weights}, {"params": biases}])
        for group, decay in zip(self._optimizer.param_groups, (self.weight_decay, 0.0), strict=True):
            group["lr"], group["momentum"], group["weight_decay"] = self.learning_rate_init, self.momentum, decay
            group["nesterov"] = self.nesterovs_momentum and self.momentum > 0
        return self._optimizer

    def _scaling(self, columns: NDArray[Any]) -> Scaling:
        return Scaling.standard(as_tensor(columns)) if self.standardize else Scaling.identity(columns.shape[1])

    def _inputs(self, x: NDArray[Any], like: Tensor | None = None) -> Tensor:
        """Return standardised inputs, of dtype and device of the model's weights or others."""
        like = self._layers[0].weight if like is None else like
        return self.input_scaling_.apply(as_tensor(x)).to(like.device, like.dtype)

    def _net(self) -> MLP:
        """Return the net that predicts."""
        return self.model_

    def _outputs(self, X: ArrayLike) -> Tensor:
        """Return z^L, [N, n_L], on the CPU."""
        check_is_fitted(self)
        x, net = validate_data(self, X, reset=False, **DENSE), self._net()
        with torch.no_grad(), set_threads(self._threads(len(x))):
            outputs: Tensor = net(self._inputs(x, like=next(net.parameters())))
        return outputs.cpu()


def _random_state(given: int | np.random.RandomState | None) -> np.random.RandomState:
    """Return a generator; for None one of its own, where scikit-learn would move NumPy's global one."""
    random: np.random.RandomState = np.random.RandomState() if given is None else check_random_state(given)
    return random


def as_tensor(array: NDArray[Any]) -> Tensor:
    """Return an array as a tensor that is only read."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())  # PyTorch warns of those it may not write


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
