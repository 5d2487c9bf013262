"""What may change when a run goes on, and what may not.

=============  =====================================================================================================
 kind           settings
=============  =====================================================================================================
 may change     epochs (not below what is done), patience, log_every, save_every, keep, cache, memory
 on demand      what breaks exactness, by ``override``, and then recorded: how it learns, by which engine, on what
                device, with how many threads; the seed (of the order of samples: split and weights stay)
 never          the net, its loss, the dtype, which rows are learnt from, and how they are scaled
=============  =====================================================================================================
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltaprop.errors import UserError, setting
from deltaprop.training.checkpoint import Checkpoint
from deltaprop.training.config import TrainConfig, from_json
from deltaprop.training.run_folder import RunFolder

MAY_CHANGE = {"epochs", "patience", "log_every", "save_every", "keep", "run_dir", "config", "cache", "memory"}
ON_DEMAND = {
    "lr", "momentum", "nesterov", "weight_decay", "decay_biases", "lr_schedule", "lr_step", "lr_gamma", "lr_warmup",
    "batch_size", "seed", "engine", "precision", "device", "threads", "data", "test",
}  # fmt: skip


@dataclass(frozen=True)
class Resumed:
    """A run to go on with.

    Attributes:
        folder: Of the run.
        checkpoint: Where it stands.
        config: It goes on with.
        overrides: What was changed, on demand, now: a record for each setting.
        is_last: Whether the checkpoint is the last; else an older one was asked for, or the last is damaged.
    """

    folder: RunFolder
    checkpoint: Checkpoint
    config: TrainConfig
    overrides: list[dict[str, Any]]
    is_last: bool = True


def locate(path: Path) -> tuple[Path, Path | None]:
    """Return the folder of a run, and the checkpoint of it that a path names, if it names one."""
    return (path.parent.parent, path) if path.is_file() else (path, None)


def saved_config(checkpoint: Checkpoint, path: Path) -> TrainConfig:
    """Return the configuration of a checkpoint; the run folder is where it lies now."""
    return dataclasses.replace(from_json(str(path), checkpoint.state["config"]), run_dir=path, config=None)


def plan_resume(
    folder: RunFolder,
    checkpoint: Checkpoint,
    asked: TrainConfig,
    override: Collection[str] = (),
    *,
    is_last: bool = True,
) -> Resumed:
    """Return the run to go on with, its configuration changed as far as it may be.

    Args:
        folder: Of the run.
        checkpoint: Where it stands.
        asked: The configuration that is asked for: the saved one, less what the user has changed.
        override: Settings that may break exactness.
        is_last: Whether the checkpoint is the last.

    Raises:
        UserError: If something is changed that may not be; it says all of it.
    """
    saved, state = saved_config(checkpoint, folder.path), checkpoint.state
    override = [name.removeprefix("--").replace("-", "_") for words in override for name in words.split(",")]
    for name in override:
        if name not in ON_DEMAND:
            raise UserError(f"{setting('override', name)}: this is none of {', '.join(sorted(ON_DEMAND))}")
    before, after = saved.to_json(), asked.to_json()
    # Threads, device and η count as what they came to: `auto` may come to something else on another machine.
    came_to = {"threads": str(state["threads"]), "device": str(state["device"]), "lr": saved.rate}
    for name, value in came_to.items():
        after[name] = value if after[name] in ("auto", before[name]) else after[name]
    before |= came_to
    changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    exact = {name: pair for name, pair in changed.items() if name not in MAY_CHANGE}
    never = {name: pair for name, pair in exact.items() if name not in ON_DEMAND}
    if never:
        raise UserError(f"{folder.path}: another net or other data cannot go on from here: {_diff(never)}")
    refused = {name: pair for name, pair in exact.items() if name not in override}
    if refused:
        flags = " ".join(setting("override", name) for name in refused)
        raise UserError(f"{folder.path}: not the same run any more: {_diff(refused)}; if it is meant so, {flags}")
    done = state["epoch"] - 1
    if asked.epochs < done or (asked.epochs == done and state["done"]):
        raise UserError(f"{setting('epochs', asked.epochs)}: the run has done {done} already")
    where = {"epoch": state["epoch"], "step": state["done"]}
    overrides = [{**where, "setting": name, "from": old, "to": new} for name, (old, new) in exact.items()]
    config = dataclasses.replace(asked, run_dir=folder.path, **{name: after[name] for name in came_to})
    return Resumed(folder, checkpoint, config, overrides, is_last)


def _diff(changed: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{name} {_plain(old)} → {_plain(new)}" for name, (old, new) in changed.items())


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
