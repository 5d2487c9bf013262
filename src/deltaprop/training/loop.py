"""A training run from a configuration: data, model, epochs, and what they leave in the run folder."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from deltaprop.training.config import TrainConfig
from deltaprop.training.devices import (
    set_threads,
)
from deltaprop.training.engines import ENGINES, Engine, Progress
from deltaprop.training.evaluate import Evaluation, evaluate
from deltaprop.training.objective import Objective
from deltaprop.training.run_folder import RunFolder
from deltaprop.training.setup import Setup, make_optimizer, prepare


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


def _figures(objective: Objective, part: str, evaluation: Evaluation | None) -> dict[str, float | None]:
    """Return a part's figures; None for each where the part has no rows."""
    if evaluation is not None:
        return evaluation.figures(part)
    judged = "accuracy" if objective.task == "classification" else "rmse"
    return {f"{part}_loss": None, f"{part}_{judged}": None}
