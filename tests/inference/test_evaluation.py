"""Evaluation: metrics by hand on a few rows, against scikit-learn on many, and refused data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import deltaprop as dp
from deltaprop import UserError
from deltaprop.inference.evaluation import evaluate_file, evaluation_report
from sklearn import metrics
from tests.data.conftest import encode_idx
from tests.inference.conftest import (
    KINDS,
    REGRESSION_KINDS,
    TABLE_KINDS,
    TABLES,
    N,
    Runs,
    first,
    inputs_of,
    predictions_by_hand,
    write_csv,
)
from tests.inference.test_model import FORMS

# --- by hand ---


def test_two_classes_by_hand(runs: Runs):
    """Each class is predicted right once and wrong once; the differences z₁ − z₀ are −2, 1, 3, −1.

    C is the mean of ln(1 + e⁻²), ln(1 + e), ln(1 + e⁻³), ln(1 + e): 0.70051. ROC AUC: of the four pairs of a row of the
    second class and one of the first, 3 > −2, 3 > 1 and −1 > −2 are ordered correctly, and −1 < 1 is not: ¾. The
    probabilities of the predicted classes are σ(2) 0.88080 and σ(3) 0.95257, right, and twice σ(1) 0.73106, wrong, in
    three bins: ECE (0.11920 + 0.04743 + 2 · 0.73106) / 4 = 0.40719.
    """
    outputs = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    report = evaluation_report(dp.load(runs["numbers"].folder), outputs, np.array([0, 0, 1, 1]))
    assert report.rows == 4
    assert report.loss == pytest.approx(0.70051, abs=1e-5)
    assert report.figures.pop("ece") == pytest.approx(0.40719, abs=1e-5)
    assert report.figures == {"accuracy": 0.5, "macro_f1": 0.5, "balanced_accuracy": 0.5, "roc_auc": 0.75}
    assert report.by_class == {name: {"precision": 0.5, "recall": 0.5, "f1": 0.5, "rows": 2} for name in ("no", "yes")}
    assert report.confusion is not None
    assert report.confusion.tolist() == [[1, 1], [1, 1]]


def test_one_logit_by_hand(runs: Runs):
    """Z is 2 for a row of the second class, 1 for one of the first: C = (ln(1 + e⁻²) + ln(1 + e)) / 2 = 0.72010."""
    report = evaluation_report(dp.load(runs["logit"].folder), torch.tensor([[2.0], [1.0]]), np.array([1, 0]))
    assert report.loss == pytest.approx(0.72010, abs=1e-5)
    assert report.figures["accuracy"] == 0.5  # both z are above 0: the second class is predicted
    assert report.figures["roc_auc"] == 1.0  # the order is right


def test_metrics_of_a_class_never_predicted_and_of_one_without_rows(runs: Runs):
    """Classes hi, lo, mid: hi is right, lo is predicted as hi, mid has no rows. Means leave out the undefined 0/0.

    hi: precision ½, recall 1, F1 ⅔; lo: recall 0, F1 0. The mean recall is ½, the mean F1 ⅓.
    """
    outputs = torch.tensor([[5.0, 0.0, 0.0], [5.0, 0.0, 0.0]])
    report = evaluation_report(dp.load(runs["mixed"].folder), outputs, np.array([0, 1]))
    assert report.by_class["hi"] == pytest.approx({"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "rows": 1})
    assert math.isnan(report.by_class["lo"]["precision"])
    assert (report.by_class["lo"]["recall"], report.by_class["lo"]["f1"]) == (0, 0)
    assert all(math.isnan(report.by_class["mid"][metric]) for metric in ("precision", "recall", "f1"))
    assert report.by_class["mid"]["rows"] == 0
    ece = abs(0.5 - math.exp(5) / (math.exp(5) + 2))  # both rows are in one bin, and one is right
    assert report.figures == pytest.approx({"accuracy": 0.5, "macro_f1": 1 / 3, "balanced_accuracy": 0.5, "ece": ece})
    as_json = report.to_json()
    assert as_json["classes"]["mid"] == {"precision": None, "recall": None, "f1": None, "rows": 0}
    json.dumps(as_json, allow_nan=False)


@pytest.mark.parametrize("label", [0, 1])
def test_rows_of_one_class_have_no_roc_auc(runs: Runs, label: int):
    report = evaluation_report(
        dp.load(runs["numbers"].folder), torch.tensor([[2.0, 0.0], [0.0, 1.0]]), np.array([label] * 2)
    )
    assert math.isnan(report.figures["roc_auc"])
    assert report.to_json()["roc_auc"] is None


def test_a_loss_without_probabilities_has_no_roc_auc(runs: Runs):
    report = evaluation_report(dp.load(runs["mse"].folder), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1]))
    assert report.loss == 0  # the targets are 0 and 1
    assert not {"roc_auc", "ece"} & report.figures.keys()


def scaled(model: dp.Model, values: list[list[float]]) -> torch.Tensor:
    """Return the network outputs for these values in the target's units."""
    return model.target_scaling.apply(torch.tensor(values, dtype=torch.float64))


def test_regression_metrics_by_hand(runs: Runs):
    """True 1, 2, 4 and predicted 1, 3, 2: errors 0, 1, −2.

    RMSE √(5/3), MAE 1; the squares about the mean 7/3 sum to 42/9: R² = 1 − 5 / (42/9) = −1/14. C, mse, is 5/3.
    """
    model = dp.load(runs["value"].folder)
    report = evaluation_report(model, scaled(model, [[1.0], [3.0], [2.0]]), np.array([[1.0], [2.0], [4.0]]))
    assert report.figures == pytest.approx({"rmse": math.sqrt(5 / 3), "mae": 1.0, "r2": -1 / 14})
    assert report.loss == pytest.approx(5 / 3)
    assert report.confusion is None


def test_metrics_of_several_targets_by_hand(runs: Runs):
    """U is right; v, true 0 and 10, is 1 off: its R² is 1 − 2/50. RMSE of all four entries: √(2/4)."""
    model = dp.load(runs["two"].folder)
    report = evaluation_report(model, scaled(model, [[1.0, 1.0], [3.0, 9.0]]), np.array([[1.0, 0.0], [3.0, 10.0]]))
    assert report.by_class["u"] == pytest.approx({"rmse": 0, "mae": 0, "r2": 1}, abs=1e-6)
    assert report.by_class["v"] == pytest.approx({"rmse": 1, "mae": 1, "r2": 0.96})
    assert report.figures == pytest.approx({"rmse": math.sqrt(0.5), "mae": 0.5, "r2": 0.98})  # the mean R²


def test_one_row_has_no_r2(runs: Runs):
    model = dp.load(runs["value"].folder)
    report = evaluation_report(model, scaled(model, [[1.0]]), np.array([[3.0]]))
    assert report.figures["rmse"] == pytest.approx(2)
    assert math.isnan(report.figures["r2"])
    assert report.to_json()["r2"] is None


# --- against scikit-learn, on data of each kind ---


@pytest.mark.parametrize("kind", [kind for kind in TABLE_KINDS if kind not in REGRESSION_KINDS])
def test_classification_metrics_are_scikit_learns(runs: Runs, kind: str):
    """Against scikit-learn's metrics of the classes predicted by hand."""
    run, true = runs[kind], [str(name) for name in TABLES[KINDS[kind][0]]["y"]]
    report, predicted = evaluate_file(dp.load(run.folder), run.data), predictions_by_hand(run, inputs_of(kind))
    names = run.saved["resolved"]["class_names"]
    reference = metrics.classification_report(true, predicted, labels=names, output_dict=True, zero_division=np.nan)
    assert report.rows == N
    assert report.figures["accuracy"] == metrics.accuracy_score(true, predicted)
    assert report.figures["macro_f1"] == pytest.approx(reference["macro avg"]["f1-score"])
    assert report.figures["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(true, predicted))
    assert report.confusion is not None
    assert report.confusion.tolist() == metrics.confusion_matrix(true, predicted, labels=names).tolist()
    for name in names:
        entry = reference[name]
        expected = {"precision": entry["precision"], "recall": entry["recall"], "f1": entry["f1-score"]}
        assert report.by_class[name] == pytest.approx({**expected, "rows": entry["support"]}, nan_ok=True)


@pytest.mark.parametrize("kind", REGRESSION_KINDS)
def test_regression_metrics_are_scikit_learns(runs: Runs, kind: str):
    run = runs[kind]
    names = run.saved["resolved"]["columns"]["targets"]
    true = np.array([TABLES[kind][name] for name in names]).T
    report, predicted = evaluate_file(dp.load(run.folder), run.data), predictions_by_hand(run, inputs_of(kind))
    assert report.figures["rmse"] == pytest.approx(math.sqrt(metrics.mean_squared_error(true, predicted)), rel=1e-4)
    assert report.figures["mae"] == pytest.approx(metrics.mean_absolute_error(true, predicted), rel=1e-4)
    assert report.figures["r2"] == pytest.approx(metrics.r2_score(true, predicted), abs=1e-4)


@pytest.mark.parametrize("form", [form for form in FORMS if form.startswith(("csv", "tsv", "par", "semi"))])
@pytest.mark.parametrize("kind", ["mixed", "two", "integers"])
def test_every_table_format_gives_the_same_metrics(runs: Runs, tmp_path: Path, kind: str, form: str):
    model = dp.load(runs[kind].folder)
    columns = dict(reversed(inputs_of(kind).items()))  # in another order
    report, expected = evaluate_file(model, FORMS[form](tmp_path, columns)), evaluate_file(model, runs[kind].data)
    assert report.figures == pytest.approx(expected.figures)
    assert report.true.tolist() == expected.true.tolist()


def test_arrays_are_evaluated_against_their_y(runs: Runs, tmp_path: Path):
    """For images.npz; for a file with x_train and x_test, x_test is evaluated."""
    model, run = dp.load(runs["images"].folder), runs["images"]
    x, y = inputs_of("images"), np.array(dict(np.load(run.data))["y"])
    report = evaluate_file(model, run.data)
    assert report.figures["accuracy"] == (predictions_by_hand(run, x).astype(int) == y).mean()
    np.savez(tmp_path / "both.npz", x_train=x, y_train=y, x_test=x[:50], y_test=y[:50])
    assert evaluate_file(model, tmp_path / "both.npz").rows == 50
    np.save(tmp_path / "t.npy", np.concatenate([x.reshape(N, -1), y[:, None]], axis=1))
    assert evaluate_file(model, tmp_path / "t.npy").figures == report.figures
    columns = {f"p{at}": pixels for at, pixels in enumerate(x.reshape(N, -1).T.tolist())}
    path = write_csv(tmp_path / "t.csv", {**columns, "digit": y.tolist()})
    assert evaluate_file(model, path).figures == pytest.approx(report.figures)


def test_a_folder_of_idx_files_is_evaluated_on_its_test_set(runs: Runs, tmp_path: Path):
    rng = np.random.default_rng(0)
    for part, rows in (("train", 60), ("t10k", 20)):
        images, labels = rng.integers(0, 256, (rows, 3, 3), dtype=np.uint8), (np.arange(rows) % 3).astype(np.uint8)
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(encode_idx(images))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(encode_idx(labels))
    run = runs.train("idx", tmp_path)
    report = evaluate_file(dp.load(run.folder), tmp_path)
    assert report.rows == 20
    assert report.figures["accuracy"] == run.metrics["test_accuracy"]
    assert report.loss == pytest.approx(run.metrics["test_loss"], rel=1e-5)


def test_rows_with_missing_cells_are_dropped_as_in_training(runs: Runs, tmp_path: Path):
    path = write_csv(tmp_path / "t.csv", TABLES["filled"])
    run = runs.train("leaves-out", path, missing="drop")
    missing = sum(cell is None for cell in TABLES["filled"]["a"])
    report = evaluate_file(dp.load(run.folder), path)
    assert (report.rows, report.dropped) == (N - missing, missing)
    complete = {name: [c for c, a in zip(cells, TABLES["filled"]["a"], strict=True) if a is not None]
             for name, cells in TABLES["filled"].items()}  # fmt: skip
    assert report.figures == evaluate_file(dp.load(run.folder), write_csv(tmp_path / "whole.csv", complete)).figures


def test_a_category_unseen_in_training_is_a_warning(runs: Runs, tmp_path: Path):
    columns = first(inputs_of("mixed"), 5)
    columns["city"][2] = "Bonn"
    report = evaluate_file(dp.load(runs["mixed"].folder), write_csv(tmp_path / "t.csv", columns))
    assert report.warnings == (f"{tmp_path}/t.csv: column 'city' has a name not seen in training, such as 'Bonn'",)
    assert report.to_json()["warnings"] == [*report.warnings]


@pytest.mark.parametrize("names", [["1.50", "2"], ["1", "x"], ["01", "x"], ["0.5", "1.5"], ["yes", "no"]], ids=str)
def test_numeric_class_names_are_kept_as_text(runs: Runs, tmp_path: Path, names: list[str]):
    """Numbers that the user declares categorical keep their text in the file, but for zeros: 1.50 is 1.5."""
    path = write_csv(tmp_path / "t.csv", {"a": TABLES["numbers"]["a"], "y": [names[at % 2] for at in range(N)]})
    run = runs.train("-".join(names), path, categorical=("y",))
    assert evaluate_file(dp.load(run.folder), path).rows == N
    only = write_csv(tmp_path / "only.csv", {"a": TABLES["numbers"]["a"], "y": [names[0]] * N})
    assert evaluate_file(dp.load(run.folder), only).by_class[names[0].replace("1.50", "1.5")]["rows"] == N


def test_the_block_size_does_not_change_the_metrics(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    model, data = dp.load(runs["mixed"].folder), runs["mixed"].data
    expected = evaluate_file(model, data)
    monkeypatch.setattr("deltaprop.inference.inputs.ROWS_AT_ONCE", 7)
    monkeypatch.setattr("deltaprop.data.formats.csv.READ_BYTES", 512)
    report = evaluate_file(model, data)
    assert report.true.tolist() == expected.true.tolist()
    assert_allclose(report.loss, expected.loss, rtol=1e-5)


# --- refused data ---


def _table(**columns: Any) -> Mapping[str, Any]:
    return columns


@pytest.mark.parametrize(
    ("kind", "columns", "message"),
    [
        ("numbers", _table(a=[1.0], b=[2.0]), "there is no column 'y'"),
        (
            "numbers",
            _table(a=[1.0], b=[2.0], Y=["no"]),
            "there is no column 'y', which the model needs: did you mean 'Y'",
        ),
        ("numbers", _table(a=[1.0] * 2, b=[2.0] * 2, y=["no", "maybe"]), r"row 2, column 'y': class 'maybe' is in no"),
        ("numbers", _table(a=[1.0] * 2, b=[2.0] * 2, y=[None, None]), "no rows to evaluate on: the target is missing"),
        ("numbers", _table(a=[1.0], b=[2.0], y=[3.0]), r"row 1, column 'y': class '3' is in no training row"),
        ("integers", _table(a=[1.0], b=[2.0], y=[0.5]), r"row 1, column 'y': class '0\.5' is in no training row"),
        ("integers", _table(a=[1.0], b=[2.0], y=["x"]), r"row 1, column 'y': class 'x' is in no training row"),
        ("value", _table(a=[1.0] * 2, b=[2.0] * 2, v=["1", "x"]), "row 2, column 'v': 'x' is text"),
        ("value", _table(a=[1.0] * 2, b=[2.0] * 2, v=[None, None]), "no rows to evaluate on: the target is missing"),
        ("two", _table(a=[1.0], b=[2.0], v=[2.0]), "there is no column 'u'"),
        ("numbers", _table(a=[], b=[], y=[]), "there are no rows to evaluate on"),
        ("images", _table(**{f"p{at}": [1] for at in range(12)}), "12 columns of inputs and then 1 target"),
        ("images", _table(**{f"p{at}": [1] for at in range(14)}), "14 columns|2 columns"),
    ],
    ids=range(13),
)
def test_a_table_without_valid_targets_is_refused(
    runs: Runs, tmp_path: Path, kind: str, columns: Mapping[str, Any], message: str
):
    with pytest.raises(UserError, match=message) as error:
        evaluate_file(dp.load(runs[kind].folder), write_csv(tmp_path / "t.csv", columns))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "arrays", "message"),
    [
        ("numbers", {"x": np.zeros((4, 2)), "y": np.arange(4)}, r"row 1, column 'y': class '0' is in no training row"),
        (
            "numbers",
            {"x": np.zeros((4, 2)), "y": np.array(["no", "no", "hm", "yes"])},
            r"row 3, column 'y': class 'hm' is in no",
        ),
        ("numbers", {"x": np.zeros((4, 3)), "y": np.array(["no"] * 4)}, r"the data must be \[N, 2\], got \[4, 3\]"),
        ("numbers", {"x": np.zeros((4, 2))}, "there is no array 'y'"),
        ("images", {"x": np.zeros((4, 4, 3)), "y": np.zeros((4, 2))}, "y"),
        ("value", {"x": np.zeros((4, 2)), "y": np.arange(5.0)}, "x and y have 4 and 5 rows"),
        ("value", {"x": np.zeros((4, 2)), "y": np.arange(12.0).reshape(4, 3)}, r"y .*3"),
        ("two", {"x": np.zeros((4, 2)), "y": np.arange(4.0)}, r"y .*1"),
        ("value", {"x": np.zeros((2, 2)), "y": np.array([1.0, np.nan])}, "y has nan in row 2"),
        (
            "value",
            {"x": np.zeros((2, 2)), "y": np.array(["a", "b"])},
            r"'y' has text such as 'a': numbers are needed",
        ),
    ],
    ids=range(10),
)
def test_arrays_without_valid_targets_are_refused(
    runs: Runs, tmp_path: Path, kind: str, arrays: dict[str, np.ndarray], message: str
):
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(UserError, match=message) as error:
        evaluate_file(dp.load(runs[kind].folder), tmp_path / "t.npz")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["none.csv", "none.npz", "none", "t.xyz", "empty"])
def test_missing_or_unreadable_data_is_refused(runs: Runs, tmp_path: Path, name: str):
    (tmp_path / "t.xyz").write_text("a,b,y\n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=name) as error:
        evaluate_file(dp.load(runs["numbers"].folder), tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_number_too_large_is_reported_with_its_row_although_rows_were_dropped(runs: Runs, tmp_path: Path):
    """Rows 1 and 3 have missing cells and are dropped."""
    run = runs.train("dropping", write_csv(tmp_path / "t.csv", TABLES["numbers"]), missing="drop")
    path = tmp_path / "u.csv"
    path.write_text("a,b,y\n,1,no\n1,1,no\n1,,no\n1,1,yes\n1e300,1,no\n")
    with pytest.raises(UserError, match=r"u\.csv: row 5, column 'a': 1e\+300 does not fit in"):
        evaluate_file(dp.load(run.folder), path)
