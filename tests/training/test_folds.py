"""Cross-validation: ordinary runs, exact metrics, and continuation of what was interrupted."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss, r2_score, root_mean_squared_error

import deltaprop as dp
from deltaprop import UserError
from deltaprop.training import CrossValidation, TrainConfig, cross_validate, train
from deltaprop.training.load_run import load_run
from deltaprop.training.report.reporter import Reporter
from deltaprop.training.signals import Terminated


def small(folder: Path, **settings: Any) -> TrainConfig:
    """Return a short cross-validation of three folds."""
    few = {"data": "xor", "hidden": (4,), "epochs": 2, "folds": 3, "log_every": 0, "batch_size": 100}
    return TrainConfig(**{**few, "run_dir": folder, **settings})


def table(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.fixture(scope="module")
def xor(tmp_path_factory: pytest.TempPathFactory) -> CrossValidation:
    """Three folds of xor; read-only."""
    return cross_validate(small(tmp_path_factory.mktemp("xor") / "cv"))


def test_each_fold_is_an_ordinary_run(xor: CrossValidation):
    """It can be loaded, and is evaluated on its fold; the folds have all 1000 rows."""
    assert [fold.folder.name for fold in xor.folds] == ["fold-1", "fold-2", "fold-3"]
    tests = [load_run(fold.folder).dataset.test for fold in xor.folds]
    assert [len(test) for test in tests] == [fold.rows for fold in xor.folds] == [334, 333, 333]
    assert dp.load(xor.folds[1].folder).predict(np.zeros((2, 2))).shape == (2,)


def test_metrics_are_those_of_scikit_learn(xor: CrossValidation):
    for fold in xor.folds:
        data, model = load_run(fold.folder).dataset, dp.load(fold.folder)
        x, y = data.test.x, data.test.y.numpy()
        outputs = model.feed(x).double()
        assert fold.figures["accuracy"] == accuracy_score(y, outputs.argmax(dim=1))
        assert fold.figures["log_loss"] == pytest.approx(log_loss(y, outputs.softmax(dim=1).numpy()), rel=1e-9)
        shares = np.bincount(data.train.y) / len(data.train)
        assert fold.baseline["accuracy"] == accuracy_score(y, np.full(len(y), shares.argmax()))
        assert fold.baseline["log_loss"] == pytest.approx(log_loss(y, np.tile(shares, (len(y), 1))), rel=1e-9)


def test_mean_and_deviation_are_over_the_folds(xor: CrossValidation):
    values = [fold.figures["log_loss"] for fold in xor.folds]
    assert xor.mean["log_loss"] == pytest.approx(np.mean(values))
    assert xor.std["log_loss"] == pytest.approx(np.std(values, ddof=1))
    saved = json.loads((xor.folder / "folds.json").read_text())
    assert (saved["mean"], saved["std"]) == (xor.mean, xor.std)
    assert [fold["figures"] for fold in saved["folds"]] == [fold.figures for fold in xor.folds]


def test_numbers_are_told_in_their_own_units(tmp_path: Path):
    """Times in seconds, 1.7e9 ± 60: in float32 they would have no digits left."""
    rng = np.random.default_rng(0)
    rows = [f"{x},{1.7e9 + 60 * x + rng.normal()}" for x in rng.normal(size=60).tolist()]
    path = table(tmp_path / "t.csv", "\n".join(["x,y", *rows, ""]))
    result = cross_validate(small(tmp_path / "cv", data=path, epochs=1, task="regression"))
    for fold in result.folds:
        data, model = load_run(fold.folder).dataset, dp.load(fold.folder)
        y, predicted = (data.target_scaling.invert(z.double()).numpy() for z in (data.test.y, model.feed(data.test.x)))
        assert fold.figures["rmse"] == pytest.approx(root_mean_squared_error(y, predicted), rel=1e-6)
        assert fold.figures["r2"] == pytest.approx(r2_score(y, predicted), rel=1e-6)
        mean = np.full_like(y, data.target_scaling.invert(data.train.y.double()).mean())
        assert fold.baseline["rmse"] == pytest.approx(root_mean_squared_error(y, mean), rel=1e-6)


def test_r2_of_one_row_is_left_out_and_that_of_all_is_told(tmp_path: Path):
    """One row has no variance: with as many folds as rows R² is defined for all of them alone.

    The baseline of a row is the mean of the other three.
    """
    path = table(tmp_path / "t.csv", "x,y\n1,1.5\n2,2.5\n3,3.25\n4,5.5\n")
    result = cross_validate(small(tmp_path / "cv", data=path, folds=4, epochs=1, val_fraction=0.0))
    assert [fold.rows for fold in result.folds] == [1, 1, 1, 1]
    assert [fold.figures["r2"] for fold in result.folds] == [None] * 4
    y = np.array([1.5, 2.5, 3.25, 5.5])
    of_mean = ((y - (y.sum() - y) / 3) ** 2).sum()
    of_model = sum(fold.figures["rmse"] ** 2 for fold in result.folds)
    assert result.mean["r2"] == pytest.approx(1 - of_model / of_mean, rel=1e-6)
    assert (result.std["r2"], result.baseline["r2"]) == (None, 0)


def test_r2_of_several_targets_is_a_mean_over_them(tmp_path: Path):
    rng = np.random.default_rng(0)
    rows = [f"{x},{3 * x + rng.normal()},{1000 * rng.normal()}" for x in rng.normal(size=40).tolist()]
    path = table(tmp_path / "t.csv", "\n".join(["x,u,v", *rows, ""]))
    result = cross_validate(small(tmp_path / "cv", data=path, folds=3, epochs=3, target=("u", "v")))
    sums = np.array([fold.squares for fold in result.folds]).sum(axis=0)
    assert result.mean["r2"] == pytest.approx((1 - sums[:, 0] / sums[:, 1]).mean())
    assert result.mean["r2"] < 1


def test_a_class_of_fewer_rows_than_folds_does_not_stop_it(tmp_path: Path):
    """Class c has 2 rows for 4 folds: it is tested in two of them, and trained on in all."""
    rows = [f"{at},{'ab'[at % 2]}" for at in range(40)] + ["3,c", "4,c"]
    path = table(tmp_path / "t.csv", "\n".join(["x,y", *rows, ""]))
    result = cross_validate(small(tmp_path / "cv", data=path, folds=4, epochs=1, val_fraction=0.2))
    tested = [int((load_run(fold.folder).dataset.test.y == 2).sum()) for fold in result.folds]
    assert sorted(tested) == [0, 0, 1, 1]
    assert all(np.isfinite(fold.figures["log_loss"]) for fold in result.folds)


def test_a_loss_without_probabilities_has_no_log_loss(tmp_path: Path):
    result = cross_validate(small(tmp_path / "cv", loss="mse", epochs=1, folds=2))
    assert result.mean["log_loss"] is None
    assert result.mean["accuracy"] > 0


def test_the_weights_that_are_the_model_are_tested(tmp_path: Path):
    """The best ones here; η = 2 makes the loss rise and fall, so that the final ones are others in a fold at least."""
    result = cross_validate(small(tmp_path / "cv", weights="best", lr=2.0, epochs=5, folds=2))
    losses = []
    for fold in result.folds:
        data, logits = load_run(fold.folder).dataset, dp.load(fold.folder).feed(load_run(fold.folder).dataset.test.x)
        true = -logits.double().log_softmax(dim=1).gather(1, data.test.y[:, None]).mean()
        assert fold.figures["log_loss"] == pytest.approx(float(true))
        losses.append(
            (float(true), json.loads((fold.folder / "metrics.jsonl").read_text().splitlines()[-1])["test_loss"])
        )
    assert any(abs(best - final) > 1e-3 for best, final in losses)


class StopIn(Reporter):
    """Stops the run of a fold by SIGTERM in its first step."""

    def __init__(self, name: str) -> None:
        self.name, self.here = name, False

    def start(self, setup: Any, folder: Path) -> None:
        self.here = folder.name == self.name

    def step(self, epoch: int, steps: int, step: int) -> None:
        if self.here:
            os.kill(os.getpid(), signal.SIGTERM)


def test_an_interrupted_cross_validation_goes_on(tmp_path: Path, xor: CrossValidation):
    """The fold that has ended is not written again, and the results are those without an interruption, bit for bit."""
    config = small(tmp_path / "cv")
    with pytest.raises(Terminated):
        cross_validate(config, StopIn("fold-2"))
    assert len(json.loads((tmp_path / "cv" / "folds.json").read_text())["folds"]) == 1
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "cv" / "fold-1").rglob("*") if path.is_file()}
    result = cross_validate(config)
    assert [fold.figures for fold in result.folds] == [fold.figures for fold in xor.folds]
    assert {path: path.stat().st_mtime_ns for path in first} == first


def test_other_settings_are_refused_in_a_folder_with_folds(xor: CrossValidation):
    """Whether the folds have ended or not; how often it saves may differ."""
    config = small(xor.folder)
    for changed, what in (
        ({"epochs": 3}, "epochs 2 → 3"),
        ({"hidden": (), "seed": 1}, "hidden 4 → none, seed 42 → 1"),
        ({"folds": 4}, "folds 3 → 4"),
    ):
        with pytest.raises(UserError, match=f"its folds were trained with other settings: {what}; name a new `run_d"):
            cross_validate(dataclasses.replace(config, **changed))
    assert cross_validate(dataclasses.replace(config, save_every="5m")).mean == xor.mean


def test_a_folder_with_other_files_is_refused(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match="the folder is not empty"):
        cross_validate(small(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"config": {"folds": 0}}', '{"config": {"folds": "x"}}'])
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, content: str):
    (tmp_path / "folds.json").write_text(content)
    with pytest.raises(UserError, match=r"folds\.json"):
        cross_validate(small(tmp_path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"folds": 1}, "`folds` must be 0 for none, or 2 and more, got 1"),
        ({"folds": -2}, "`folds` must be a whole number, at least 0"),
        ({"folds": 0}, "cross-validation needs `folds`, and no `fold`"),
        ({"fold": 1}, "cross-validation needs `folds`, and no `fold`"),
        ({"fold": 4}, "`fold` must be 0 for all folds, or a fold from 1 to 3, got 4"),
        ({"folds": 0, "fold": 1}, "`fold` must be used with `folds`"),
        ({"test": "t.csv"}, "`folds=3` tests on a part of the data: leave `test` out"),
        ({"folds": 1001}, "`folds=1001`: there are 1000 rows, and each fold needs one: take at most 1000"),
    ],
    ids=str,
)
def test_what_cannot_be_divided_is_refused_and_nothing_is_written(
    tmp_path: Path, settings: dict[str, Any], message: str
):
    with pytest.raises(UserError) as refused:
        cross_validate(small(tmp_path / "cv", **settings))
    assert str(refused.value).startswith(message)
    assert not (tmp_path / "cv").exists()


def test_a_test_set_of_its_own_is_refused(tmp_path: Path):
    arrays = {"x": np.eye(8), "y": np.arange(8) % 2, "x_test": np.eye(8), "y_test": np.arange(8) % 2}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=r"`folds=3`: a\.npz has a test set of its own"):
        cross_validate(small(tmp_path / "cv", data=str(tmp_path / "a.npz")))


def test_a_single_fold_can_be_trained_alone(tmp_path: Path, xor: CrossValidation):
    """With the same metrics as in the cross-validation."""
    result = train(small(tmp_path / "run", fold=2))
    assert result.metrics["test_accuracy"] == xor.folds[1].figures["accuracy"]
    with pytest.raises(UserError, match="`folds=3` is several models: `fold` names one of them"):
        train(small(tmp_path / "all"))
