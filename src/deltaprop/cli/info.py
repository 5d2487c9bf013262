"""``deltaprop info``: what a model was trained on, how, and how well."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deltaprop.cli.console import print_table, quoted
from deltaprop.cli.parsing import read_flags
from deltaprop.cli.runs import RunArgument, named
from deltaprop.errors import UserError
from deltaprop.inference.model import load
from deltaprop.training.load_run import WEIGHTS, read_config

DESCRIPTION = """Tell what a model was trained on, how, how well, and by which versions.

Its data need not be there any more. Exit codes: 0 done, 2 wrong input."""


@dataclass(frozen=True)
class Arguments:
    """Which run.

    Attributes:
        run: The folder of the run.
        json: Print JSON.
    """

    run: RunArgument = None
    json: bool = False


def main(words: Sequence[str]) -> int:
    """Tell, and return 0.

    Raises:
        UserError: If there is no such run.
    """
    arguments = read_flags(Arguments, "info", words, DESCRIPTION)
    run = named(arguments.run)
    try:
        found = about(run)
        rows = lines(found)
    except (TypeError, KeyError, ValueError, AttributeError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{run / 'config.json'}: damaged: {type(error).__name__}: {error}") from error
    if arguments.json:
        print(json.dumps(found, indent=2))
        return 0
    console = Console(highlight=False)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(name, escape(text))
    print_table(console, table)
    return 0


def about(run: Path) -> dict[str, Any]:
    """Return what is known of a run, as JSON has it.

    Raises:
        UserError: If there is no such run, or it is damaged.
    """
    config, resolved = read_config(run)
    there = [name for name, file in WEIGHTS.items() if (run / file).exists()]
    metrics = _lines(run / "metrics.jsonl")
    validated = [line for line in metrics if line.get("val_loss") is not None]
    model = load(run, there[0]) if there else None
    with (run / "config.json").open(encoding="utf-8") as file:
        saved = json.load(file)
    return {
        "run": str(run),
        "data": config.data,
        "data_sha256": resolved.get("data_sha256"),
        "rows": resolved.get("rows"),
        "task": resolved.get("task"),
        "classes": resolved.get("class_names"),
        "columns": resolved.get("columns"),
        "sizes": resolved.get("sizes"),
        "parameters": None if model is None else sum(p.numel() for p in model.net.parameters()),
        "activations": [*config.activations, config.output_activation],
        "loss": resolved.get("loss"),
        "settings": {k: v for k, v in config.to_json().items() if k not in ("config", "run_dir")},
        "epochs_done": metrics[-1]["epoch"] if metrics else 0,
        "last": metrics[-1] if metrics else None,
        "best": min(validated, key=lambda line: line["val_loss"]) if validated else None,
        "weights": {name: str(run / WEIGHTS[name]) for name in there},
        "overrides": saved.get("overrides", []),
        "versions": saved.get("versions"),
        "device": resolved.get("device"),
        "command": saved.get("command"),
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        found = [json.loads(line) for line in path.read_text().splitlines()]
        return [line for line in found if isinstance(line["epoch"], int)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: damaged: {error}") from error


MOST_INPUTS = 20  # lines of them
PARTS = {"train": "train", "val": "validate", "test": "test"}


def lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what is known of a run, as rows of a name and a text."""
    rows, settings = found["rows"] or {}, found["settings"]
    result = [
        ("run", found["run"]),
        ("data", f"{found['data']} (sha256 {str(found['data_sha256'])[:12]}…)"),
        ("", ", ".join(f"{rows[part]} rows to {to}" for part, to in PARTS.items() if part in rows)),
    ]
    if found["columns"]:
        inputs = [_described(column) for column in found["columns"]["inputs"][:MOST_INPUTS]]
        more = len(found["columns"]["inputs"]) - len(inputs)
        inputs += [f"… and {more} more (--json has all)"] if more else []
        result += [("" if at else "inputs", text) for at, text in enumerate(inputs)]
        result.append(("target", _listed(found["columns"]["targets"], len(found["columns"]["targets"]))))
    if found["classes"]:
        result.append(("classes", _listed(found["classes"], 20)))
    layers = zip(found["sizes"], ["", *found["activations"]], strict=True)
    result.append(("model", " → ".join(f"{n} {name}".removesuffix("none").strip() for n, name in layers)))
    if found["parameters"]:
        result.append(("", f"{found['parameters']} parameters"))
    learnt = f"η {settings['lr']:g}, batch {settings['batch_size']}, momentum {settings['momentum']:g}"
    learnt += f", pictures deformed: {settings['augment']}" if settings["augment"] != "none" else ""
    learnt += f", weight decay {settings['weight_decay']:g}" if settings["weight_decay"] else ""
    result += [
        (
            "loss",
            str(found["loss"]) + (", every class counting alike" if settings["class_weight"] == "balanced" else ""),
        ),
        ("sgd", f"{learnt}, {settings['lr_schedule']} schedule, seed {settings['seed']}"),
        ("epochs", f"{found['epochs_done']} of {settings['epochs']}"),
    ]
    for name in ("last", "best"):
        if found[name]:
            result.append((name, f"epoch {found[name]['epoch']}: {_figures(found[name])}"))
    for record in found["overrides"]:
        epoch, setting, old, new = (record.get(key) for key in ("epoch", "setting", "from", "to"))
        result.append(("changed", f"epoch {epoch}: {setting} {old} → {new}"))
    paths = [f"{name}: {path}" for name, path in found["weights"].items()]
    result += [("" if at else "weights", text) for at, text in enumerate(paths)]
    versions = found["versions"] or {}
    result.append(("by", ", ".join(f"{name} {value}" for name, value in versions.items() if name != "platform")))
    return result


def _described(column: dict[str, Any]) -> str:
    """Return what is in a column of inputs."""
    fill = f", a missing one is {column['fill']:.4g}" if column.get("fill") is not None else ""
    if column["kind"] == "numbers":
        return f"{column['name']}: numbers{fill}"
    return f"{column['name']}: {len(column['categories'])} categories: {_listed(column['categories'], 6)}"


def _figures(line: dict[str, Any]) -> str:
    """Return the metrics of an epoch, of the parts it was evaluated on."""
    metrics = {k: v for k, v in line.items() if k.startswith(("val_", "test_")) and v is not None}
    return ", ".join(f"{k.replace('_', ' ')} {v:.4g}" for k, v in metrics.items())


def _listed(names: list[str], most: int) -> str:
    return ", ".join(map(quoted, names[:most])) + (f", … ({len(names)})" if len(names) > most else "")
