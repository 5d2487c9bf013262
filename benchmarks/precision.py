"""Accuracy with matrix products of lower precision: ``python -m benchmarks.precision FOLDER``, with MNIST's IDX files.

784-100-10, batch 64, cosine schedule, 10 epochs, the explicit engine, seeds 0 to 4. On a CPU without bf16 products the
factors are rounded explicitly, which gives the same numbers except for the order of sums.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from deltaprop.data import check_source
from deltaprop.errors import UserError
from deltaprop.explicit import precision
from deltaprop.training import TrainConfig, train
from deltaprop.training.devices import pick_device

SEEDS = range(5)


def main() -> None:
    """Train with float32 and with the requested precision, and print the test accuracies."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    parser.add_argument("data", help="folder of MNIST's IDX files")
    parser.add_argument("--precision", default="bf16", choices=precision.PRECISIONS[1:])
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    device = pick_device("auto")
    try:
        precision.check_precision(arguments.precision, device, torch.float32)
        label = f"{arguments.precision} on {device}"
    except UserError as error:
        if arguments.precision != "bf16" or device.type != "cpu":
            parser.error(str(error))
        precision.ROUNDED.add("cpu")
        precision._has = lambda *_: True
        label = "bf16, factors rounded explicitly"
    table = Table("seed", "float32", label, "points", title="test accuracy in %", title_justify="left")
    gaps = []
    if arguments.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {arguments.epochs}")
    try:
        check_source(arguments.data)
    except UserError as error:
        parser.error(str(error))
    for seed in SEEDS:
        plain, rounded = (
            accuracy(arguments.data, name, seed, arguments.epochs) for name in ("float32", arguments.precision)
        )
        gaps.append(rounded - plain)
        table.add_row(str(seed), f"{plain:.2f}", f"{rounded:.2f}", f"{gaps[-1]:+.2f}")
    table.add_row("mean", "", "", f"{statistics.mean(gaps):+.2f}")
    Console().print(table)


def accuracy(data: str, name: str, seed: int, epochs: int) -> float:
    """Return the test accuracy of one run, in percent."""
    with tempfile.TemporaryDirectory() as folder:
        result = train(
            TrainConfig(
                data=data,
                hidden=(100,),
                lr=0.05,
                momentum=0.9,
                weight_decay=0.0,
                batch_size=64,
                lr_schedule="cosine",
                weights="final",
                epochs=epochs,
                engine="explicit",
                precision=name,  # type: ignore[arg-type]  # one of PRECISIONS
                seed=seed,
                log_every=0,
                run_dir=Path(folder) / "run",
            )
        )
        return 100 * float(json.loads((result.folder / "metrics.jsonl").read_text().splitlines()[-1])["test_accuracy"])


if __name__ == "__main__":
    main()
