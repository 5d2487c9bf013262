"""A training run from a configuration: data, model, epochs, and what they leave in the run folder."""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltaprop.epoch_state import EpochState
from deltaprop.errors import UserError, setting
from deltaprop.training.checkpoint import Checkpoint
from deltaprop.training.config import TrainConfig
from deltaprop.training.data_loader import DataLoader, Shard
from deltaprop.training.devices import (
    set_threads,
)
from deltaprop.training.engines import ENGINES
from deltaprop.training.evaluate import Evaluation, evaluate_parts
from deltaprop.training.finite_check import EVERY, all_finite, name_non_finite
from deltaprop.training.objective import Objective
from deltaprop.training.report.reporter import Reporter, Result, Silent
from deltaprop.training.resume import Resumed, locate, plan_resume
from deltaprop.training.run_folder import LAST, RunFolder, as_bytes, is_incomplete_run
from deltaprop.training.setup import Setup, make_optimizer, model_digest, prepare
from deltaprop.training.signals import Stop, Stopped


class TrainingError(RuntimeError):
    """Training cannot go on, through no fault in the input's form."""


def train(
    config: TrainConfig,
    reporter: Reporter | None = None,
    *,
    resume: Path | None = None,
    restart: bool = False,
    override: Sequence[str] = (),
) -> Result:
    """Run a training run, and leave its folder behind.

    Args:
        config: What to do.
        reporter: Receives progress and results; by default nothing is reported.
        resume: The folder of a run to go on with, or a checkpoint of it; the configuration is then that of the run but
            for what is to change.
        restart: Whether the folder may hold what a run has left that did not live to see its first checkpoint.
        override: Settings that may break exactness, on resume.

    Raises:
        UserError: If the input is at fault; nothing has been written then.
        TrainingError: If training cannot go on; the last checkpoint stands.
        KeyboardInterrupt: After Ctrl-C, when everything is saved. ``Terminated``, an exit with 143, after SIGTERM.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = train(TrainConfig(data="moons", hidden=(8,), epochs=2, run_dir=Path(folder) / "run"))
        >>> result.metrics["epoch"]
        2
    """
    reporter = reporter or Silent()
    with Stop() as stop:
        try:
            if resume is not None:
                return _resumed(resume, config, reporter, override, stop)
            left = config.run_dir if restart and config.run_dir and is_incomplete_run(config.run_dir) else None
            setup = prepare(config, going_on=left is not None, check=stop.check, progress=reporter.reading)
            folder = RunFolder.of(left) if left else RunFolder.make(config.run_dir, config.data)
            with folder.locked(), set_threads(setup.threads):
                folder.begin()
                return Run(setup, folder, reporter, stop).go()
        except Stopped:
            raise stop.exit() from None
        except OSError as error:
            raise _as_user_error(error) from error


def _as_user_error(error: OSError) -> Exception:
    """Return a failure of the disk as one line: the user's where the place is wrong, else the machine's."""
    text = f"{error.filename or 'the run folder'}: {error.strerror or error} (errno {error.errno})"
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(text)
    return TrainingError(f"{text}; the last checkpoint is as it was")


def _resumed(path: Path, config: TrainConfig, reporter: Reporter, override: Sequence[str], stop: Stop) -> Result:
    """Go on with a run."""
    where, only = locate(path)
    folder = RunFolder.of(where)
    with folder.locked():
        found = folder.sound_checkpoint(reporter.warn, only)
        if found is None:
            raise UserError(f"{folder.path}: there is no checkpoint to go on from")
        path, checkpoint = found
        resumed = plan_resume(folder, checkpoint, config, override, is_last=path.name == LAST)
        setup = prepare(
            resumed.config, checkpoint.state["split_seed"], going_on=True, check=stop.check,
            progress=reporter.reading, storage=checkpoint.state["storage"],
        )  # fmt: skip
        if setup.dataset.digest != checkpoint.state["data_sha256"]:
            raise UserError(f"{folder.path}: the data in {config.data} are not those that the run learnt from")
        changed = _changed_versions(checkpoint.state["versions"], setup.to_json()["versions"])
        if changed:
            reporter.warn(f"other versions than the run began with: {changed}; the bits may differ")
        if config.lr_schedule == "cosine" and config.epochs != checkpoint.state["config"]["epochs"]:
            reporter.warn("the cosine schedule goes by the number of epochs: from here on η is that of the new number")
        with set_threads(setup.threads):
            run = Run(setup, folder, reporter, stop)
            run.take_up(resumed)
            reporter.resumed(path, run.where.epoch, run.where.progress.done)
            return run.go()


def _changed_versions(before: dict[str, str], now: dict[str, str]) -> str:
    """Return the versions that have changed, such as ``"deltaprop 0.1.0 → 0.2.0"``."""
    names = [name for name in now if before.get(name) != now[name]]
    return ", ".join(f"{name} {before.get(name, 'unknown')} → {now[name]}" for name in names)


@dataclass
class TrainState:
    """Where a run stands: what a checkpoint holds besides weights and momentum.

    Attributes:
        progress: Of the epoch it is in.
        generator: Its state when that epoch began: it draws the order of the samples.
        epoch: From 1.
        seconds: That the epoch has taken.
        last: The line of metrics.jsonl of the epoch before; None before the first.
        best: The line of the epoch with the lowest validation loss.
        best_weights: Of that epoch.
        overrides: What has been changed on the way.
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
    """A training run, from where it stands to its end.

    Args:
        setup: What it is made of.
        folder: Its folder, locked.
        reporter: Receives progress and results.
        stop: Hears signals.
    """

    def __init__(self, setup: Setup, folder: RunFolder, reporter: Reporter, stop: Stop) -> None:
        self.setup, self.folder, self.reporter, self.stop = setup, folder, reporter, stop
        config, scaling = setup.config, setup.dataset.target_scaling
        self.optimizer = make_optimizer(setup.model, config)
        made = ENGINES[config.engine]
        self.engine = made(setup.model, setup.objective, self.optimizer, scaling, config.precision)
        self.feed = DataLoader(setup.dataset.train, setup.objective, config.batch_size, deform=setup.deformation)
        self.steps = math.ceil(len(self.feed) / config.batch_size)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.where = TrainState(self._nothing(), self.generator.get_state())
        self.resumes = False
        self._params = list(setup.model.parameters())
        self._checked = 0
        self._saved_at = time.monotonic()

    def _nothing(self) -> EpochState:
        return EpochState(next(self.setup.model.parameters()).detach().new_zeros(()))

    # --- from the beginning, or from a checkpoint, to the end ---

    def take_up(self, resumed: Resumed) -> None:
        """Stand where a checkpoint stands.

        Raises:
            UserError: If the run folder cannot be written to.
        """
        state, tensors = resumed.checkpoint.state, resumed.checkpoint.tensors
        changed = {record["setting"] for record in resumed.overrides}
        if state["done"] > self.steps and "batch_size" not in changed:
            raise UserError(
                f"{self.folder.path}: damaged: its checkpoint has {state['done']} of {self.steps} steps done"
            )
        self.resumes = True
        if "batch_size" not in changed:  # the order of an epoch hangs on them
            self.feed = DataLoader(
                self.setup.dataset.train,
                self.setup.objective,
                self.setup.config.batch_size,
                (state["block"], state["chunk"]),
                self.setup.deformation,
            )
        own = self.setup.model.state_dict()
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(tensors[f"model.{name}"])
        for name, p in self.setup.model.named_parameters():
            if f"momentum.{name}" in tensors:
                # In memory of its own: where in a file's memory it lies would change how a product is rounded.
                self.optimizer.state[p]["momentum_buffer"] = torch.empty_like(p).copy_(tensors[f"momentum.{name}"])
        progress = EpochState(tensors["total"].to(self.setup.device), state["done"])
        self.where = TrainState(
            progress, tensors["generator"], state["epoch"], state["seconds"], state["last"], state["best"],
            {name: tensors[f"best.{name}"] for name in own if f"best.{name}" in tensors},
            [*state["overrides"], *resumed.overrides],
        )  # fmt: skip
        self.generator.set_state(self.where.generator)
        if "seed" in changed:
            self.generator.manual_seed(self.setup.config.seed)
        if changed & {"seed", "batch_size"}:  # the samples of this epoch come in another order, or by other steps
            self.where.progress, self.where.seconds = self._nothing(), 0.0
            self.where.generator = self.generator.get_state()
        if not resumed.is_last:  # from now on it is, before what came after it is dropped, or in a damaged one's place
            self.folder.save_checkpoint(resumed.checkpoint, self._global_step(), self.setup.config.keep)
        self.folder.keep_metrics(self.where.epoch - 1, self.reporter.warn)
        if self.where.best_weights:
            self.folder.save_weights(BEST, self.where.best_weights)
        else:
            (self.folder.path / BEST).unlink(missing_ok=True)

    def go(self) -> Result:
        """Train to the end.

        Raises:
            TrainingError: If it cannot go on.
            Stopped: If a signal came; everything is saved.
        """
        from deltaprop.training.report.tensorboard import (
            TensorBoardReporter,  # TensorBoard: slow to import, and of no use before
        )

        began = time.perf_counter()
        self.stop.at_once = False
        final = self.folder.path / FINAL
        if self.resumes and self._ended() and final.exists() and final.read_bytes() == as_bytes(self._weights()):
            return self._result(0.0)  # nothing to do, and nothing to write
        self.reporter.start(self.setup, self.folder.path)
        self._write_config()
        if not self._ended():
            (self.folder.path / FINAL).unlink(missing_ok=True)  # of a run that goes on they are not the final ones
        begins = not self.resumes or (self.where.epoch == 1 and not self.where.progress.done)
        first = 0 if begins else self.where.epoch
        with TensorBoardReporter(self.setup, self.folder.path, first, self.reporter.warn) as board:
            self.board = board
            try:
                if not self.resumes:
                    self.save()  # from here on there is something to go on from
                if begins:
                    board.views(0)
                while not self._ended():
                    self._epoch()
                self.folder.save_weights(FINAL, self._weights())
                assert self.where.last is not None
                board.end(self.where.last)
            except Stopped:
                self.save()
                self.reporter.stopped(self.folder.path)
                raise
            self.save()
        return self._result(time.perf_counter() - began)

    def _result(self, seconds: float) -> Result:
        """Return how it ended, and tell."""
        assert self.where.last is not None
        result = Result(self.where.last, self.where.best, self._impatient(), seconds, self.folder.path)
        self.reporter.end(self.setup, result)
        return result

    def _ended(self) -> bool:
        if self.where.progress.done:  # an epoch that was begun is finished
            return False
        return self.where.epoch > self.setup.config.epochs or self._impatient()

    def _impatient(self) -> bool:
        best, patience = self.where.best, self.setup.config.patience
        return best is not None and 0 < patience <= self.where.epoch - 1 - best["epoch"]

    def _weights(self) -> dict[str, Tensor]:
        return dict(self.setup.model.state_dict())

    # --- an epoch ---

    def _epoch(self) -> None:
        """Train through an epoch, or what is left of it, evaluate it, and stand at the beginning of the next."""
        setup, where, config = self.setup, self.where, self.setup.config
        lr = config.rate * config.lr_factor(where.epoch - 1)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        order = self.feed.draw(self.generator)
        self._checked = where.progress.done
        began = time.perf_counter()
        for chunk in self.feed.chunks(order, where.progress.done):
            end = chunk.first + math.ceil(len(chunk.order) / config.batch_size)
            while where.progress.done < end:
                try:
                    self._learn(chunk)
                except torch.OutOfMemoryError as error:
                    raise TrainingError(self._out_of_memory()) from error
                finally:
                    where.seconds += time.perf_counter() - began
                self._check_numbers()
                self.stop.check()
                if where.progress.done < end:
                    self.save()
                began = time.perf_counter()
        dataset = setup.dataset
        val, test = evaluate_parts(
            setup.model, setup.objective, (dataset.val, dataset.test), dataset.target_scaling, self.stop.check,
            at_once=setup.parts_at_once if len(dataset.val) else 1,
        )  # fmt: skip
        self._end_epoch(lr, val, test)

    def _learn(self, chunk: Shard) -> None:
        """Take the steps of a chunk, or those that are left of it, up to a pause."""
        where, before = self.where.progress, chunk.first

        def pause(done: int) -> bool:
            where.done = before + done
            self.reporter.step(self.where.epoch, self.steps, where.done)
            return self._pause(where.done)

        within = EpochState(where.total, where.done - before, pause=pause)
        try:
            self.engine.epoch(chunk.x, chunk.y, chunk.order, self.setup.config.batch_size, within)
        finally:
            where.total, where.done = within.total, before + within.done
        self.reporter.step(self.where.epoch, self.steps, where.done)

    def _pause(self, done: int) -> bool:
        """Return whether to pause an epoch: to save, to stop, or because numbers have gone wrong."""
        if done - self._checked + self.engine.longest_block > EVERY and not self._finite():
            return True
        return self.stop.heard is not None or time.monotonic() - self._saved_at >= self.setup.config.save_seconds

    def _end_epoch(self, lr: float, val: Evaluation | None, test: Evaluation | None) -> None:
        where, config, objective = self.where, self.setup.config, self.setup.objective
        loss = float(where.progress.total) / len(self.feed)
        for part, value in (("training", loss), *((n, p.loss) for n, p in (("validation", val), ("test", test)) if p)):
            if not math.isfinite(value):
                raise TrainingError(self._not_finite(f"the {part} loss became {value}"))
        metrics: dict[str, Any] = {
            "epoch": where.epoch,
            "step": where.epoch * self.steps,
            "train_loss": loss,
            **_figures(objective, "val", val),
            **_figures(objective, "test", test),
            "lr": lr,
            "seconds": where.seconds,
            "samples_per_second": len(self.feed) / where.seconds,
        }
        self.folder.append_metrics(metrics)
        if metrics["val_loss"] is not None and (where.best is None or metrics["val_loss"] < where.best["val_loss"]):
            where.best = metrics
            where.best_weights = {name: t.detach().clone() for name, t in self.setup.model.state_dict().items()}
            self.folder.save_weights(BEST, where.best_weights)
        self.board.epoch(metrics)
        self.reporter.epoch(self.setup, metrics)
        where.last, where.epoch = metrics, where.epoch + 1
        where.progress, where.generator, where.seconds = self._nothing(), self.generator.get_state(), 0.0
        self._checked = 0
        if self._ended() or (config.log_every and metrics["epoch"] % config.log_every == 0):
            self.board.views(metrics["epoch"], test)
        if config.save_epochs and metrics["epoch"] % config.save_epochs == 0:
            self.save()

    # --- numbers that are none ---

    def _tensors(self) -> dict[str, Tensor]:
        """Return weights and momentum buffers by name."""
        found = {f"model.{name}": t for name, t in self.setup.model.state_dict().items()}
        for name, p in self.setup.model.named_parameters():
            buffer = self.optimizer.state.get(p, {}).get("momentum_buffer")
            if buffer is not None:
                found[f"momentum.{name}"] = buffer
        return found

    def _finite(self) -> bool:
        """Return whether weights, momentum and losses are finite by now."""
        state = self.optimizer.state
        buffers = [state[p]["momentum_buffer"] for p in self._params if "momentum_buffer" in state.get(p, ())]
        if not all_finite([self.where.progress.total, *self._params, *buffers]):
            return False
        self._checked = self.where.progress.done
        return True

    def _check_numbers(self) -> None:
        """Refuse to go on with numbers that are not finite.

        Raises:
            TrainingError: If there are some.
        """
        if not self._finite():
            places = name_non_finite(self.setup.model, self._tensors())
            what = f"no finite numbers any more in {places}" if places else "the loss is no finite number any more"
            raise TrainingError(self._not_finite(what))

    def _not_finite(self, what: str) -> str:
        before = (self.where.epoch - 1) * self.steps
        first, last = before + self._checked + 1, before + self.where.progress.done
        steps = f"steps {min(first, last)} to {last}"
        return (
            f"{what}, epoch {self.where.epoch}, {steps}: lower `lr` (it is {self.setup.config.rate:g}) or `momentum`, "
            f"or try another `init`; the last checkpoint is from before that"
        )

    def _out_of_memory(self) -> str:
        batch = self.setup.config.batch_size
        less = setting("batch_size", max(1, batch // 2))
        return f"out of memory on {self.setup.device} with {setting('batch_size', batch)}: try {less}"

    # --- what is kept ---

    def save(self) -> None:
        """Write a checkpoint of where the run stands; nothing that is not finite is ever written.

        Raises:
            TrainingError: If there is something that is not finite, or the disk does not take it.
        """
        where = self.where
        self._check_numbers()
        self.board.flush()
        config = self.setup.config
        state = {
            "epoch": where.epoch,
            "done": where.progress.done,
            "seconds": where.seconds,
            "last": where.last,
            "best": where.best,
            "overrides": where.overrides,
            "split_seed": self.setup.split_seed,
            "threads": self.setup.threads,
            "data_sha256": self.setup.dataset.digest,
            "storage": self.setup.storage,
            "block": self.feed.block,
            "chunk": self.feed.chunk,
            "device": str(self.setup.device),
            "config": {**config.to_json(), "run_dir": None, "config": None},
            "resolved": {"sizes": self.setup.sizes},
            "model_sha256": model_digest(config, self.setup.to_json()["resolved"]),
            "versions": self.setup.to_json()["versions"],
        }
        tensors = {**self._tensors(), "generator": where.generator, "total": where.progress.total}
        tensors |= {f"best.{name}": t for name, t in where.best_weights.items()}
        step = self._global_step()
        self.folder.save_checkpoint(Checkpoint(tensors, state), step, config.keep)
        self._saved_at = time.monotonic()

    def _global_step(self) -> int:
        return (self.where.epoch - 1) * self.steps + self.where.progress.done

    def _write_config(self) -> None:
        config = self.setup.to_json()
        self.folder.write_config({**config, "overrides": self.where.overrides} if self.where.overrides else config)


BEST, FINAL = "best.safetensors", "model.safetensors"


def _figures(objective: Objective, part: str, evaluation: Evaluation | None) -> dict[str, float | None]:
    """Return a part's figures; None for each where the part has no rows."""
    if evaluation is not None:
        return evaluation.figures(part)
    metric = "accuracy" if objective.task == "classification" else "rmse"
    return {f"{part}_loss": None, f"{part}_{metric}": None}
