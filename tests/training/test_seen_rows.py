"""The digests of the rows that a run is trained on: written once, and compared with a separate test table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltaprop.data.digests import is_among, part_digests
from deltaprop.training import Result, TrainConfig, train
from deltaprop.training.load_run import load_run
from deltaprop.training.report.reporter import Reporter
from deltaprop.training.seen_rows import read_training_rows
from tests.inference.conftest import write_csv

Start = Callable[..., Result]


class Warnings(Reporter):
    """Collects warnings."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, text: str) -> None:
        """Collect a line."""
        self.lines.append(text)


def test_a_run_stores_the_digests_of_its_training_and_validation_rows(run: Start):
    """8 bytes each and 8 in the end; a run without validation has those of its training rows."""
    folder = run(epochs=1).folder
    setup, known = load_run(folder), read_training_rows(folder)
    rows = json.loads((folder / "config.json").read_text())["resolved"]["rows"]
    assert (folder / "rows.u64").stat().st_size == 8 * (rows["train"] + rows["val"] + 1)
    assert known.digests is not None
    assert (known.digests[: rows["train"]] == part_digests(setup.dataset.train)).all()
    assert (known.digests[rows["train"] :] == part_digests(setup.dataset.val)).all()
    assert not is_among(part_digests(setup.dataset.test), known.digests).any()
    alone = read_training_rows(run(epochs=1, val_fraction=0.0).folder).digests
    assert alone is not None
    assert len(alone) == rows["train"] + rows["val"]


def test_a_resumed_run_writes_them_only_if_they_are_missing(run: Start):
    folder = run(epochs=1).folder
    path = folder / "rows.u64"
    written, before = path.read_bytes(), path.stat().st_mtime_ns
    for epochs, content in ((2, written), (3, None), (4, b"damaged")):
        if content is None:
            path.unlink()
        elif content != written:
            path.write_bytes(content)
        train(TrainConfig(data="moons", hidden=(8,), epochs=epochs, log_every=0, seed=0), resume=folder)
        assert path.read_bytes() == written
        assert (path.stat().st_mtime_ns == before) is (content == written)


@pytest.mark.parametrize(("copied", "text"), [(0, ""), (1, "1 of 20 rows is"), (7, "7 of 20 rows are")])
def test_a_test_table_with_rows_of_training_is_warned_of(tmp_path: Path, copied: int, text: str):
    rng = np.random.default_rng(0)
    rows = {"a": rng.normal(size=60).tolist(), "y": [["no", "yes"][at % 2] for at in range(60)]}
    path = write_csv(tmp_path / "t.csv", {name: values[:40] for name, values in rows.items()})
    some = slice(40 - copied, 60 - copied)
    test = write_csv(tmp_path / "test.csv", {name: values[some] for name, values in rows.items()})
    settings: dict[str, Any] = {"data": str(path), "test": str(test), "run_dir": tmp_path / "run"}
    warnings = Warnings()
    train(TrainConfig(**settings, hidden=(), epochs=1, log_every=0, seed=0), warnings)
    message = f"{test}: {text} equal to rows of training or validation: the test metrics are better than on new rows"
    assert warnings.lines == ([message] if text else [])
