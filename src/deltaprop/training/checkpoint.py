"""Checkpoints: everything needed to resume a run, in one safetensors file that is verified before it is used.

Tensors are stored by name: ``model.<name>`` for each entry of the model's state dict, ``optimizer.<key>.<parameter>``
for each tensor of the optimizer's state dict, ``best.<name>`` for the best weights so far, the state of the random
generator and the sum of the epoch's losses. Everything else is JSON in the metadata, together with the SHA-256 of the
whole file, computed with the digest's own 64 characters set to zeros: it covers every bit, the header included.
(safetensors alone accepts a flipped bit in a weight.)

Nothing is unpickled. safetensors checks that dtypes, shapes and offsets fit the file, so a damaged or hostile header
never allocates more than the file holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from deltaprop._torch_compat import without_compiler
from deltaprop.data.store import Storage
from deltaprop.distributed import part_of
from deltaprop.errors import UserError
from deltaprop.training.config import from_json, is_int, is_number
from deltaprop.training.setup import make_optimizer

CHECKPOINT_FORMAT = 2  # format 1, of deltaprop 0.1, had momentum.<parameter> for optimizer.momentum_buffer.<parameter>
MAX_HEADER = 2**22  # bytes; a model of a thousand layers needs a fifth of it
BLANK = b"0" * 64
DIGEST_KEY = b'"sha256":"'  # inside a JSON string the quotes would be escaped


class DamagedError(Exception):
    """A file is not a valid checkpoint; the message is one line."""


@dataclass(frozen=True)
class Checkpoint:
    """The saved state of a run.

    Attributes:
        tensors: Tensors by name.
        state: All other values, as JSON.
    """

    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


# --- the state of a model and an optimizer ---


def state_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the tensors of both state dicts by name: ``model.<name>`` and ``optimizer.<key>.<parameter>``.

    Hyperparameters in the optimizer's parameter groups are not included: they come from the configuration.

    Raises:
        TypeError: If the optimizer's state of a parameter has a value that is neither a tensor nor None.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    names = _parameter_names(model, optimizer)
    for index, entries in without_compiler(type(optimizer).state_dict)(optimizer)["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{key}.{names[index]}"] = value
            elif value is not None:
                raise TypeError(f"optimizer state {key!r} of {names[index]} must be a tensor, got {value!r:.80}")
    return tensors


def load_state_tensors(tensors: Mapping[str, Tensor], model: nn.Module, optimizer: Optimizer) -> None:
    """Restore a model and an optimizer, in place, from what :func:`state_tensors` returned; other names are ignored.

    Raises:
        RuntimeError: If the model's names or shapes are different.
        KeyError: If the optimizer's state has a parameter that the model does not have.
    """
    parameters = dict(model.named_parameters())
    weights = {
        name: part_of(t, parameters[name]) if name in parameters else t for name, t in subset(tensors, "model").items()
    }
    model.load_state_dict(weights)
    indices = {name: index for index, name in enumerate(_parameter_names(model, optimizer))}
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in subset(tensors, "optimizer").items():
        key, _, parameter = name.partition(".")
        # In memory of its own: the address of a tensor within a file's memory would change how a product is rounded.
        state.setdefault(indices[parameter], {})[key] = part_of(value.clone(), parameters[parameter])
    groups = without_compiler(type(optimizer).state_dict)(optimizer)["param_groups"]
    without_compiler(type(optimizer).load_state_dict)(optimizer, {"state": state, "param_groups": groups})


def subset(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with ``<prefix>.``, by the rest of their names."""
    return {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check names, shapes and dtypes of tensors against a state dict, which may be on the meta device.

    Raises:
        ValueError: If they are different.
    """
    if tensors.keys() != expected.keys():
        raise ValueError(f"it has {', '.join(tensors)[:200] or 'nothing'}, the run's model {', '.join(expected)[:200]}")
    for name, like in expected.items():
        if tensors[name].shape != like.shape or tensors[name].dtype != like.dtype:
            got, right = (f"{list(t.shape)} of {t.dtype}" for t in (tensors[name], like))
            raise ValueError(f"{name} is {got}, in the run's model {right}")


def _parameter_names(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """Return the name of each parameter by its index in the optimizer's state dict."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


# --- the file ---


def encode(checkpoint: Checkpoint) -> bytes:
    """Return the content of a checkpoint file, with its SHA-256."""
    state = json.dumps({"format": CHECKPOINT_FORMAT, **checkpoint.state}, allow_nan=False)
    raw = encode_tensors(checkpoint.tensors, {"state": state, "sha256": BLANK.decode()})
    start = raw.index(DIGEST_KEY + BLANK) + len(DIGEST_KEY)
    return raw[:start] + hashlib.sha256(raw).hexdigest().encode() + raw[start + len(BLANK) :]


def encode_tensors(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """Return tensors from any device as the content of a safetensors file."""
    return safetensors.torch.save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, metadata)


def read_checkpoint(path: Path) -> Checkpoint:
    """Return a checkpoint whose SHA-256 is correct, in the names of the current format.

    Raises:
        DamagedError: If the file is damaged or not a checkpoint.
    """
    try:
        _check_digest(path)
        with safetensors.safe_open(path, "pt") as file:
            state = json.loads((file.metadata() or {})["state"], parse_constant=_refuse_constant)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        if state["format"] not in (1, CHECKPOINT_FORMAT):
            raise DamagedError(f"of format {state['format']!r:.20}, and this deltaprop reads 1 and {CHECKPOINT_FORMAT}")
    except safetensors.SafetensorError as error:
        raise DamagedError(f"damaged: {error}") from error
    except OSError as error:
        raise DamagedError(f"cannot be read: {error.strerror or error}") from error
    except (KeyError, TypeError) as error:
        raise DamagedError("not a checkpoint: it has no state, or one without a format") from error
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"not a checkpoint: its state is not JSON ({type(error).__name__})") from error
    if state["format"] == 1:
        momentum = {f"optimizer.momentum_buffer.{name}": value for name, value in subset(tensors, "momentum").items()}
        tensors = {name: value for name, value in tensors.items() if not name.startswith("momentum.")} | momentum
    return Checkpoint(tensors, state)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")  # Python's parser accepts NaN and Infinity


def _check_digest(path: Path) -> None:
    """Refuse a file whose SHA-256 is not the one in its header; it is read piece by piece, in little memory."""
    if not path.is_file():  # opening a pipe would wait for it
        raise DamagedError("is not a file" if path.exists() else "there is no such file")
    with open(path, "rb") as file:
        start, size = file.read(8), path.stat().st_size
        length = int.from_bytes(start, "little")
        if not 2 <= length <= min(size - 8, MAX_HEADER):  # safetensors would parse a header of 100 MB
            raise DamagedError(f"damaged or not a checkpoint: a header of {length} bytes in a file of {size}")
        before, key, after = file.read(length).partition(DIGEST_KEY)
        if not key or DIGEST_KEY in after:
            raise DamagedError("damaged or not a checkpoint: it has no SHA-256")
        digest = hashlib.sha256(start + before + key + BLANK + after[len(BLANK) :])
        while piece := file.read(2**20):
            digest.update(piece)
    if digest.hexdigest().encode() != after[: len(BLANK)]:
        raise DamagedError("damaged: its SHA-256 is wrong")


# --- the checkpoint of a run ---


def load_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint of a run, its state and its tensors checked.

    Raises:
        DamagedError: If the file is damaged or not a checkpoint.
    """
    checkpoint = read_checkpoint(path)
    try:
        _check_state(checkpoint.state)
        config = from_json("config", checkpoint.state["config"])
        model = config.build_model(checkpoint.state["resolved"]["sizes"], device="meta")
        # A step on the meta device shows what state the optimizer has; with momentum, which an override may have set 0.
        optimizer = make_optimizer(model, replace(config, lr=1.0, momentum=0.9))
        for p in model.parameters():
            p.grad = torch.empty_like(p)
        optimizer.step()
        _check_run_tensors(checkpoint, state_tensors(model, optimizer))
    except (UserError, KeyError, TypeError, ValueError, RuntimeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise DamagedError(f"damaged: {what}") from error
    return checkpoint


def _whole(least: int, below: int = 2**62) -> Callable[[Any], bool]:
    return lambda value: is_int(value) and least <= value < below


def _is_metrics(line: Any) -> bool:
    """Return whether this is None or a line of metrics.jsonl."""
    if line is None:
        return True
    named = isinstance(line, dict) and {"epoch", "val_loss", "test_loss"} <= set(line)
    return named and all(value is None or isinstance(value, int | float) for value in line.values())


_STATE: dict[str, Callable[[Any], bool]] = {
    "epoch": _whole(1), "done": _whole(0), "threads": _whole(1, 1025), "split_seed": _whole(0, 2**32),
    "block": _whole(1), "chunk": _whole(1), "seconds": is_number,
    **dict.fromkeys(("data_sha256", "model_sha256", "device"), lambda value: isinstance(value, str)),
    "storage": lambda value: value in get_args(Storage),
    "versions": lambda value: isinstance(value, dict),
    "overrides": lambda value: isinstance(value, list) and all(isinstance(record, dict) for record in value),
    "last": _is_metrics, "best": _is_metrics,
}  # fmt: skip


def _check_state(state: Mapping[str, Any]) -> None:
    """Raise KeyError or ValueError for a state that no run can have."""
    for name, is_valid in _STATE.items():
        if not is_valid(state[name]):
            raise ValueError(f"{name} is {state[name]!r:.80}")
    done, last, best = state["epoch"] - 1, state["last"], state["best"]
    if (last is None) != (done == 0) or (last is not None and last["epoch"] != done):
        raise ValueError(f"the last metrics are not those of epoch {done}")
    if best is not None and (best["val_loss"] is None or not 1 <= best["epoch"] <= done):
        raise ValueError("the best metrics are not those of an earlier epoch")


def _check_run_tensors(checkpoint: Checkpoint, like: Mapping[str, Tensor]) -> None:
    """Raise an error for tensors that do not belong to a model and an optimizer like these, or are not finite."""
    tensors, weights = checkpoint.tensors, subset(like, "model")
    expected = {f"model.{name}": value for name, value in weights.items()}
    if checkpoint.state["best"] is not None:
        expected |= {f"best.{name}": value for name, value in weights.items()}
    if subset(tensors, "optimizer"):  # it has none before the first step, nor without momentum
        expected |= {f"optimizer.{name}": value for name, value in subset(like, "optimizer").items()}
    total = torch.empty((), dtype=torch.float64)
    if "total" in tensors and tensors["total"].dtype == torch.float32:  # by an older version, or on mps
        total = total.float()
    expected |= {"generator": torch.Generator().get_state(), "total": total}
    check_tensors(tensors, expected)
    if not all(bool(t.isfinite().all()) for t in tensors.values()):
        raise ValueError("it has values that are not finite")
    torch.Generator().set_state(tensors["generator"])
