"""A trained net with the preprocessing that it was trained with: data in as people have it, classes or numbers out."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deltaprop.data import Encoding, Scaling
from deltaprop.data.columns import Missing
from deltaprop.errors import UserError, unknown_name
from deltaprop.inference.inputs import InputBlocks, Preprocessing, blocks_of
from deltaprop.nn.modules import MLP
from deltaprop.training.config import TrainConfig
from deltaprop.training.devices import pick_device
from deltaprop.training.load_run import WEIGHTS, read_run
from deltaprop.training.objective import Objective, choose_objective, losses

Array = NDArray[Any]


def load(run: str | Path, weights: str = "final", *, device: str = "cpu") -> Model:
    """Return the model of a run; its data need not be there any more.

    Args:
        run: The folder of the run.
        weights: ``"final"``, or ``"best"`` for those of the lowest validation loss.
        device: Where it computes.

    Raises:
        UserError: If the folder holds no run that has ended, or its files are damaged. Nothing is unpickled.

    Example:
        >>> import tempfile
        >>> from deltaprop.training import TrainConfig, train
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = TrainConfig(data="xor", hidden=(8,), epochs=20, log_every=0, run_dir=Path(folder) / "run")
        ...     model = load(train(config).folder)
        >>> model.predict(np.array([[1.0, 1.0], [1.0, -1.0]])).tolist()
        ['same sign', 'opposite sign']
    """
    if weights not in WEIGHTS:
        raise unknown_name("weights", weights, WEIGHTS)
    folder = Path(run)
    config, resolved, state = read_run(folder, weights)
    try:
        return _made(config, resolved, state, pick_device(device))
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:  # a UserError is a ValueError
        message = str(error) if isinstance(error, UserError) else f"damaged: {type(error).__name__}: {error}"
        raise UserError(f"{folder / 'config.json'}: {message}") from error


def _made(config: TrainConfig, resolved: dict[str, Any], state: dict[str, Tensor], device: torch.device) -> Model:
    """Return the model of what was read of a run."""
    sizes, names, task = resolved["sizes"], resolved["class_names"], resolved["task"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len({*names}) != len(names):
        raise UserError("damaged: its class names")
    columns = resolved.get("columns")
    encoding = None if columns is None else Encoding.from_json(columns)
    outputs = sizes[-1] if task == "regression" else 1 if config.one_logit else len(names)
    inputs = sizes[0] if encoding is None else len(encoding)
    if task not in ("classification", "regression") or (inputs, outputs) != (sizes[0], sizes[-1]):
        raise UserError(f"damaged: its net is of {sizes}, its columns of {inputs} inputs, its targets of {outputs}")
    shape, weights = resolved.get("image_shape"), resolved.get("class_weights")
    dtype = next(iter(state.values())).dtype
    if resolved["loss"] not in losses():
        raise UserError(f"damaged: its loss {resolved['loss']!r}")
    objective = choose_objective(
        resolved["loss"], task, len(names), config.output_activation, one_logit=config.one_logit,
        class_weights=None if weights is None else torch.tensor(weights, dtype=dtype),
    )  # fmt: skip
    output = None if config.output_activation == "none" else config.output_activation
    net = MLP(sizes, config.activations, output, device="meta", dtype=dtype)
    net.load_state_dict(state, assign=True)
    return Model(
        net=net.to(device).eval(),
        objective=objective,
        class_names=tuple(names),
        encoding=encoding,
        image_shape=None if shape is None else (int(shape[0]), int(shape[1])),
        input_scaling=_scaling(resolved["input_scaling"], inputs),
        target_scaling=_scaling(resolved["target_scaling"], sizes[-1] if task == "regression" else 1),
        missing=config.missing,
        config=config,
    )


def _scaling(found: Any, n: int) -> Scaling:
    """Return a scaling of n columns from what config.json has of it."""
    parts = []
    for name in ("mean", "scale"):
        given = torch.tensor(found[name], dtype=torch.float64)
        if given.dim() > 1 or (given.dim() == 1 and len(given) != n) or not given.isfinite().all():
            raise UserError(f"damaged: a scaling of {list(given.shape)} for {n} columns, or not finite")
        parts.append(given.expand(n).clone())
    if not (parts[1] > 0).all():
        raise UserError("damaged: a scaling by 0 or less")
    return Scaling(*parts)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Model:
    """A trained net with its preprocessing.

    Data may be a file (a table, ``.npz`` or ``.npy``), a NumPy array or tensor [N, …] with the inputs in the order of
    the training data, a dict of columns, or whatever has columns with names and speaks Arrow: a table of pyarrow,
    polars or pandas. Columns are found by their names, in any order, and others are left alone.

    Attributes:
        net: The :class:`~deltaprop.MLP`: scaled inputs to outputs.
        objective: Its loss, which says what outputs mean.
        class_names: One per class; empty for numbers.
        encoding: What the columns of a table become; None where it was trained on arrays.
        image_shape: (rows, columns) where each sample is a picture.
        input_scaling: Of the encoded inputs.
        target_scaling: Of the targets, for numbers.
        missing: What was done about missing cells.
        config: That it was trained by.
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

    def __repr__(self) -> str:
        """Return the net, what it was trained on and what it predicts, in one line."""
        sizes = [module.out_features for module in self.net if isinstance(module, nn.Linear)]
        what = f"{len(self.class_names)} classes" if self.class_names else "numbers"
        return (
            f"<Model {'-'.join(map(str, [self.net[0].in_features, *sizes]))} of {what}, trained on {self.config.data}>"
        )

    @property
    def task(self) -> str:
        """``"classification"`` or ``"regression"``."""
        return self.objective.task

    @property
    def classes(self) -> Array:
        """The classes, [C], in the order of probabilities: whole numbers where all are such, else text."""
        if all(re.fullmatch(r"0|-?[1-9][0-9]{0,17}", name) for name in self.class_names):  # that int64 holds
            return np.array([int(name) for name in self.class_names], dtype=np.int64)
        return np.array(self.class_names)

    @property
    def target_names(self) -> tuple[str, ...]:
        """The names of what is predicted; of arrays, which have none, y."""
        if self.encoding is not None:
            return self.encoding.targets
        outputs = len(self.target_scaling.mean)
        return ("y",) if outputs == 1 else tuple(f"y{number + 1}" for number in range(outputs))

    def predict(self, data: Any) -> Array:
        """Return the class of each row, [N], or its numbers, [N] or [N, k], in the units of the training data.

        Args:
            data: See the class.

        Raises:
            UserError: If a column is not there, or a cell does not fit.
        """
        outputs = self.outputs(data)
        if self.task == "classification":
            found: Array = self.classes[self.objective.decide(outputs).cpu().numpy()]
            return found
        values: Array = self.in_units(outputs).cpu().numpy()
        return values[:, 0] if values.shape[1] == 1 else values

    def predict_proba(self, data: Any) -> Array:
        """Return the probability of each class, [N, C], in the order of ``classes``.

        Raises:
            UserError: If the model has none: it predicts numbers, or its loss is none of probabilities.
        """
        self.check_has_probabilities()
        probabilities: Array = self.objective.probabilities(self.outputs(data)).cpu().numpy()
        return probabilities

    def check_has_probabilities(self) -> None:
        """Refuse to give probabilities where there are none.

        Raises:
            UserError: If there are none.
        """
        if not self.objective.has_probabilities:
            what = "numbers" if self.task == "regression" else f"by the loss {self.objective.name}"
            raise UserError(f"the model was trained on {what}: it has no probabilities")

    def outputs(self, data: Any) -> Tensor:
        """Return a^L of each row, [N, n_L], as the loss takes it."""
        blocks = self.blocks(data)
        found = [self.feed(x) for x in blocks.inputs()]
        for line in blocks.warnings:
            warnings.warn(line, stacklevel=3)
        return torch.cat(found) if found else self._no_outputs()

    def _no_outputs(self) -> Tensor:
        """Return the outputs of no rows."""
        weight = next(self.net.parameters())
        return self.feed(weight.new_empty(0, len(self.input_scaling.mean)))

    @torch.no_grad()
    def feed(self, x: Tensor) -> Tensor:
        """Return a^L of scaled inputs, [N, n_L]."""
        weight = self.net[0].weight
        assert isinstance(weight, Tensor)
        outputs: Tensor = self.net(x.to(weight.device))
        return outputs

    def in_units(self, outputs: Tensor) -> Tensor:
        """Return outputs that stand for numbers in the units of the training data, float64."""
        return self.target_scaling.invert(outputs.double().cpu())

    def blocks(self, data: Any, **how: Any) -> InputBlocks:
        """Return the rows of data, block by block, as the net takes them."""
        weight = self.net[0].weight
        assert isinstance(weight, Tensor)
        steps = Preprocessing(self.encoding, self.input_scaling, weight.dtype, self.missing)
        return blocks_of(data, steps, **{"delimiter": self.config.delimiter, **how})
