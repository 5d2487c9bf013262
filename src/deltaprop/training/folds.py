"""k-fold cross-validation: one run for each fold, in a folder of its own, and the mean of their test metrics.

The runs are ordinary runs, in RUN/fold-1 … RUN/fold-K; RUN/folds.json has the configuration and the metrics of the
folds that have ended.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from deltaprop.distributed import is_one_of_several
from deltaprop.errors import UserError, listed, setting
from deltaprop.training.atomic_files import write_whole
from deltaprop.training.config import TrainConfig, from_json
from deltaprop.training.evaluate import evaluate
from deltaprop.training.load_run import read_run
from deltaprop.training.loop import train
from deltaprop.training.report.reporter import Reporter, Result, Silent
from deltaprop.training.run_folder import check_folder, default_folder, has_checkpoint
from deltaprop.training.setup import Setup

FOLDS = "folds.json"
# What may differ between the beginning of a cross-validation and its continuation.
MAY_DIFFER = {"run_dir", "config", "cache", "memory", "log_every", "save_every", "keep"}

Figures = dict[str, float | None]


@dataclass(frozen=True)
class FoldResult:
    """The test metrics of one fold, in float64.

    Attributes:
        fold: Its number, from 1.
        rows: The number of its test rows.
        figures: accuracy and log_loss (nats), or rmse and r2, in the units of the data; None where one is not defined,
            as log_loss without probabilities, or r2 of targets that are all equal.
        baseline: The same of a model without inputs: the most frequent class and the shares of the classes in the
            training rows, or their mean.
        folder: Its run folder.
        squares: For each target of numbers Σ(a − y)² of the model and of the baseline, for R² of all folds.
    """

    fold: int
    rows: int
    figures: Figures
    baseline: Figures
    folder: Path
    squares: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class CrossValidation:
    """The results of a cross-validation.

    Attributes:
        folds: The result of each fold.
        folder: The folder that contains the run folders.
    """

    folds: tuple[FoldResult, ...]
    folder: Path

    @property
    def mean(self) -> Figures:
        """The mean of each metric over the folds that have it; R² is that of all rows, each predicted once.

        It compares with the means of the training rows: 1 − Σ(a − y)²/Σ(mean − y)². Few rows have no R² of their own.
        """
        means = _each(lambda values: statistics.fmean(values) if values else None, self.folds, "figures")
        return means | ({"r2": self._r2()} if "r2" in means else {})

    @property
    def std(self) -> Figures:
        """The standard deviation of each metric over the folds, √(Σ(v − mean)²/(K − 1)); that of R² is None."""
        found = _each(lambda values: statistics.stdev(values) if len(values) > 1 else None, self.folds, "figures")
        return found | ({"r2": None} if "r2" in found else {})

    @property
    def baseline(self) -> Figures:
        """The mean of the baseline over the folds; its R² is 0."""
        means = _each(lambda values: statistics.fmean(values) if values else None, self.folds, "baseline")
        return means | ({"r2": 0.0} if "r2" in means else {})

    def _r2(self) -> float | None:
        """Return R² of all rows, a mean over several targets."""
        if not self.folds or not all(fold.squares for fold in self.folds):
            return None
        by_fold = zip(*(fold.squares for fold in self.folds), strict=True)
        by_target = [[sum(values) for values in zip(*of_folds, strict=True)] for of_folds in by_fold]
        if not all(of_mean > 0 for _, of_mean in by_target):
            return None
        return _finite(statistics.fmean(1 - of_model / of_mean for of_model, of_mean in by_target))

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values, with paths within the folder."""
        folds = [{**dataclasses.asdict(fold), "folder": fold.folder.name} for fold in self.folds]
        return {"mean": self.mean, "std": self.std, "baseline": self.baseline, "folds": folds}


def _each(combine: Callable[[list[float]], float | None], folds: tuple[FoldResult, ...], kind: str) -> Figures:
    """Return a combination of each metric's values over the folds."""
    names = getattr(folds[0], kind) if folds else ()
    by_name = {name: [getattr(fold, kind)[name] for fold in folds] for name in names}
    return {name: combine([value for value in values if value is not None]) for name, values in by_name.items()}


def cross_validate(
    config: TrainConfig, reporter: Reporter | None = None, *, on_fold: Callable[[FoldResult], object] | None = None
) -> CrossValidation:
    """Train a model for each of ``config.folds`` folds, tested on that fold and trained on the others.

    In a folder with an interrupted cross-validation of the same configuration, the folds that have ended are kept, and
    the others are trained to the end.

    Args:
        config: The configuration; its ``run_dir`` is the folder that will contain the run folders.
        reporter: Receives the progress of each run.
        on_fold: Called with the result of each fold.

    Raises:
        UserError: If the input is wrong, or the folder holds something else.
        TrainingError: If training fails.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = TrainConfig(data="xor", hidden=(8,), epochs=5, log_every=0, run_dir=Path(folder) / "xor")
        ...     result = cross_validate(dataclasses.replace(config, folds=3))
        >>> [fold.rows for fold in result.folds], result.mean["accuracy"] > result.baseline["accuracy"]
        ([334, 333, 333], True)
    """
    config.validate()
    if not config.folds or config.fold:
        raise UserError(f"cross-validation needs `folds`, and no `fold`, got {config.folds} and {config.fold}")
    if is_one_of_several():
        folds, one = setting("folds", config.folds), setting("fold", 1)
        raise UserError(f"{folds} is for one process: several train one fold at a time, {one}")
    folder = config.run_dir or default_folder(config.data)
    _check_folder(folder, config)
    result = CrossValidation((), folder)
    for number in range(1, config.folds + 1):
        path = folder / f"fold-{number}"
        watcher = _Watcher(reporter or Silent(), partial(_write, result, config))
        ended = train(
            dataclasses.replace(config, fold=number, run_dir=path), watcher,
            resume=path if has_checkpoint(path) else None, restart=True,
        )  # fmt: skip
        assert watcher.setup is not None
        fold = _test(number, watcher.setup, ended)
        result = CrossValidation((*result.folds, fold), folder)
        _write(result, config)
        if on_fold is not None:
            on_fold(fold)
    return result


def has_folds(path: Path) -> bool:
    """Return whether a folder contains a cross-validation."""
    return (path / FOLDS).is_file()


def folds_config(folder: Path) -> TrainConfig:
    """Return the configuration of a cross-validation, with the folder where it is now.

    Raises:
        UserError: If its file is damaged.
    """
    path = folder / FOLDS
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))["config"]
        config = from_json(str(path), saved)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged: {type(error).__name__}: {error}") from error
    if not config.folds or config.fold:
        raise UserError(f"{path}: damaged: it has {config.folds} folds, of which {config.fold} is trained")
    return dataclasses.replace(config, run_dir=folder, config=None)


class _Watcher(Reporter):
    """Passes everything on to another reporter, and keeps the setup of the run.

    Args:
        reporter: The reporter.
        on_start: Called when the run begins to write.
    """

    def __init__(self, reporter: Reporter, on_start: Callable[[], None]) -> None:
        self.setup: Setup | None = None
        self._on_start = on_start
        for name in ("reading", "step", "epoch", "resumed", "stopped", "warn"):
            setattr(self, name, getattr(reporter, name))
        self._reporter = reporter

    def start(self, setup: Setup, folder: Path) -> None:
        """Write the file of the cross-validation, once the folder exists."""
        self._on_start()
        self._reporter.start(setup, folder)

    def end(self, setup: Setup, result: Result) -> None:
        """Keep the setup."""
        self.setup = setup
        self._reporter.end(setup, result)


def _check_folder(folder: Path, config: TrainConfig) -> None:
    """Check that a folder is new, empty, or that of a cross-validation with this configuration."""
    if not has_folds(folder):
        begun = folder.is_dir() and [*folder.iterdir()] == [folder / "fold-1"]  # killed before it wrote its own file
        if not begun:
            check_folder(folder)
        return
    before, after = folds_config(folder).to_json(), config.to_json()
    differ = [name for name in before if before[name] != after[name] and name not in MAY_DIFFER]
    if differ:
        what = listed(f"{name} {_plain(before[name])} → {_plain(after[name])}" for name in differ)
        raise UserError(f"{folder}: its folds were trained with other settings: {what}; name a new `run_dir`")


def _plain(value: Any) -> str:
    return (" ".join(map(str, value)) or "none") if isinstance(value, list | tuple) else str(value)


def _write(result: CrossValidation, config: TrainConfig) -> None:
    """Write folds.json."""
    settings = {**config.to_json(), "run_dir": None, "config": None}
    content = json.dumps({"config": settings, **result.to_json()}, indent=2, allow_nan=False) + "\n"
    path = result.folder / FOLDS
    if not path.exists() or path.read_bytes() != content.encode():
        write_whole(path, content.encode())


@torch.no_grad()
def _test(number: int, setup: Setup, ended: Result) -> FoldResult:
    """Return the test metrics of a fold's model, and of a model without inputs."""
    dataset = setup.dataset
    _, _, state = read_run(ended.folder)  # the weights that are the model, which may not be the final ones
    setup.model.load_state_dict(state)
    evaluation = evaluate(setup.model, setup.objective, dataset.test, dataset.target_scaling)
    assert evaluation is not None
    outputs, y = evaluation.outputs.double().cpu(), dataset.test.y.cpu()
    if setup.objective.task == "classification":
        counts = torch.bincount(dataset.train.y.cpu(), minlength=len(dataset.class_names)).double()
        shares = (counts / counts.sum()).expand(len(y), -1)
        own = setup.objective.probabilities(outputs) if setup.objective.has_probabilities else None
        squares: tuple[tuple[float, float], ...] = ()
        figures = _of_classes(setup.objective.decide(outputs), own, y)
        baseline = _of_classes(shares.argmax(dim=1), shares, y)
    else:
        scale = dataset.target_scaling.scale.cpu()
        mean = dataset.train.y.double().mean(dim=0).cpu()
        of_model, of_mean = (((predicted - y) * scale).square().sum(dim=0).tolist() for predicted in (outputs, mean))
        squares = tuple(zip(of_model, of_mean, strict=True))
        figures = _of_numbers(outputs * scale, y.double() * scale)
        baseline = _of_numbers((mean * scale).expand(len(y), -1), y.double() * scale)
    return FoldResult(number, len(y), figures, baseline, ended.folder, squares)


def _of_classes(predicted: torch.Tensor, probabilities: torch.Tensor | None, y: torch.Tensor) -> Figures:
    """Return accuracy and −Σ log p_y/N of classes."""
    log_loss = None
    if probabilities is not None:
        log_loss = float(-probabilities.gather(1, y.unsqueeze(1)).log().mean())
    return {"accuracy": float((predicted == y).double().mean()), "log_loss": _finite(log_loss)}


def _of_numbers(predicted: torch.Tensor, y: torch.Tensor) -> Figures:
    """Return √(Σ(a − y)²/M) over all M entries, and R² = 1 − Σ(a − y)²/Σ(y − mean)², a mean over several targets."""
    squares = (predicted - y).square()
    deviations = (y - y.mean(dim=0)).square().sum(dim=0)
    r2 = float((1 - squares.sum(dim=0) / deviations).mean()) if bool((deviations > 0).all()) else None
    return {"rmse": float(squares.mean().sqrt()), "r2": _finite(r2)}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
