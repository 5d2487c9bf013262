"""A run that is on disk: its configuration, its data and its weights, as they were when it ended.

Nothing is unpickled, and no code is loaded: config.json is parsed and checked setting by setting, weights are
safetensors.
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
from deltaprop.training.checkpoint import DamagedError
from deltaprop.training.config import TrainConfig, from_json
from deltaprop.training.run_folder import LAST, load_checkpoint, tensors_of
from deltaprop.training.setup import Setup, model_digest, prepare

WEIGHTS = {"final": "model.safetensors", "best": "best.safetensors"}


def read_config(folder: Path) -> tuple[TrainConfig, dict[str, Any]]:
    """Return the configuration of a run, and what it was resolved to.

    Raises:
        UserError: If the folder holds no run, or its config.json is damaged.
    """
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        what = "there is no such folder" if not folder.is_dir() else "no run: there is no config.json in it"
        raise UserError(f"{folder}: {what}") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # of JSON, or of UTF-8
        raise UserError(f"{path}: damaged: {error}") from error
    resolved = found.get("resolved") if isinstance(found, dict) else None
    if not isinstance(resolved, dict):
        raise UserError(f"{path}: damaged: it has no 'resolved'")
    return from_json(str(path), found), resolved


def load_run(folder: Path, weights: str = "final", data: str | None = None) -> Setup:
    """Return a run as it ended: its data, split and scaled as it was, and its model with its weights, on the CPU.

    Args:
        folder: Of the run.
        weights: ``"final"``, or ``"best"`` for those of the lowest validation loss.
        data: Where the data lies now; where it lay then by default.

    Raises:
        UserError: If the folder holds no run, its files are damaged, or the data are not what they were.
    """
    config, resolved, state = read_run(folder, weights)
    split_seed = resolved.get("split_seed", config.seed)  # another than the seed where that was overridden later
    if type(split_seed) is not int or not 0 <= split_seed < 2**32:
        raise UserError(f"{folder / 'config.json'}: damaged: its split_seed is {split_seed!r:.80}")
    here = {"device": "cpu", "precision": "float32", "threads": "1", "run_dir": None, "data": data or config.data}
    try:
        found = dataclasses.replace(config, **here)  # type: ignore[arg-type]  # of several kinds
        setup = prepare(found, split_seed, storage=resolved.get("storage"))
    except UserError as error:
        raise UserError(f"{folder}: its data: {error}" + ("" if data else "; `data` says where it lies now")) from error
    if setup.dataset.digest != resolved.get("data_sha256"):
        raise UserError(f"{folder}: the data in {data or config.data} are not those that the run learnt from")
    setup.model.load_state_dict(state)
    return setup


def read_run(folder: Path, weights: str = "final") -> tuple[TrainConfig, dict[str, Any], dict[str, Tensor]]:
    """Return the configuration of a run, what it was resolved to, and its weights, once they fit each other.

    Args:
        folder: Of the run.
        weights: ``"final"``, or ``"best"`` for those of the lowest validation loss.

    Raises:
        UserError: If the folder holds no run, or its files are damaged.
    """
    config, resolved = read_config(folder)
    state = _read_weights(folder, weights)
    _check_weights(state, config, resolved, folder / WEIGHTS[weights])  # before a net of that size is made
    _check_beside_checkpoint(state, config, resolved, folder, weights)
    return config, resolved, state


def _read_weights(folder: Path, weights: str) -> dict[str, Any]:
    path = folder / WEIGHTS[weights]
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError as error:
        other = next((name for name, file in WEIGHTS.items() if name != weights and (folder / file).exists()), None)
        hint = f"take {setting('weights', other)}" if other else "the run has not come to an end"
        raise UserError(f"{path}: there is no such file: {hint}") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: damaged: {error}") from error


def _check_weights(state: dict[str, Any], config: TrainConfig, resolved: dict[str, Any], path: Path) -> None:
    """Refuse weights that are not those of the run's net.

    Raises:
        UserError: If names, shapes or dtypes are others.
    """
    sizes, inner = resolved.get("sizes"), [*config.hidden]
    if not isinstance(sizes, list) or sizes[1:-1] != inner or not all(type(size) is int for size in sizes):
        raise UserError(f"{path.parent / 'config.json'}: damaged: its sizes are {sizes!r:.80}")
    dtype = torch.float32 if config.dtype == "float32" else torch.float64
    own = {name: shape for name, (_, shape) in tensors_of(sizes, dtype).items() if name.startswith("model.")}
    own = {name.removeprefix("model."): shape for name, shape in own.items()}
    if set(state) != set(own):
        raise UserError(f"{path}: it has {', '.join(state) or 'nothing'}, the net of the run {', '.join(own)}")
    for name, shape in own.items():
        if tuple(state[name].shape) != shape or state[name].dtype != dtype:
            found = f"{list(state[name].shape)} of {state[name].dtype}"
            raise UserError(f"{path}: {name} is {found}, in the net of the run {list(shape)} of {dtype}")


def _check_beside_checkpoint(
    state: dict[str, Any], config: TrainConfig, resolved: dict[str, Any], folder: Path, weights: str
) -> None:
    """Refuse weights, or preprocessing, if the last checkpoint of the run, which has a digest, has others.

    Raises:
        UserError: If it has.
    """
    try:
        checkpoint = load_checkpoint(folder / "checkpoints" / LAST)
    except DamagedError:  # there is none to compare with
        return
    if model_digest(config, resolved) != checkpoint.state["model_sha256"]:
        raise UserError(
            f"{folder / 'config.json'}: damaged: columns, scalings, classes, activations, loss or split are another's"
        )
    ended = checkpoint.state["epoch"] > checkpoint.state["config"]["epochs"]
    kind = "model" if weights == "final" else "best"
    theirs = {name: checkpoint.tensors.get(f"{kind}.{name}") for name in state}
    if ended and any(t is not None and not torch.equal(t, state[name]) for name, t in theirs.items()):
        raise UserError(f"{folder / WEIGHTS[weights]}: damaged: the run's last checkpoint has other weights")
