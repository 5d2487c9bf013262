"""A run that is on disk: its configuration, its data and its weights, as they were when it ended.

Nothing is unpickled, and no code is loaded: config.json is parsed and judged setting by setting, weights are
safetensors.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import nn

from deltaprop.errors import UserError
from deltaprop.training.config import TrainConfig, from_json
from deltaprop.training.setup import Setup, prepare

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
    except ValueError as error:  # of JSON, or of UTF-8
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
    config, resolved = read_config(folder)
    state = _read_weights(folder, weights)
    here = {"device": "cpu", "precision": "float32", "threads": "1", "run_dir": None, "data": data or config.data}
    try:
        setup = prepare(dataclasses.replace(config, **here))  # type: ignore[arg-type]
    except UserError as error:
        raise UserError(f"{folder}: its data: {error}" + ("" if data else "; --data says where it lies now")) from error
    if setup.dataset.digest != resolved.get("data_sha256"):
        raise UserError(f"{folder}: the data in {data or config.data} are not those that the run learnt from")
    _load_weights(setup.model, state, folder / WEIGHTS[weights])
    return setup


def _read_weights(folder: Path, weights: str) -> dict[str, Any]:
    path = folder / WEIGHTS[weights]
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError as error:
        other = next((name for name, file in WEIGHTS.items() if name != weights and (folder / file).exists()), None)
        hint = f"take --weights {other}" if other else "the run has not come to an end"
        raise UserError(f"{path}: there is no such file: {hint}") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: damaged: {error}") from error


def _load_weights(model: nn.Module, state: dict[str, Any], path: Path) -> None:
    own = model.state_dict()
    if list(state) != list(own) and set(state) != set(own):
        raise UserError(f"{path}: it has {', '.join(state) or 'nothing'}, the net of the run {', '.join(own)}")
    for name, value in own.items():
        if state[name].shape != value.shape:
            raise UserError(f"{path}: {name} is {list(state[name].shape)}, in the net of the run {list(value.shape)}")
    model.load_state_dict(state)
