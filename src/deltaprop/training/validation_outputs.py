"""The outputs of a trained model for its validation rows, stored to calibrate intervals and thresholds with them."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
from torch import Tensor

from deltaprop.data import Part
from deltaprop.training.atomic_files import write_whole
from deltaprop.training.checkpoint import encode_tensors
from deltaprop.training.evaluate import evaluate
from deltaprop.training.run_folder import VALIDATION
from deltaprop.training.setup import Setup

MOST_STORED = 10**6  # validation rows; of more, evenly spaced ones are stored


class ValidationOutputs(NamedTuple):
    """Outputs for validation rows, and what they should have been.

    Attributes:
        outputs: a^L, [n, n_L].
        targets: Labels [n], or scaled targets [n, k].
    """

    outputs: Tensor
    targets: Tensor


def save_validation_outputs(
    folder: Path,
    setup: Setup,
    weights: Mapping[str, Mapping[str, Tensor]],
    check: Callable[[], None] = lambda: None,
) -> None:
    """Write the outputs of each of several states of a model for the validation rows; nothing if they have no use.

    Args:
        folder: The folder of the run.
        setup: The setup of the run; its model and its weights are unchanged.
        weights: A state_dict by name; of two that are equal, the outputs are stored once.
        check: Called before each chunk of rows; may raise to stop.
    """
    part: Part = setup.dataset.val
    if not len(part) or not (setup.objective.task == "regression" or setup.dataset.n_outputs == 2):
        return
    step = -(-len(part) // MOST_STORED)
    tensors, digests = {"targets": part.y[::step]}, dict[str, str]()
    model = copy.deepcopy(setup.model)
    for name, state in weights.items():
        digest = _state_sha256(state)
        if digest in digests.values():
            continue
        model.load_state_dict(state)
        evaluation = evaluate(model, setup.objective, part, setup.dataset.target_scaling, check)
        assert evaluation is not None
        tensors[f"outputs.{name}"], digests[name] = evaluation.outputs[::step], digest
    content = encode_tensors(tensors, {"weights_sha256": json.dumps(digests)})
    write_whole(folder / VALIDATION, content)


def read_validation_outputs(folder: Path, state: Mapping[str, Tensor]) -> ValidationOutputs | None:
    """Return what was stored for these weights; None if nothing was, or the file is damaged."""
    try:
        with safetensors.safe_open(folder / VALIDATION, "pt") as file:
            digests: dict[str, Any] = json.loads((file.metadata() or {})["weights_sha256"])
            name = next(name for name, digest in digests.items() if digest == _state_sha256(state))
            found = ValidationOutputs(file.get_tensor(f"outputs.{name}"), file.get_tensor("targets"))
    except (OSError, safetensors.SafetensorError, KeyError, ValueError, AttributeError, TypeError, StopIteration):
        return None
    fits = len(found.outputs) == len(found.targets) > 0 and found.outputs.dim() == 2
    return found if fits and bool(found.outputs.isfinite().all()) else None


def _state_sha256(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a state_dict, as hex, in any order of its entries and on any device."""
    return hashlib.sha256(encode_tensors({name: state[name] for name in sorted(state)})).hexdigest()
