"""``deltaprop info``: the data, settings, metrics and files of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from deltaprop.cli.console import describe_config, enumerate_names, print_rows, quoted, terminal
from deltaprop.cli.parsing import RunArguments, read_arguments
from deltaprop.errors import UserError, rounded
from deltaprop.inference.model import load
from deltaprop.training.config import TrainConfig
from deltaprop.training.evaluate import SELECTED_BY
from deltaprop.training.load_run import WEIGHTS, read_config, recorded_weights

MOST_DAYS = 700_000  # from 1970, so that datetime has the date
MOST_INPUTS = 20  # columns that are listed


@dataclass(frozen=True)
class Arguments(RunArguments):
    """The data of the run need not exist any more."""

    json: bool = False  # Print JSON.


def main(words: Sequence[str]) -> int:
    """Print a description of a run, as a table or as JSON."""
    arguments = read_arguments(Arguments, "info", words)
    run = arguments.folder
    try:
        config, resolved = read_config(run)
        facts = _collect(run, config, resolved)
        rows = _describe(facts, config)
    except (TypeError, KeyError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{run / 'config.json'}: damaged: {type(error).__name__}: {error}") from error
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        print_rows(terminal(), rows)
    return 0


def _collect(run: Path, config: TrainConfig, resolved: dict[str, Any]) -> dict[str, Any]:
    """Return everything about a run, as JSON has it."""
    weights = {name: str(run / file) for name, file in WEIGHTS.items() if (run / file).exists()}
    metrics = _read_metrics(run / "metrics.jsonl")
    validated = [line for line in metrics if line.get("val_loss") is not None]
    recorded = recorded_weights(run)
    model = load(run, recorded if recorded in weights else next(iter(weights))) if weights else None
    saved = json.loads((run / "config.json").read_text(encoding="utf-8"))
    return {
        "run": str(run),
        "data": config.data,
        **{key: resolved.get(key) for key in ("data_sha256", "rows", "task", "columns", "sizes", "loss", "device")},
        "classes": resolved.get("class_names"),
        "parameters": None if model is None else sum(p.numel() for p in model.net.parameters()),
        "activations": [*config.activations, config.output_activation],
        "settings": {k: v for k, v in config.to_json().items() if k not in ("config", "run_dir")},
        "epochs_done": metrics[-1]["epoch"] if metrics else 0,
        "last": metrics[-1] if metrics else None,
        "best": _best(validated),
        "weights": weights,
        "model_weights": recorded,
        "overrides": saved.get("overrides", []),
        "versions": saved.get("versions"),
        "command": saved.get("command"),
    }


def _best(lines: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the epoch with the lowest loss, the minimised one unless older lines lack it, of those that have one."""
    key = SELECTED_BY if all(SELECTED_BY in line for line in lines) else "val_loss"
    return min(lines, key=lambda line: line[key]) if lines else None


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [line for line in lines if isinstance(line["epoch"], int)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: damaged: {error}") from error


def _describe(facts: dict[str, Any], config: TrainConfig) -> list[tuple[str, str]]:
    """Return the facts as rows of a name and a text."""
    parameters = [facts["parameters"]] if facts["parameters"] else []
    rows = [
        ("run", facts["run"]),
        ("data", f"{facts['data']} (sha256 {str(facts['data_sha256'])[:12]}…)"),
        *describe_config(config, facts, parameters),
        ("seed", str(config.seed)),
    ]
    if facts["columns"]:
        inputs, targets = facts["columns"]["inputs"], facts["columns"]["targets"]
        rows += [("inputs", _describe_column(column)) for column in inputs[:MOST_INPUTS]]
        if len(inputs) > MOST_INPUTS:
            rows.append(("inputs", f"… and {len(inputs) - MOST_INPUTS} more (--json has all)"))
        rows.append(("target", enumerate_names([*map(quoted, targets)], len(targets))))
    if facts["classes"]:
        rows.append(("classes", enumerate_names([*map(quoted, facts["classes"])], 20)))
    rows.append(("epochs", f"{facts['epochs_done']} of {config.epochs}"))
    for name in ("last", "best"):
        if facts[name]:
            metrics = {k: v for k, v in facts[name].items() if k.startswith(("val_", "test_")) and v is not None}
            shown = ", ".join(f"{k.replace('_', ' ')} {rounded(v)}" for k, v in metrics.items())
            rows.append((name, f"epoch {facts[name]['epoch']}: {shown}"))
    for record in facts["overrides"]:
        epoch, setting, old, new = map(record.get, ("epoch", "setting", "from", "to"))
        rows.append(("changed", f"epoch {epoch}: {setting} {old} → {new}"))
    for name, path in facts["weights"].items():
        rows.append(("weights", f"{name}: {path}{' (the model)' if name == facts['model_weights'] else ''}"))
    versions = (facts["versions"] or {}).items()
    rows.append(("by", ", ".join(f"{name} {version}" for name, version in versions if name != "platform")))
    return rows


def _fill(column: dict[str, Any]) -> str:
    """Return what a missing number becomes: of a date the day, of a time of day the time."""
    fill = column["fill"]
    if column.get("part") == "day" and -MOST_DAYS < fill < MOST_DAYS:
        moment = datetime(1970, 1, 1) + timedelta(days=fill)
        return f"{moment:%H:%M}" if 0 <= fill < 1 else f"{moment:%Y-%m-%d}"
    return rounded(fill)


def _describe_column(column: dict[str, Any]) -> str:
    if column["kind"] == "numbers":
        kind = "days" if column.get("part") == "day" else "numbers"
        fill = f", missing values become {_fill(column)}" if column.get("fill") is not None else ""
        return f"{column['name']}: {kind}{fill}"
    names = enumerate_names([*map(quoted, column["categories"])])
    count = len(column["categories"])
    return f"{column['name']}: {count} {'category' if count == 1 else 'categories'}: {names}"
