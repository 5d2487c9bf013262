"""A training run from a configuration: data, model and epochs, and the files in the run folder."""

from __future__ import annotations

import copy
import errno
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltaprop.data import Part
from deltaprop.distributed import World, joined, own, part_of, shard_parameters, whole_of_first
from deltaprop.epoch_state import EpochState
from deltaprop.errors import UserError, setting
from deltaprop.training import evaluate
from deltaprop.training.baseline import test_baseline
from deltaprop.training.checkpoint import Checkpoint, load_state_tensors, state_tensors, subset
from deltaprop.training.config import TrainConfig
from deltaprop.training.data_loader import Shard
from deltaprop.training.engines import ENGINES
from deltaprop.training.evaluate import SELECTED_BY, Evaluation, Metrics, figures, in_own_units, selection_loss
from deltaprop.training.finite_check import EVERY, all_finite, name_non_finite
from deltaprop.training.health import health_note
from deltaprop.training.loaders import make_loader
from deltaprop.training.processes import Together, checkpoint_of_first
from deltaprop.training.report.reporter import NoViews, Reporter, Result, Silent
from deltaprop.training.resume import locate, plan_resume
from deltaprop.training.run_folder import BEST, FINAL, LAST, RunFolder, check_folder, default_folder
from deltaprop.training.seen_rows import save_row_digests
from deltaprop.training.setup import Setup, make_optimizer, model_digest
from deltaprop.training.signals import Stop, Stopped
from deltaprop.training.validation_outputs import save_validation_outputs


class TrainingError(RuntimeError):
    """Training failed for a reason other than wrong input."""


def train(
    config: TrainConfig,
    reporter: Reporter | None = None,
    *,
    resume: Path | None = None,
    restart: bool = False,
    override: Sequence[str] = (),
) -> Result:
    """Train a model, and write the run folder.

    Args:
        config: The configuration.
        reporter: Receives progress and results; by default nothing is reported.
        resume: The folder of a run to resume, or one of its checkpoints; ``config`` is then the run's own
            configuration with the changes that are wanted.
        restart: Whether the folder may hold the files of a run that ended before its first checkpoint.
        override: Settings that may be changed on resume although that changes the result.

    Raises:
        UserError: If the input is wrong; nothing has been written then.
        TrainingError: If training fails; the last checkpoint is kept.
        KeyboardInterrupt: After Ctrl-C, when everything is saved. ``Terminated``, an exit with 143, after SIGTERM.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = train(TrainConfig(data="moons", hidden=(8,), epochs=2, run_dir=Path(folder) / "run"))
        >>> result.metrics["epoch"]
        2
    """
    reporter = reporter or Silent()
    with Stop() as stop, joined(config.timeout) as world:
        if not world.is_first:
            reporter = Silent()
        try:
            with ExitStack() as stack:
                together = Together(world, stop, stack)
                together.agree(config, resumes=resume is not None)
                if resume is not None:
                    return _resume(resume, config, override, reporter, together).train()
                return _begin(config, restart, reporter, together).train()
        except Stopped:
            raise stop.exception() from None
        except OSError as error:
            raise _as_user_error(error) from error


def _as_user_error(error: OSError) -> Exception:
    """Return a failure of the disk in one line: a UserError if the path is wrong, else a TrainingError."""
    text = f"{error.filename or 'the run folder'}: {error.strerror or error} (errno {error.errno})"
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(text)
    return TrainingError(f"{text}; the last checkpoint is unchanged")


def _begin(config: TrainConfig, restart: bool, reporter: Reporter, together: Together) -> Run:
    """Return a new run, its folder locked and its threads set until the stack is closed."""
    config.validate()
    path = config.run_dir or default_folder(config.data)
    together.world.together(lambda: check_folder(path, restart) if together.world.is_first else None)
    setup = together.prepare(config, reporter)
    if setup.note:
        reporter.warn(setup.note)
    folder = together.folder(lambda: RunFolder.make(config.run_dir, config.data, restart))
    folder.begin()
    return Run(setup, folder, reporter, together.stop, world=together.world)


def _resume(path: Path, requested: TrainConfig, override: Sequence[str], reporter: Reporter, together: Together) -> Run:
    """Return a run restored from a checkpoint, its folder locked and its threads set until the stack is closed."""
    parent, only = locate(path)
    folder = together.folder(lambda: RunFolder.of(parent))
    path, checkpoint = checkpoint_of_first(folder, only, reporter, together.world)
    config, overrides = plan_resume(folder.path, checkpoint, requested, override, together.world.size)
    saved = checkpoint.state
    setup = together.prepare(config, reporter, saved["split_seed"], storage=saved["storage"])
    if setup.dataset.digest != saved["data_sha256"]:
        raise UserError(f"{folder.path}: the data in {config.data} are not those that the run was trained on")
    if setup.note:
        reason = setup.note.partition("; ")[0]
        flags = f"{setting('engine', 'explicit')} {setting('override', 'engine')}"
        text = f"it was trained by the {config.engine} engine, and {reason}; to go on with another, add {flags}"
        raise UserError(f"{folder.path}: {text}")
    if all(record["setting"] != "engine" for record in overrides):
        setup = replace(setup, engine_asked=saved.get("resolved", {}).get("engine_asked", config.engine))
    before, now = saved["versions"], setup.to_json()["versions"]
    changed = [f"{name} {before.get(name, 'unknown')} → {now[name]}" for name in now if before.get(name) != now[name]]
    if changed:
        reporter.warn(f"versions have changed since the run began: {', '.join(changed)}; the bits may differ")
    if config.lr_schedule == "cosine" and config.epochs != saved["config"]["epochs"]:
        reporter.warn("the cosine schedule depends on the number of epochs: from here on η is that of the new number")
    same_batches = all(record["setting"] != "batch_size" for record in overrides)
    # The order of an epoch depends on the sizes of blocks and shards.
    sizes = (saved["block"], saved["chunk"]) if same_batches else None
    run = Run(setup, folder, reporter, together.stop, sizes, together.world)
    run.restore(checkpoint, overrides, is_last=path.name == LAST)
    reporter.resumed(path, run.state.epoch, run.state.progress.done)
    return run


@dataclass
class TrainState:
    """The state of a run besides model and optimizer: what a checkpoint saves.

    Attributes:
        progress: Steps and losses of the current epoch.
        generator: State of the random generator at the beginning of the epoch; it draws the order of the samples.
        epoch: The current epoch, from 1.
        seconds: Training time of the epoch so far.
        last: Metrics of the epoch before, as in metrics.jsonl; None before the first.
        best: Metrics of the epoch with the lowest validation loss.
        best_weights: The state_dict of the model after that epoch.
        overrides: Records of the settings that were changed on resume.
    """

    progress: EpochState
    generator: Tensor
    epoch: int = 1
    seconds: float = 0.0
    last: dict[str, Any] | None = None
    best: dict[str, Any] | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    overrides: list[dict[str, Any]] = field(default_factory=list)


class Run:
    """A training run.

    Args:
        setup: Data, model, objective and device.
        folder: The run folder, locked.
        reporter: Receives progress and results.
        stop: Receives signals.
        sizes: Rows per block and per shard; chosen by default.
        world: The processes that train together; each has all the rows, or its own row groups, and takes its share of
            each batch.
    """

    def __init__(
        self,
        setup: Setup,
        folder: RunFolder,
        reporter: Reporter,
        stop: Stop,
        sizes: tuple[int, int] | None = None,
        world: World | None = None,
    ) -> None:
        self.setup, self.folder, self.reporter, self.stop = setup, folder, reporter, stop
        self.world = world or World()
        config, objective, dataset = setup.config, setup.objective, setup.dataset
        several: dict[str, Any] = {}
        self.whole = setup  # what process 0 draws from: its model is whole there
        if self.world.size > 1:
            several = {"world": self.world}
            if config.engine == "explicit":
                several |= {"exchange": config.exchange, "exchange_dtype": config.exchange_dtype}
        if self._is_sharded:
            self.whole = replace(setup, model=copy.deepcopy(setup.model) if self.world.is_first else setup.model)
            shard_parameters(setup.model)
        self.optimizer = make_optimizer(setup.model, config)
        self.engine = ENGINES[config.engine](setup.model, objective, self.optimizer, config.precision, **several)
        self.pause_interval = self.engine.interval(config.batch_size)
        # The loss is minimised on standardised targets, and reported in the units of the data.
        self.report = in_own_units(objective, dataset.target_scaling) if objective.task == "regression" else None
        self.loader = make_loader(setup, sizes, self.world)
        self.steps = math.ceil(len(self.loader) / config.batch_size)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.state = TrainState(self._no_progress(), self.generator.get_state())
        self.resumed = self._weights_changed = False
        self._checked = 0
        self._saved_at = time.monotonic()

    @property
    def _is_sharded(self) -> bool:
        """Whether each process has only a part of every parameter."""
        config = self.setup.config
        return self.world.size > 1 and config.engine == "autograd" and config.parallel == "fsdp"

    def _gather(self) -> dict[str, Tensor]:
        """Return the weights, whole in process 0, where ``self.whole`` has them then; all processes must call it."""
        weights = whole_of_first(self.setup.model.state_dict(), self.world)
        if self._is_sharded and self.world.is_first:
            self.whole.model.load_state_dict(weights)
        return weights

    def _no_progress(self) -> EpochState:
        """Return the state of an epoch that has not begun; it sums losses in float64, where the device has it."""
        device = self.setup.device
        if device.type == "mps":  # the losses to report are on the CPU, those that are minimised on mps
            return EpochState(torch.zeros(()).double() if self.report else torch.zeros((), device=device))
        return EpochState(torch.zeros((), dtype=torch.float64, device=device))

    @property
    def _step(self) -> int:
        """Steps of the run so far."""
        return (self.state.epoch - 1) * self.steps + self.state.progress.done

    @property
    def _out_of_patience(self) -> bool:
        best, patience = self.state.best, self.setup.config.patience
        return best is not None and 0 < patience <= self.state.epoch - 1 - best["epoch"]

    @property
    def _ended(self) -> bool:
        if self.state.progress.done:  # an epoch that was begun is finished
            return False
        return self.state.epoch > self.setup.config.total_epochs or self._out_of_patience

    # --- checkpoints ---

    def restore(self, checkpoint: Checkpoint, overrides: list[dict[str, Any]], *, is_last: bool) -> None:
        """Restore the run from a checkpoint.

        Args:
            checkpoint: The checkpoint.
            overrides: Records of the settings that are changed now.
            is_last: Whether it is the last checkpoint; it is an older one if that was named, or the last is damaged.

        Raises:
            UserError: If the checkpoint has more steps than an epoch.
        """
        saved, tensors, setup = checkpoint.state, checkpoint.tensors, self.setup
        changed = {record["setting"] for record in overrides}
        if saved["done"] > self.steps and "batch_size" not in changed:
            done = f"{saved['done']} of {self.steps} steps done"
            raise UserError(f"{self.folder.path}: damaged: its checkpoint has {done}")
        load_state_tensors(tensors, setup.model, self.optimizer)
        best = subset(tensors, "best")
        total = tensors["total"].to(self._no_progress().total)  # of all processes: the others begin with 0
        self.state = TrainState(
            EpochState(total if self.world.is_first else torch.zeros_like(total), saved["done"]),
            tensors["generator"], saved["epoch"], saved["seconds"], saved["last"], saved["best"],
            {name: part_of(best[name], like) for name, like in setup.model.state_dict().items() if best},
            [*saved["overrides"], *overrides],
        )  # fmt: skip
        self._complete_best(best)
        self.generator.set_state(self.state.generator)
        if "seed" in changed:
            self.generator.manual_seed(setup.config.seed)
        if changed & {"seed", "batch_size"}:  # this epoch begins again: other order, or other steps
            self.state.progress, self.state.seconds = self._no_progress(), 0.0
            self.state.generator = self.generator.get_state()
        if not is_last:  # it becomes the last before the files of later epochs are removed
            self.folder.save_checkpoint(checkpoint, self._step, setup.config.keep)
        self.folder.truncate_metrics(self.state.epoch - 1, self.reporter.warn)
        if best:
            self.folder.save_weights(BEST, best)
        elif self.world.is_first:
            (self.folder.path / BEST).unlink(missing_ok=True)
        self.resumed = True
        self._weights_changed = saved["config"].get("weights", "final") != setup.config.weights

    def _complete_best(self, weights: dict[str, Tensor]) -> None:
        """Compute the loss that selects the best epoch if the checkpoint, of an older version, does not have it.

        It is that of the best weights on the validation rows, so that later epochs are compared with it in its own
        terms, whatever loss was told.
        """
        best, setup = self.state.best, self.setup
        if best is None or setup.objective.task == "classification" or SELECTED_BY in best:
            return
        model = setup.config.build_model(setup.sizes).to(setup.device)
        model.load_state_dict(weights)
        evaluation = evaluate.evaluate(model, setup.objective, setup.dataset.val, setup.dataset.target_scaling)
        if evaluation is not None:
            self.state.best = {**best, SELECTED_BY: evaluation.minimised}

    def save(self) -> None:
        """Write a checkpoint; values that are not finite are never written.

        Raises:
            TrainingError: If a value is not finite.
        """
        self._check_finite()
        self.tensorboard.flush()
        state, setup, description = self.state, self.setup, self.setup.to_json()
        saved = {
            "epoch": state.epoch, "done": state.progress.done, "seconds": state.seconds, "last": state.last,
            "best": state.best, "overrides": state.overrides, "split_seed": setup.split_seed, "threads": setup.threads,
            "data_sha256": setup.dataset.digest, "storage": setup.storage, "block": self.loader.block,
            "chunk": self.loader.chunk, "device": str(setup.device) if self.world.size == 1 else setup.device.type,
            "config": {**setup.config.to_json(), "run_dir": None, "config": None},
            "resolved": {name: description["resolved"][name] for name in ("sizes", "engine_asked", "processes")},
            "versions": description["versions"],
            "model_sha256": model_digest(setup.config, description["resolved"]),
        }  # fmt: skip
        tensors = state_tensors(setup.model, self.optimizer)
        tensors |= {"generator": state.generator, "total": self._total()}
        tensors |= {f"best.{name}": value for name, value in state.best_weights.items()}
        tensors = whole_of_first(tensors, self.world)
        self.folder.save_checkpoint(Checkpoint(tensors, saved), self._step, setup.config.keep)
        self._saved_at = time.monotonic()

    # --- epochs ---

    def train(self) -> Result:
        """Train to the end.

        Raises:
            TrainingError: If training fails.
            Stopped: If a signal was received; everything is saved.
        """
        from deltaprop.training.report.tensorboard import TensorBoardReporter  # slow to import

        began = time.perf_counter()
        self.stop.immediate = False
        if self.resumed and self._ended and self._is_written():
            return self._result(0.0)  # nothing to do, and nothing to write
        self.reporter.start(self.setup, self.folder.path)
        overrides = {"overrides": self.state.overrides} if self.state.overrides else {}
        self.folder.write_config({**self.setup.to_json(), **overrides})
        if self.world.is_first:
            save_row_digests(self.folder.path, self.setup, self.reporter.warn)
            if not self._ended:
                (self.folder.path / FINAL).unlink(missing_ok=True)  # the weights are not final any more
        begins = not self.resumed or (self.state.epoch == 1 and not self.state.progress.done)
        first = 0 if begins else self.state.epoch
        views = TensorBoardReporter if self.world.is_first else NoViews
        with views(self.whole, self.folder.path, first, self.reporter.warn) as self.tensorboard:
            try:
                if not self.resumed:
                    self.save()  # from here on the run can be resumed
                if begins:
                    self._gather()
                    self.tensorboard.views(0)
                while not self._ended:
                    self._epoch()
                weights = {"final": self._gather()}
                if self.state.best_weights:
                    weights["best"] = whole_of_first(self.state.best_weights, self.world)
                if self.world.is_first:
                    check = self.stop.check if self.world.size == 1 else lambda: None
                    save_validation_outputs(self.folder.path, self.whole, weights, check)
                self.folder.save_weights(FINAL, weights["final"])
                self.tensorboard.end(self._made_result(0.0).model_metrics)
            except Stopped:
                self.save()
                self.reporter.stopped(self.folder.path)
                raise
            self.save()
        return self._result(time.perf_counter() - began)

    def _result(self, seconds: float) -> Result:
        """Return and report the result."""
        result = self._made_result(seconds)
        result = replace(result, baseline=test_baseline(self.setup.dataset))
        if self.world.is_first:
            result = replace(result, health=health_note(self.whole))
        self.reporter.end(self.setup, result)
        return result

    def _made_result(self, seconds: float) -> Result:
        state = self.state
        assert state.last is not None
        weights = self.setup.config.weights
        return Result(state.last, state.best, self._out_of_patience, seconds, self.folder.path, weights)

    def _epoch(self) -> None:
        """Train through the rest of an epoch, and evaluate."""
        setup, state = self.setup, self.state
        lr = setup.config.rate * setup.config.lr_factor(state.epoch - 1)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        order = self.loader.draw(self.generator)
        self._checked = state.progress.done
        began = time.perf_counter()
        for shard in self.loader.shards(order, state.progress.done):
            end = shard.first + shard.steps(setup.config.batch_size)
            while state.progress.done < end:
                self._train_on(shard)
                state.seconds += time.perf_counter() - began
                self._check_finite()
                self._check_stop()
                if state.progress.done < end:
                    self.save()
                began = time.perf_counter()
        val, test = self._evaluate_parts()
        self._check_stop()
        self._end_epoch(lr, val, test)

    def _evaluate_parts(self) -> list[Metrics | None]:
        """Return the metrics on the validation and on the test rows, the same in all processes."""
        setup, dataset, world = self.setup, self.setup.dataset, self.world
        check = self.stop.check if world.size == 1 else lambda: None  # all processes stop at the same step
        objective, scaling = setup.objective, dataset.target_scaling

        def on(part: Part) -> Metrics | None:
            return evaluate.evaluate(setup.model, objective, part, scaling, check, world)

        parts, found = (dataset.val, dataset.test), list[Metrics | None]()
        if dataset.grouped is not None:
            found = [*evaluate.evaluate_groups(setup.model, objective, dataset.grouped, scaling, check, world).values()]
        elif setup.parts_at_once == 2 and len(parts[0]) and world.size == 1:  # the bits are those of one by one
            with ThreadPoolExecutor(2) as pool:
                found = [*pool.map(on, parts)]
        else:
            found = [*map(on, parts)]
        return [figures if figures is None else evaluate.as_first(figures, world) for figures in found]

    def _train_on(self, shard: Shard) -> None:
        """Take the steps of a shard that are left, up to a pause."""
        progress, first = self.state.progress, shard.first

        def pause(done: int) -> bool:
            progress.done = first + done
            self.reporter.step(self.state.epoch, self.steps, progress.done)
            return self._pauses()

        within = EpochState(
            progress.total, progress.done - first, pause=pause, interval=self.pause_interval, report=self.report,
            shares=shard.shares if self.world.size > 1 else None,
        )  # fmt: skip
        batch_size = self.setup.config.batch_size
        try:
            self.engine.train(shard.x, shard.y, shard.order, batch_size, within)
        except torch.OutOfMemoryError as error:
            smaller = f"try {setting('batch_size', max(1, batch_size // 2))}"
            text = f"out of memory on {self.setup.device} with {setting('batch_size', batch_size)}: {smaller}"
            raise TrainingError(text) from error
        progress.done = first + within.done
        self.reporter.step(self.state.epoch, self.steps, progress.done)

    def _pauses(self) -> bool:
        """Return whether to pause an epoch: to save, to stop, or because a value is not finite."""
        unchecked = self.state.progress.done - self._checked
        wrong = unchecked + self.pause_interval > EVERY and not self._is_finite()
        due = self.world.is_first and time.monotonic() - self._saved_at >= self.setup.config.save_seconds
        received, *others = self.world.largest(self.stop.received or 0, wrong, due)
        self.stop.received = int(received) or None
        return any([received, *others])

    def _check_stop(self) -> None:
        """Raise Stopped if a signal was received, by whichever process."""
        self.stop.received = int(self.world.largest(self.stop.received or 0)[0]) or None
        self.stop.check()

    def _total(self) -> Tensor:
        """Return the sum of losses of this epoch, of all processes."""
        return self.world.sum(self.state.progress.total.clone())

    def _is_written(self) -> bool:
        """Return whether the final weights are those of the model."""
        weights = self._gather()
        first = self.world.is_first and not self._weights_changed
        is_written = first and self.folder.has_weights(FINAL, weights)
        return self.world.largest(is_written)[0] > 0

    def _end_epoch(self, lr: float, val: Metrics | None, test: Metrics | None) -> None:
        """Write the metrics of an epoch, and advance to the next."""
        state, config, rows = self.state, self.setup.config, len(self.loader)
        metrics: dict[str, Any] = {
            "epoch": state.epoch,
            "step": state.epoch * self.steps,
            "train_loss": float(self._total()) / rows,
            **figures("val", val, self.setup.objective.task),
            **figures("test", test, self.setup.objective.task),
            "lr": lr,
            "seconds": state.seconds,
            "samples_per_second": rows / state.seconds,
        }
        for key, name in (
            ("train_loss", "training"), ("val_loss", "validation"), (SELECTED_BY, "validation"), ("test_loss", "test"),
        ):  # fmt: skip
            loss = metrics.get(key)
            if loss is not None and not math.isfinite(loss):
                raise self._divergence(f"the {name} loss became {loss}")
        self.folder.append_metrics(metrics)
        validated = metrics["val_loss"] is not None
        if validated and (state.best is None or selection_loss(metrics) < selection_loss(state.best)):
            state.best = metrics
            state.best_weights = {name: t.clone() for name, t in self.setup.model.state_dict().items()}
            self.folder.save_weights(BEST, whole_of_first(state.best_weights, self.world))
        self.tensorboard.epoch(metrics)
        self.reporter.epoch(self.setup, metrics)
        state.last, state.epoch = metrics, state.epoch + 1
        state.progress, state.generator, state.seconds = self._no_progress(), self.generator.get_state(), 0.0
        self._checked = 0
        assert config.log_every != "auto"
        if self._ended or (config.log_every and metrics["epoch"] % config.log_every == 0):
            self._gather()
            self.tensorboard.views(metrics["epoch"], test if isinstance(test, Evaluation) else None)
        if config.save_epochs and metrics["epoch"] % config.save_epochs == 0:
            self.save()

    # --- values that are not finite ---

    def _is_finite(self) -> bool:
        """Return whether weights, optimizer state and losses are finite, in each process."""
        tensors = map(own, state_tensors(self.setup.model, self.optimizer).values())
        if self.world.largest(not all_finite([self.state.progress.total, *tensors]))[0]:
            return False
        self._checked = self.state.progress.done
        return True

    def _check_finite(self) -> None:
        """Raise a TrainingError if a value is not finite."""
        if not self._is_finite():
            tensors = whole_of_first(state_tensors(self.setup.model, self.optimizer), self.world)
            layers = name_non_finite(self.setup.model, tensors)
            raise self._divergence(f"not finite: {layers}" if layers else "the loss is not finite")

    def _divergence(self, what: str) -> TrainingError:
        before = (self.state.epoch - 1) * self.steps
        first, last = before + self._checked + 1, self._step
        return TrainingError(
            f"{what}, epoch {self.state.epoch}, steps {min(first, last)} to {last}: lower `lr` "
            f"(it is {self.setup.config.rate:g}) or `momentum`, or try another `init`; "
            "the last checkpoint is from before that"
        )
