"""What a run is made of: its configuration brought together with its data, a model and a device; nothing is written."""

from __future__ import annotations

import copy
import hashlib
import json
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import numpy
import torch
from torch import nn

from deltaprop._version import __version__
from deltaprop.data import BUILTIN, Dataset, Deformation, Scaling, check_source, load
from deltaprop.data.columns import Progress, silent
from deltaprop.data.store import Storage
from deltaprop.epoch_state import EpochState
from deltaprop.errors import UserError, setting
from deltaprop.explicit.precision import check_precision
from deltaprop.nn.modules import MLP
from deltaprop.optim import SGD
from deltaprop.training.config import TrainConfig
from deltaprop.training.data_loader import DataLoader
from deltaprop.training.devices import (
    describe_device,
    fastest,
    physical_cores,
    pick_device,
    pick_threads,
    tune_threads,
)
from deltaprop.training.engines import ENGINES
from deltaprop.training.objective import Objective, balanced, check_output_activation, choose_objective
from deltaprop.training.run_folder import check_folder, default_folder


@dataclass(frozen=True)
class Setup:
    """What a run is made of, once its configuration has met its data.

    Attributes:
        config: The configuration.
        dataset: Split, scaled and on the device.
        model: On the device, initialised.
        objective: The loss and the task.
        device: Where it computes.
        threads: CPU threads.
        tuned: What they were chosen by: the seconds of a step at each number tried; empty unless they were tuned.
        sizes: [n_0, …, n_L].
        split_seed: Of the split and the initial weights; that of the configuration, unless it was overridden since.
        cores: The most CPU threads that it may take: the number given, else what PyTorch would take by itself.
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

    @property
    def storage(self) -> Storage:
        """How the rows are kept: always in memory where they are no table's."""
        return "memory" if self.dataset.table is None else self.dataset.table.storage

    @property
    def parts_at_once(self) -> int:
        """How many parts to evaluate at a time: two where steps take few threads and leave cores over.

        Of rows on the disk, one: the memory that they take is bounded, and they wait for the disk.
        """
        spare = self.cores // self.threads if self.device.type == "cpu" and self.storage == "memory" else 1
        return min(2, max(1, spare))

    @property
    def deformation(self) -> Deformation | None:
        """What deforms the pictures that are trained on; None for as they are."""
        shape = self.dataset.image_shape
        if self.config.augment == "none" or shape is None:
            return None
        return Deformation(self.config.augment, shape)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What takes raw data to the net's inputs and its outputs to what people read, as config.json has it."""
        dataset = self.dataset
        return {
            "class_names": list(dataset.class_names),
            "class_weights": class_weights(self.config, dataset),
            "image_shape": None if dataset.image_shape is None else list(dataset.image_shape),
            "columns": None if dataset.table is None else dataset.table.encoding.to_json(),
            # Raw inputs become the network's by (x − mean) / scale, its outputs targets by · scale + mean.
            "input_scaling": _scaling_to_json(dataset.input_scaling),
            "target_scaling": _scaling_to_json(dataset.target_scaling),
        }

    def to_json(self) -> dict[str, Any]:
        """Return everything that defines the run, as config.json has it."""
        return {
            **self.config.to_json(),
            "resolved": {
                "loss": self.objective.name,
                "task": self.objective.task,
                "sizes": self.sizes,
                "device": describe_device(self.device),
                "threads": self.threads,
                "threads_tuned": self.tuned,
                "data_sha256": self.dataset.digest,
                **self.preprocessing,
                "storage": self.storage,
                "split_seed": self.split_seed,
                "rows": {part: len(getattr(self.dataset, part)) for part in ("train", "val", "test")},
            },
            "versions": {
                "deltaprop": __version__,
                "torch": torch.__version__,
                "numpy": numpy.__version__,
                "scikit-learn": version("scikit-learn"),
                "python": platform.python_version(),
                "platform": platform.platform(),
            },
            "command": sys.argv,
        }


def prepare(
    config: TrainConfig,
    split_seed: int | None = None,
    *,
    going_on: bool = False,
    check: Callable[[], None] | None = None,
    progress: Progress = silent,
    storage: Storage | None = None,
) -> Setup:
    """Load the data and build the model; write nothing.

    Args:
        config: The configuration.
        split_seed: Of the split and the initial weights; the configuration's by default.
        going_on: Whether the run folder is there already.
        check: Asked now and then while threads are tuned; breaks off by raising.
        progress: Told how far the reading of a table is.
        storage: How the rows of a table are to be kept: as they were when the run began, for the same bits.

    Raises:
        UserError: If the configuration does not fit the data or the machine. What can be checked without the data is
            checked before it is loaded.
    """
    config.validate()
    device = pick_device(config.device)
    dtype = {"float32": torch.float32, "float64": torch.float64}[config.dtype]
    if device.type == "mps" and dtype == torch.float64:
        raise UserError("`dtype='float64'`: mps has no float64; take `device='cpu'`")
    check_precision(config.precision, device, dtype)
    if config.loss != "auto":
        check_output_activation(config.loss, config.output_activation)
    check_source(config.source)
    if not going_on:
        check_folder(config.run_dir or default_folder(config.data))
    split_seed = config.seed if split_seed is None else split_seed
    source = config.source
    dataset = load(
        replace(source, cache=replace(source.cache, progress=progress), storage=storage),
        seed=split_seed,
        test_fraction=config.test_fraction,
        val_fraction=config.val_fraction,
        val_split=config.val_split,
        scaling=config.scaling,
        pixel_scale=config.pixel_scale,
        dtype=dtype,
    ).to(device)
    if config.augment != "none" and dataset.image_shape is None:
        raise UserError(
            f"{setting('augment', config.augment)} is for pictures (IDX files, digits), and {dataset.name} has none"
        )
    if config.augment != "none" and not (dataset.input_scaling.is_uniform and not dataset.input_scaling.mean.any()):
        # Ink would come where there was none in training, and be divided by that pixel's scale of nearly 0.
        raise UserError(
            f"{setting('augment', config.augment)} is for pixels that are all scaled alike: "
            "take `scaling='pixel'` or none"
        )
    if config.lr == "auto":
        config = replace(config, lr=usual_lr(config.data, dataset))
    counts = class_weights(config, dataset)
    weights = None if counts is None else torch.tensor(counts, dtype=dtype, device=device)
    objective = choose_objective(
        config.loss, dataset.task, len(dataset.class_names), config.output_activation,
        one_logit=config.one_logit, class_weights=weights,
    )  # fmt: skip
    sizes = [dataset.n_inputs, *config.hidden, 1 if config.one_logit else dataset.n_outputs]
    output = None if config.output_activation == "none" else config.output_activation
    with torch.random.fork_rng(devices=[]):  # the caller's generator is not ours to move
        torch.default_generator.manual_seed(split_seed)  # torch.manual_seed would move the GPUs' generators too
        # Drawn on the CPU, so that the same seed gives the same initial weights on every device.
        model = _make(sizes, config, output, dtype).to(device)
    tuned = _tune(config, dataset, model, objective, check) if config.threads == "tune" else {}
    threads = fastest(tuned) if tuned else pick_threads(config.threads, sizes, config.batch_size)
    cores = torch.get_num_threads() if config.threads in ("auto", "tune") else threads
    return Setup(config, dataset, model, objective, device, threads, tuned, sizes, split_seed, cores)


def model_digest(config: TrainConfig, resolved: Mapping[str, Any]) -> str:
    """Return the SHA-256, as hex, of all that a model is besides its weights: the preprocessing, and the net's kind."""
    names = ("loss", "task", "sizes", "class_names", "class_weights", "image_shape", "columns", "split_seed")
    of_config = [list(config.activations), config.output_activation, config.one_logit, config.missing]
    parts = [*of_config, *(resolved.get(name) for name in (*names, "input_scaling", "target_scaling"))]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def class_weights(config: TrainConfig, dataset: Dataset) -> list[float] | None:
    """Return what a sample of each class counts; None where all count alike."""
    if config.class_weight == "none":
        return None
    if dataset.task == "regression":
        raise UserError(f"{setting('class_weight', config.class_weight)}: the data has numbers as targets, no classes")
    return balanced(torch.bincount(dataset.train.y, minlength=len(dataset.class_names)).tolist())


def _make(sizes: list[int], config: TrainConfig, output: str | None, dtype: torch.dtype) -> MLP:
    """Return the model.

    Raises:
        UserError: If there is no memory for its weights.
    """
    try:
        return MLP(sizes, config.activations, output, init=config.init, dtype=dtype)
    except (RuntimeError, MemoryError) as error:
        bytes_ = sum(above * below for below, above in pairwise(sizes)) * (4 if dtype == torch.float32 else 8)
        if isinstance(error, RuntimeError) and "allocate" not in str(error):
            raise
        net = "-".join(map(str, sizes))
        raise UserError(f"the weights of {net} take {bytes_ / 1e9:.3g} GB, more than there is memory") from error


TUNING_STEPS = 8


def _tune(
    config: TrainConfig, dataset: Dataset, model: MLP, objective: Objective, check: Callable[[], None] | None
) -> dict[int, float]:
    """Return the seconds of a step of this run at each number of threads; a copy of the model is trained."""
    trial = copy.deepcopy(model)
    optimizer = make_optimizer(trial, config)
    engine = ENGINES[config.engine](trial, objective, optimizer, dataset.target_scaling, config.precision)
    x, y = DataLoader(dataset.train, objective, config.batch_size).first(TUNING_STEPS * config.batch_size)
    order = torch.arange(TUNING_STEPS * config.batch_size, device=x.device) % len(x)

    def few_steps() -> None:
        if check is not None:
            check()
        engine.epoch(x, y, order, config.batch_size, EpochState(x.new_zeros(())))

    timed = tune_threads(few_steps, physical_cores())
    return {count: seconds / TUNING_STEPS for count, seconds in timed.items()}


def usual_lr(data: str, dataset: Dataset) -> float:
    """Return the η that ``lr="auto"`` stands for.

    Measured (docs/benchmarks.md): with standardised columns, some of which are nearly always the same and far away when
    they are not, momentum 0.9 takes 0.05 out of bounds; numbers as targets are learnt by heart long before 30 epochs
    with an η that classes want.
    """
    if data in BUILTIN or dataset.image_shape is not None:
        return 0.05
    return 0.02 if dataset.task == "classification" else 0.001


def make_optimizer(model: nn.Module, config: TrainConfig) -> SGD:
    """Return SGD with two groups: weights, which decay, and biases, which do so only if asked."""
    named = list(model.named_parameters())
    weights = [p for name, p in named if not name.endswith("bias")]
    biases = [p for name, p in named if name.endswith("bias")]
    groups = [
        {"params": weights, "weight_decay": config.weight_decay},
        {"params": biases, "weight_decay": config.weight_decay if config.decay_biases else 0.0},
    ]
    return SGD(groups, lr=config.rate, momentum=config.momentum, nesterov=config.nesterov)


def _scaling_to_json(scaling: Scaling) -> dict[str, float | list[float]]:
    """Return mean and scale: a number where all columns have the same, else a list."""

    def compact(values: list[float]) -> float | list[float]:
        return values[0] if len(set(values)) == 1 else values

    return {"mean": compact(scaling.mean.tolist()), "scale": compact(scaling.scale.tolist())}
