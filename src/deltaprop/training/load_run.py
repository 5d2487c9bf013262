"""Load a finished run from its folder: configuration, data and weights.

Nothing is unpickled, and no code is loaded: config.json is parsed and every setting checked, weights are safetensors.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from deltaprop.errors import UserError, setting
from deltaprop.training.checkpoint import DamagedError, check_tensors, load_checkpoint
from deltaprop.training.config import WHEN_ABSENT, TrainConfig, from_json, is_int
from deltaprop.training.run_folder import BEST, FINAL, LAST
from deltaprop.training.setup import Setup, model_digest, prepare

WEIGHTS = {"final": FINAL, "best": BEST}


def read_config(folder: Path) -> tuple[TrainConfig, dict[str, Any]]:
    """Return the configuration of a run, and its resolved values.

    Raises:
        UserError: If the folder is not that of a run, or its config.json is damaged.
    """
    path = folder / "config.json"
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        what = "this is not a run: there is no config.json in it" if folder.is_dir() else "there is no such folder"
        raise UserError(f"{folder}: {what}") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # invalid JSON or UTF-8
        raise UserError(f"{path}: damaged: {error}") from error
    resolved = saved.get("resolved") if isinstance(saved, dict) else None
    if not isinstance(resolved, dict):
        raise UserError(f"{path}: damaged: it has no 'resolved'")
    return from_json(str(path), saved), resolved


def recorded_weights(folder: Path) -> str:
    """Return which weights are the model of a run: ``"best"``, those of the lowest validation loss, or ``"final"``.

    Raises:
        UserError: If the folder is not that of a run, or its config.json is damaged.
    """
    return _recorded(folder, *read_config(folder))


def _recorded(folder: Path, config: TrainConfig, resolved: dict[str, Any]) -> str:
    """Return the weights that config.json records twice; version 0.1 had no choice."""
    weights = resolved.get("weights", WHEN_ABSENT["weights"])
    if weights not in WEIGHTS or weights != config.weights:
        what = f"its weights are {config.weights!r}, and resolved {weights!r:.80}"
        raise UserError(f"{folder / 'config.json'}: damaged: {what}")
    return str(weights)


def load_run(folder: Path, weights: str | None = None, data: str | None = None) -> Setup:
    """Return the setup of a run on the CPU: its data, split and scaled as in training, and its trained model.

    Args:
        folder: The folder of the run.
        weights: ``"final"``, or ``"best"`` for those of the lowest validation loss; by default those that the run
            records as its model.
        data: Where the data are now; by default where they were in training.

    Raises:
        UserError: If the folder is not that of a run, its files are damaged, or the data have changed.
    """
    config, resolved, state = read_run(folder, weights)
    split_seed = resolved.get("split_seed", config.seed)  # different if the seed was overridden on resume
    if not is_int(split_seed) or not 0 <= split_seed < 2**32:
        raise UserError(f"{folder / 'config.json'}: damaged: its split_seed is {split_seed!r:.80}")
    config = dataclasses.replace(
        config, device="cpu", precision="float32", threads="1", run_dir=None, data=data or config.data
    )
    try:
        setup = prepare(config, split_seed, storage=resolved.get("storage"))
    except UserError as error:
        raise UserError(
            f"{folder}: its data: {error}" + ("" if data else "; `data` says where they are now")
        ) from error
    if setup.dataset.digest != resolved.get("data_sha256"):
        raise UserError(f"{folder}: the data in {config.data} are not those that the run was trained on")
    setup.model.load_state_dict(state)
    return setup


def read_run(folder: Path, weights: str | None = None) -> tuple[TrainConfig, dict[str, Any], dict[str, Tensor]]:
    """Return the configuration of a run, its resolved values, and its weights, checked against each other.

    Args:
        folder: The folder of the run.
        weights: ``"final"``, or ``"best"`` for those of the lowest validation loss; by default those that the run
            records as its model, once it has ended.

    Raises:
        UserError: If the folder is not that of a run, or its files are damaged.
    """
    config, resolved = read_config(folder)
    path = folder / "config.json"
    try:
        model = config.build_model(resolved.get("sizes"), device="meta")  # takes no memory
        if weights is None:
            weights, path = _recorded(folder, config, resolved), folder / FINAL
            path.stat()  # it is written at the end: the best weights of a run that goes on may change
        path = folder / WEIGHTS[weights]
        state = safetensors.torch.load_file(path)
        check_tensors(state, model.state_dict())
    except FileNotFoundError as error:
        other = next((name for name, file in WEIGHTS.items() if (folder / file).exists()), None)
        hint = f"take {setting('weights', other)}" if other else "the run has not ended yet"
        raise UserError(f"{path}: there is no such file: {hint}") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: damaged: {error}") from error
    _check_against_checkpoint(state, config, resolved, folder, weights)
    return config, resolved, state


def _check_against_checkpoint(
    state: dict[str, Tensor], config: TrainConfig, resolved: dict[str, Any], folder: Path, weights: str
) -> None:
    """Raise a UserError if weights or preprocessing differ from the last checkpoint, which has a digest."""
    try:
        checkpoint = load_checkpoint(folder / "checkpoints" / LAST)
    except DamagedError:  # nothing to compare with
        return
    if model_digest(config, resolved) != checkpoint.state["model_sha256"]:
        what = "columns, scalings, classes, activations, loss or split differ from the last checkpoint"
        raise UserError(f"{folder / 'config.json'}: damaged: {what}")
    ended = checkpoint.state["epoch"] > checkpoint.state["config"]["epochs"]
    kind = "model" if weights == "final" else "best"
    saved = {name: checkpoint.tensors.get(f"{kind}.{name}", value) for name, value in state.items()}
    if ended and not all(torch.equal(saved[name], value) for name, value in state.items()):
        raise UserError(f"{folder / WEIGHTS[weights]}: damaged: the run's last checkpoint has other weights")
