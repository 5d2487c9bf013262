"""The setup of a run: its configuration resolved, with data, model, objective and device; nothing is written."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from deltaprop._version import __version__
from deltaprop.compiled import find_toolchain
from deltaprop.data import BUILTIN_LR, Dataset, Deformation, Fold, Scaling, check_source, load
from deltaprop.data.columns import Progress, silent
from deltaprop.data.digests import digestible_rows
from deltaprop.data.store import ROWS_AT_ONCE, Storage
from deltaprop.distributed import World
from deltaprop.epoch_state import EpochState
from deltaprop.errors import UserError, setting
from deltaprop.explicit.precision import check_precision
from deltaprop.nn.modules import MLP
from deltaprop.optim import SGD
from deltaprop.training.config import TrainConfig
from deltaprop.training.defaults import MOST_DEVIATIONS, TABLE_LR, is_own_table, resolve_auto
from deltaprop.training.devices import describe_device, fastest, physical_cores, pick_device, pick_threads, tune_threads
from deltaprop.training.engines import ENGINES, choose_engine
from deltaprop.training.objective import Objective, balanced, check_output_activation, choose_objective


@dataclass(frozen=True)
class Setup:
    """The setup of a run.

    Attributes:
        config: The configuration; what was auto and is learnt from the data is resolved.
        dataset: The data, split, scaled and on the device.
        model: The model, initialised and on the device.
        objective: The loss and the task.
        device: The device.
        threads: CPU threads.
        tuned: Seconds per step for each number of threads tried; empty unless threads were tuned.
        sizes: Layer sizes, [n_0, …, n_L].
        split_seed: Seed of the split and the initial weights; the configuration's, unless that was overridden later.
        cores: The most CPU threads that may be used: the number configured, else PyTorch's default.
        note: A line for the user, if the engine is not the one that was asked for.
        engine_asked: The engine asked for when the run began; without a compiler another trains.
        processes: How many share each batch.
    """

    config: TrainConfig
    dataset: Dataset
    model: MLP
    objective: Objective
    device: torch.device
    threads: int
    tuned: dict[int, float]
    sizes: list[int]
    split_seed: int
    cores: int
    note: str = ""
    engine_asked: str = ""
    processes: int = 1

    @property
    def storage(self) -> Storage:
        """How the rows are stored: in memory unless they are those of a large table."""
        return "memory" if self.dataset.table is None else self.dataset.table.storage

    @property
    def parts_at_once(self) -> int:
        """The number of parts to evaluate in parallel: two if training leaves cores unused.

        One for rows on disk, whose memory is limited, and which wait for the disk.
        """
        spare = self.cores // self.threads if self.device.type == "cpu" and self.storage == "memory" else 1
        return min(2, max(1, spare))

    @property
    def deformation(self) -> Deformation | None:
        """The augmentation of training pictures; None for none."""
        shape, kind = self.dataset.image_shape, self.config.augment
        return None if kind == "none" or shape is None else Deformation(kind, shape)

    def to_json(self) -> dict[str, Any]:
        """Return everything that defines the run, as in config.json."""
        dataset = self.dataset
        return {
            **self.config.to_json(),
            "resolved": {
                "loss": self.objective.name,
                "task": self.objective.task,
                "sizes": self.sizes,
                "device": describe_device(self.device),
                "engine_asked": self.engine_asked,
                "processes": self.processes,
                "threads": self.threads,
                "threads_tuned": self.tuned,
                "data_sha256": dataset.digest,
                "class_names": list(dataset.class_names),
                "classes_left_out": list(dataset.classes_left_out),
                "class_counts": None if dataset.task == "regression" else dataset.class_counts("train"),
                "class_weights": balanced_weights(self.config, dataset),
                "image_shape": None if dataset.image_shape is None else list(dataset.image_shape),
                "columns": None if dataset.table is None else dataset.table.encoding.to_json(),
                # The model's inputs are (x − mean) / scale, predictions are outputs · scale + mean.
                "input_scaling": _scaling_to_json(dataset.input_scaling),
                "target_scaling": _scaling_to_json(dataset.target_scaling),
                "storage": self.storage,
                "split_seed": self.split_seed,
                "weights": self.config.weights,
                "rows": dataset.rows,
                "row_digests": digestible_rows(dataset),
            },
            "versions": {
                "deltaprop": __version__,
                "torch": torch.__version__,
                "numpy": numpy.__version__,
                "scikit-learn": version("scikit-learn"),
                "python": platform.python_version(),
                "platform": platform.platform(),
                **(find_toolchain().to_json() if self.config.engine == "compiled" else {}),
            },
            "command": sys.argv,
        }


def prepare(
    config: TrainConfig,
    split_seed: int | None = None,
    *,
    check: Callable[[], None] | None = None,
    progress: Progress = silent,
    on_build: Callable[[], object] = lambda: None,
    storage: Storage | None = None,
    world: World | None = None,
) -> Setup:
    """Load the data and build the model; write nothing.

    Args:
        config: The configuration.
        split_seed: Seed of the split and the initial weights; the configuration's by default.
        check: Called now and then while threads are tuned; may raise to stop.
        progress: Called with (description, bytes done, total) while a table is read.
        on_build: Called if the compiled engine has to be built.
        storage: How to store the rows of a table; a resumed run needs its first storage for the same bits.
        world: The processes that share each batch. Those of a machine divide its cores, and each has a GPU of its own.

    Raises:
        UserError: If the configuration does not fit the data or the machine. Everything that can be checked without the
            data is checked before they are loaded.
    """
    config.validate()
    world = world or World()
    if config.folds and not config.fold:
        raise UserError(f"{setting('folds', config.folds)} is several models: `fold` names one of them")
    device = pick_device("cpu" if config.engine == "compiled" and config.device == "auto" else config.device, world)
    dtype = config.torch_dtype
    if device.type == "mps" and dtype == torch.float64:
        raise UserError("`dtype='float64'`: mps has no float64; take `device='cpu'`")
    check_precision(config.precision, device, dtype)
    if config.loss != "auto":
        check_output_activation(config.loss, config.output_activation)
    source, split_seed = config.source, config.seed if split_seed is None else split_seed
    check_source(source)
    dataset = load(
        replace(source, cache=replace(source.cache, progress=progress), storage=storage, world=world),
        seed=split_seed,
        test_fraction=Fold(config.fold, config.folds) if config.folds else config.test_fraction,
        val_fraction=config.val_fraction,
        val_split=config.val_split,
        scaling=config.scaling,
        pixel_scale=config.pixel_scale,
        dtype=dtype,
    ).to(device)
    if config.augment != "none":
        _check_augment(config, dataset)
    if config.lr == "auto":
        config = replace(config, lr=usual_lr(config, dataset))
    if not dataset.rows["val"]:
        _check_unvalidated(config)
    config = resolve_auto(config, dataset)
    weights = balanced_weights(config, dataset)
    objective = choose_objective(
        config.loss, dataset.task, len(dataset.class_names), config.output_activation, one_logit=config.one_logit,
        class_weights=None if weights is None else torch.tensor(weights, dtype=dtype, device=device),
    )  # fmt: skip
    sizes = [dataset.n_inputs, *config.hidden, 1 if config.one_logit else dataset.n_outputs]
    with torch.random.fork_rng(devices=[]):  # leave the caller's generator as it is
        torch.default_generator.manual_seed(split_seed)  # torch.manual_seed would seed the GPUs' generators too
        # Drawn on the CPU, so that the same seed gives the same initial weights on every device.
        model = _build_model(config, sizes).to(device)
    steps = config.total_epochs * math.ceil(dataset.rows["train"] / config.batch_size)
    engine, note = choose_engine(config.engine, model, objective, config.precision, config.batch_size, steps, on_build)
    asked, config = config.engine, replace(config, engine=engine)
    cores_here = max(1, physical_cores() // world.local_size)
    tuned = _tune(config, dataset, model, objective, check, cores_here) if config.threads == "tune" else {}
    rows = world.largest_share(config.batch_size)
    threads = fastest(tuned) if tuned else pick_threads(config.threads, sizes, rows, config.engine, world.local_size)
    cores = torch.get_num_threads() if config.threads in ("auto", "tune") else threads
    return Setup(
        config, dataset, model, objective, device, threads, tuned, sizes, split_seed, cores, note, asked, world.size
    )  # fmt: skip


def model_digest(config: TrainConfig, resolved: Mapping[str, Any]) -> str:
    """Return the SHA-256, as hex, of everything that defines a model besides its weights."""
    names = ("loss", "task", "sizes", "class_names", "class_weights", "image_shape", "columns", "split_seed")
    parts: list[Any] = [list(config.activations), config.output_activation, config.one_logit, config.missing]
    parts += [resolved.get(name) for name in (*names, "input_scaling", "target_scaling")]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def balanced_weights(config: TrainConfig, dataset: Dataset) -> list[float] | None:
    """Return the weight of each class in the loss; None if all are equal.

    Raises:
        UserError: If the targets are numbers.
    """
    if config.class_weight == "none":
        return None
    if dataset.task == "regression":
        raise UserError(f"{setting('class_weight', config.class_weight)}: the target is numeric, there are no classes")
    return balanced(dataset.class_counts("train"))


def _check_augment(config: TrainConfig, dataset: Dataset) -> None:
    name = setting("augment", config.augment)
    if dataset.image_shape is None:
        raise UserError(f"{name} is for pictures (IDX files, digits), and {dataset.name} has none")
    if not dataset.input_scaling.is_uniform or dataset.input_scaling.mean.any():
        # Pixels that are always empty in training have a scale of nearly 0, and deformed pictures may fill them.
        raise UserError(f"{name} needs the same scaling for all pixels: take `scaling='pixel'` or none")


def _build_model(config: TrainConfig, sizes: list[int]) -> MLP:
    """Return the model, or raise a UserError if its weights do not fit in memory."""
    try:
        return config.build_model(sizes)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and "allocate" not in str(error):
            raise
        gigabytes = sum(n_in * n_out for n_in, n_out in pairwise(sizes)) * config.torch_dtype.itemsize / 1e9
        net = "-".join(map(str, sizes))
        raise UserError(f"the weights of {net} take {gigabytes:.3g} GB, more memory than there is") from error


TUNING_STEPS = 8


def _tune(
    config: TrainConfig,
    dataset: Dataset,
    model: MLP,
    objective: Objective,
    check: Callable[[], None] | None,
    cores: int,
) -> dict[int, float]:
    """Return the seconds per step for each number of threads, measured on a copy of the model."""
    trial = copy.deepcopy(model)
    alone = {} if config.engine == "compiled" else {"world": World()}
    engine = ENGINES[config.engine](trial, objective, make_optimizer(trial, config), config.precision, **alone)
    rows = TUNING_STEPS * config.batch_size
    x = dataset.train.inputs(slice(rows))
    y = objective.targets(dataset.train.y[:rows], x.dtype)
    order = torch.arange(rows, device=x.device) % len(x)

    def take_steps() -> None:
        if check is not None:
            check()
        engine.train(x, y, order, config.batch_size, EpochState(x.new_zeros(())))

    timed = tune_threads(take_steps, cores)
    return {count: seconds / TUNING_STEPS for count, seconds in timed.items()}


def usual_lr(config: TrainConfig, dataset: Dataset) -> float:
    """Return the η that ``lr="auto"`` stands for.

    A built-in data set may have its own. For tables it was measured together with the values in
    :mod:`deltaprop.training.defaults`. On standardised columns with rare outliers, 0.05 with momentum 0.9 diverges, and
    so does 0.01 with targets that are numbers where some number is more than 50 deviations from its mean. The curvature
    of the loss along ∂C/∂W = δ aᵀ grows with ‖a‖², so that η falls with the square of the largest number, from 20
    deviations on. For classes |δ| ≤ 1/N, and 0.01 learns.
    """
    if not is_own_table(config.data, dataset):
        return BUILTIN_LR.get(config.data, 0.05)
    if dataset.task == "classification" or config.scaling not in ("auto", "standard"):
        return TABLE_LR
    return float(f"{TABLE_LR * min(1.0, (MOST_DEVIATIONS / max(farthest(dataset), MOST_DEVIATIONS)) ** 2):.2g}")


def farthest(dataset: Dataset) -> float:
    """Return the largest absolute value among inputs and targets of the training rows; the targets are numbers."""
    if dataset.grouped is not None:
        return dataset.grouped.farthest
    train = dataset.train
    found = [float(train.y.abs().max())]
    for start in range(0, len(train), ROWS_AT_ONCE):
        found.append(float(train.inputs(slice(start, start + ROWS_AT_ONCE)).abs().max()))
    return max(found)


def _check_unvalidated(config: TrainConfig) -> None:
    """Raise a UserError for settings that need validation rows, of which there are none."""
    for name, needs_rows, instead in (("patience", config.patience, 0), ("weights", config.weights == "best", "final")):
        if needs_rows:
            this, other = setting(name, getattr(config, name)), setting(name, instead)
            raise UserError(f"{this}: there are no rows to validate on: take {other}, or a larger `val_fraction`")


def make_optimizer(model: nn.Module, config: TrainConfig) -> SGD:
    """Return SGD with two parameter groups: weights, which decay, and biases, which decay only if configured."""
    groups: list[dict[str, Any]] = []
    for is_bias, decay in ((False, config.decay), (True, config.decay if config.decay_biases else 0.0)):
        params = [p for name, p in model.named_parameters() if name.endswith("bias") == is_bias]
        groups.append({"params": params, "weight_decay": decay})
    return SGD(groups, lr=config.rate, momentum=config.momentum, nesterov=config.nesterov)


def _scaling_to_json(scaling: Scaling) -> dict[str, float | list[float]]:
    """Return mean and scale: one number if all columns have the same, else a list."""

    def compact(values: Tensor) -> float | list[float]:
        found: list[float] = values.tolist()
        return found[0] if len(set(found)) == 1 else found

    return {"mean": compact(scaling.mean), "scale": compact(scaling.scale)}
