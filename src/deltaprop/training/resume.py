"""Which settings may change when a run is resumed.

=============  =====================================================================================================
 kind           settings
=============  =====================================================================================================
 free           epochs (not below what is done), patience, weights, log_every, save_every, keep, cache, memory,
                exchange, parallel, timeout, and the number of processes
 by override    what changes the result: optimizer, engine, device, threads, precision, exchange_dtype, the seed (of
                the order of samples: split and weights stay); recorded in config.json
 fixed          the model, its loss, the dtype, the rows to train on, and their scaling
=============  =====================================================================================================
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from deltaprop.errors import UserError, setting
from deltaprop.training.checkpoint import Checkpoint
from deltaprop.training.config import TrainConfig, from_json

FREE = {
    "epochs", "patience", "weights", "log_every", "save_every", "keep", "run_dir", "config", "cache", "memory",
    "exchange", "parallel", "timeout",
}  # fmt: skip
RESOLVED = ("lr", "weight_decay", "lr_schedule", "epochs", "log_every", "weights", "engine")  # a checkpoint has no auto
BY_OVERRIDE = {
    "lr", "momentum", "nesterov", "weight_decay", "decay_biases", "lr_schedule", "lr_step", "lr_gamma", "lr_warmup",
    "batch_size", "seed", "engine", "precision", "device", "threads", "data", "test",
    "exchange_dtype",
}  # fmt: skip


def locate(path: Path) -> tuple[Path, Path | None]:
    """Return the folder of a run, and the checkpoint that the path names, if it is one."""
    return (path.parent.parent, path) if path.is_file() else (path, None)


def saved_config(checkpoint: Checkpoint, folder: Path) -> TrainConfig:
    """Return the configuration in a checkpoint, with the folder where the run is now."""
    return dataclasses.replace(from_json(str(folder), checkpoint.state["config"]), run_dir=folder, config=None)


def plan_resume(
    folder: Path,
    checkpoint: Checkpoint,
    requested: TrainConfig,
    override: Collection[str] = (),
    processes: int = 1,
) -> tuple[TrainConfig, list[dict[str, Any]]]:
    """Return the configuration to resume with, and a record of each setting that is overridden.

    Args:
        folder: The folder of the run.
        checkpoint: The checkpoint to resume from.
        requested: The saved configuration with the user's changes.
        override: Settings that may change the result.
        processes: How many go on with the run. If it had another number, ``threads`` may change too.

    Raises:
        UserError: If a setting is changed that must not be; it lists them all.
    """
    saved, state = saved_config(checkpoint, folder), checkpoint.state
    override = [name.removeprefix("--").replace("-", "_") for names in override for name in names.split(",")]
    for name in override:
        if name not in BY_OVERRIDE:
            raise UserError(f"{setting('override', name)}: must be one of {', '.join(sorted(BY_OVERRIDE))}")
    before, after = saved.to_json(), requested.to_json()
    # These are compared as resolved: `auto` may resolve to something else on another machine.
    resolved: dict[str, Any] = {"threads": str(state["threads"]), "device": str(state["device"])}
    resolved |= {name: before[name] for name in RESOLVED}
    if after["engine"] == state.get("resolved", {}).get("engine_asked"):
        after["engine"] = "auto"  # the engine asked for then, in whose place another may have trained
    if processes != state.get("resolved", {}).get("processes", 1):
        if after["threads"] in (before["threads"], resolved["threads"]):  # chosen for another number of processes
            after["threads"] = "auto"
        resolved["threads"] = before["threads"] = after["threads"]
    for name, value in resolved.items():
        after[name] = value if after[name] in ("auto", before[name]) else after[name]
    before |= resolved
    changed = {name: (old, after[name]) for name, old in before.items() if old != after[name] and name not in FREE}
    fixed = {name: pair for name, pair in changed.items() if name not in BY_OVERRIDE}
    if fixed:
        raise UserError(f"{folder}: a run cannot be resumed with another model or other data: {_diff(fixed)}")
    refused = {name: pair for name, pair in changed.items() if name not in override}
    if refused:
        settings = " ".join(setting("override", name) for name in refused)
        raise UserError(f"{folder}: this would change the result: {_diff(refused)}; to allow it, add {settings}")
    done = state["epoch"] - 1
    epochs = after["epochs"]
    if epochs < done or (epochs == done and state["done"]):
        raise UserError(f"{setting('epochs', epochs)}: the run has already completed {done} epochs")
    position = {"epoch": state["epoch"], "step": state["done"]}
    records = [{**position, "setting": name, "from": old, "to": new} for name, (old, new) in changed.items()]
    config = dataclasses.replace(requested, run_dir=folder, **{name: after[name] for name in resolved})
    return config, records


def _diff(changed: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{name} {_plain(old)} → {_plain(new)}" for name, (old, new) in changed.items())


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
