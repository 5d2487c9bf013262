"""A training run from a configuration: data, model, epochs, and what they leave in the run folder."""

from __future__ import annotations

import copy
import math
import platform
import sys
import time
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy
import torch
from torch import nn

import deltaprop
from deltaprop.data import Dataset, Scaling, check_source, load
from deltaprop.errors import UserError
from deltaprop.explicit.precision import check_precision
from deltaprop.modules import MLP
from deltaprop.optim import SGD
from deltaprop.training.config import TrainConfig
from deltaprop.training.devices import (
    describe_device,
    fastest,
    physical_cores,
    pick_device,
    pick_threads,
    set_threads,
    tune_threads,
)
from deltaprop.training.engines import ENGINES, Engine, Progress
from deltaprop.training.evaluate import Evaluation, evaluate
from deltaprop.training.objective import Objective, check_output_activation, choose_objective
from deltaprop.training.run_folder import RunFolder, check_folder, default_folder


class TrainingError(RuntimeError):
    """Training cannot go on, through no fault in the input's form."""


class Reporter(Protocol):
    """What a run tells while it goes; the console is one, silence another."""

    def start(self, setup: Setup, folder: Path) -> None:
        """Tell what will be trained, on what, where."""

    def step(self, epoch: int, steps: int, step: int) -> None:
        """Tell that a step of an epoch of so many steps is done."""

    def epoch(self, setup: Setup, metrics: dict[str, Any]) -> None:
        """Tell the figures of an epoch."""

    def end(self, setup: Setup, result: Result) -> None:
        """Tell how it ended."""


class Silent:
    """A reporter that says nothing."""

    def start(self, setup: Setup, folder: Path) -> None:
        """Say nothing."""

    def step(self, epoch: int, steps: int, step: int) -> None:
        """Say nothing."""

    def epoch(self, setup: Setup, metrics: dict[str, Any]) -> None:
        """Say nothing."""

    def end(self, setup: Setup, result: Result) -> None:
        """Say nothing."""


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
    """

    config: TrainConfig
    dataset: Dataset
    model: MLP
    objective: Objective
    device: torch.device
    threads: int
    tuned: dict[int, float]
    sizes: list[int]

    def to_json(self) -> dict[str, Any]:
        """Return everything that defines the run, as config.json has it."""
        return {
            **self.config.to_json(),
            "resolved": {
                "loss": self.objective.name,
                "task": self.objective.task,
                "sizes": self.sizes,
                "class_names": list(self.dataset.class_names),
                "device": describe_device(self.device),
                "threads": self.threads,
                "threads_tuned": self.tuned,
                "data_sha256": self.dataset.digest,
                # Raw inputs become the network's by (x − mean) / scale, its outputs targets by · scale + mean.
                "input_scaling": _scaling_to_json(self.dataset.input_scaling),
                "target_scaling": _scaling_to_json(self.dataset.target_scaling),
                "rows": {part: len(getattr(self.dataset, part)) for part in ("train", "val", "test")},
            },
            "versions": {
                "deltaprop": deltaprop.__version__,
                "torch": torch.__version__,
                "numpy": numpy.__version__,
                "scikit-learn": version("scikit-learn"),
                "python": platform.python_version(),
                "platform": platform.platform(),
            },
            "command": sys.argv,
        }


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        metrics: The last epoch's line of metrics.jsonl.
        best: The line of the epoch with the lowest validation loss; None without validation.
        stopped_early: Whether patience ran out.
        seconds: Of training, evaluation and logging.
        folder: Of the run.
    """

    metrics: dict[str, Any]
    best: dict[str, Any] | None
    stopped_early: bool
    seconds: float
    folder: Path


def prepare(config: TrainConfig) -> Setup:
    """Load the data and build the model; write nothing.

    Raises:
        UserError: If the configuration does not fit the data or the machine. What can be judged without the data is
            judged before it is loaded.
    """
    config.validate()
    device = pick_device(config.device)
    dtype = {"float32": torch.float32, "float64": torch.float64}[config.dtype]
    if device.type == "mps" and dtype == torch.float64:
        raise UserError("--dtype float64: mps has no float64; take --device cpu")
    check_precision(config.precision, device, dtype)
    if config.loss != "auto":
        check_output_activation(config.loss, config.output_activation)
    check_source(config.data)
    check_folder(config.run_dir or default_folder(config.data))
    dataset = load(
        config.data,
        seed=config.seed,
        test_fraction=config.test_fraction,
        val_fraction=config.val_fraction,
        val_split=config.val_split,
        scaling=config.scaling,
        pixel_scale=config.pixel_scale,
        dtype=dtype,
    ).to(device)
    objective = choose_objective(config.loss, dataset.task, len(dataset.class_names), config.output_activation)
    sizes = [dataset.n_inputs, *config.hidden, dataset.n_outputs]
    output = None if config.output_activation == "none" else config.output_activation
    with torch.random.fork_rng(devices=[]):  # the caller's generator is not ours to move
        torch.default_generator.manual_seed(config.seed)  # torch.manual_seed would move the GPUs' generators too
        # Drawn on the CPU, so that the same seed gives the same initial weights on every device.
        model = MLP(sizes, config.activations, output, init=config.init, dtype=dtype).to(device)
    tuned = _tune(config, dataset, model, objective) if config.threads == "tune" else {}
    threads = fastest(tuned) if tuned else pick_threads(config.threads, sizes, config.batch_size)
    return Setup(config, dataset, model, objective, device, threads, tuned, sizes)


TUNING_STEPS = 8


def _tune(config: TrainConfig, dataset: Dataset, model: MLP, objective: Objective) -> dict[int, float]:
    """Return the seconds of a step of this run at each number of threads; a copy of the model is trained."""
    trial = copy.deepcopy(model)
    optimizer = make_optimizer(trial, config)
    engine = ENGINES[config.engine](trial, objective, optimizer, dataset.target_scaling, config.precision)
    x = dataset.train.x
    y = objective.targets(dataset.train.y, x.dtype)
    order = torch.arange(TUNING_STEPS * config.batch_size, device=x.device) % len(x)

    def few_steps() -> None:
        engine.epoch(x, y, order, config.batch_size, Progress(x.new_zeros(())), lambda step: None)

    timed = tune_threads(few_steps, physical_cores())
    return {count: seconds / TUNING_STEPS for count, seconds in timed.items()}


def train(config: TrainConfig, reporter: Reporter | None = None) -> Result:
    """Run a training run, and leave its folder behind.

    Args:
        config: What to do.
        reporter: Whom to tell; nobody by default.

    Raises:
        UserError: If the input is at fault; nothing has been written then.
        TrainingError: If the loss is no longer finite.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = train(TrainConfig(data="moons", hidden=(8,), epochs=2, run_dir=Path(folder) / "run"))
        >>> result.metrics["epoch"]
        2
    """
    setup = prepare(config)
    with set_threads(setup.threads):
        return _run(setup, reporter or Silent())


def _run(setup: Setup, reporter: Reporter) -> Result:
    from deltaprop.training.board import Board  # TensorBoard and matplotlib: slow to import, and of no use before

    config = setup.config
    folder = RunFolder.make(config.run_dir, config.data)
    reporter.start(setup, folder.path)
    folder.write_config(setup.to_json())
    optimizer = make_optimizer(setup.model, config)
    scaling = setup.dataset.target_scaling
    engine = ENGINES[config.engine](setup.model, setup.objective, optimizer, scaling, config.precision)
    generator = torch.Generator().manual_seed(config.seed)
    began = time.perf_counter()
    best: dict[str, Any] | None = None
    stopped = False
    with Board(setup, engine, folder.path) as board:
        board.views(0)
        for epoch in range(1, config.epochs + 1):
            metrics, test = _epoch(setup, engine, optimizer, generator, epoch, reporter)
            folder.append_metrics(metrics)
            if metrics["val_loss"] is not None and (best is None or metrics["val_loss"] < best["val_loss"]):
                best = metrics
                folder.save_weights("best.safetensors", setup.model)
            board.epoch(metrics)
            reporter.epoch(setup, metrics)
            stopped = best is not None and 0 < config.patience <= epoch - best["epoch"]
            last = stopped or epoch == config.epochs
            if last or (config.log_every and epoch % config.log_every == 0):
                board.views(epoch, test)
            if last:
                break
        folder.save_weights("model.safetensors", setup.model)
        board.end(metrics)
    result = Result(metrics, best, stopped, time.perf_counter() - began, folder.path)
    reporter.end(setup, result)
    return result


def _epoch(
    setup: Setup,
    engine: Engine,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    epoch: int,
    reporter: Reporter,
) -> tuple[dict[str, Any], Evaluation | None]:
    """Train for one epoch and judge; return its line of metrics.jsonl, and the test part's evaluation.

    Raises:
        TrainingError: If the loss is no longer finite.
    """
    config, dataset, objective = setup.config, setup.dataset, setup.objective
    lr = config.lr * config.lr_factor(epoch - 1)
    for group in optimizer.param_groups:
        group["lr"] = lr
    x, y = dataset.train.x, objective.targets(dataset.train.y, dataset.train.x.dtype)
    order = torch.randperm(len(x), generator=generator).to(setup.device)  # drawn on the CPU: the same everywhere
    steps = math.ceil(len(x) / config.batch_size)
    on_step = partial(reporter.step, epoch, steps)
    began = time.perf_counter()
    progress = Progress(x.new_zeros(()))
    engine.epoch(x, y, order, config.batch_size, progress, on_step)
    train_loss = float(progress.total) / len(x)
    seconds = time.perf_counter() - began
    val = evaluate(setup.model, objective, dataset.val, dataset.target_scaling)
    test = evaluate(setup.model, objective, dataset.test, dataset.target_scaling)
    losses = [train_loss, *(part.loss for part in (val, test) if part is not None)]
    bad = next((loss for loss in losses if not math.isfinite(loss)), None)
    if bad is not None:  # nothing of this epoch is kept
        raise TrainingError(
            f"the loss became {bad} in epoch {epoch} (steps {(epoch - 1) * steps + 1} to {epoch * steps}): "
            f"lower --lr (it is {lr:g}) or --momentum, or try another --init"
        )
    metrics = {
        "epoch": epoch,
        "step": epoch * steps,
        "train_loss": train_loss,
        **_figures(objective, "val", val),
        **_figures(objective, "test", test),
        "lr": lr,
        "seconds": seconds,
        "samples_per_second": len(x) / seconds,
    }
    return metrics, test


def make_optimizer(model: nn.Module, config: TrainConfig) -> SGD:
    """Return SGD with two groups: weights, which decay, and biases, which do so only if asked."""
    named = list(model.named_parameters())
    weights = [p for name, p in named if not name.endswith("bias")]
    biases = [p for name, p in named if name.endswith("bias")]
    groups = [
        {"params": weights, "weight_decay": config.weight_decay},
        {"params": biases, "weight_decay": config.weight_decay if config.decay_biases else 0.0},
    ]
    return SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)


def _figures(objective: Objective, part: str, evaluation: Evaluation | None) -> dict[str, float | None]:
    """Return a part's figures; None for each where the part has no rows."""
    if evaluation is not None:
        return evaluation.figures(part)
    judged = "accuracy" if objective.task == "classification" else "rmse"
    return {f"{part}_loss": None, f"{part}_{judged}": None}


def _scaling_to_json(scaling: Scaling) -> dict[str, float | list[float]]:
    """Return mean and scale: a number where all columns have the same, else a list."""

    def compact(values: list[float]) -> float | list[float]:
        return values[0] if len(set(values)) == 1 else values

    return {"mean": compact(scaling.mean.tolist()), "scale": compact(scaling.scale.tolist())}
