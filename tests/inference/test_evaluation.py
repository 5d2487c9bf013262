"""Evaluation: metrics by hand on a few rows, by scikit-learn on many, and data that is refused."""

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
    OF_NUMBERS,
    OF_TABLES,
    TABLES,
    N,
    Runs,
    answers_by_hand,
    first,
    inputs_of,
    write_csv,
)
from tests.inference.test_model import FORMS

# --- by hand ---


def test_two_classes_by_hand(runs: Runs):
    """Logits, of which each class is right once and wrong once; differences z₁ − z₀ are −2, 1, 3, −1.

    C: ln(1 + e⁻²), ln(1 + e), ln(1 + e⁻³), ln(1 + e), their mean 0.70051. ROC: of the four pairs of a row of the second
    class and one of the first, 3 > −2, 3 > 1 and −1 > −2 are in order, and −1 < 1 is not: ¾.
    """
    outputs = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    found = evaluation_report(dp.load(runs["numbers"].folder), outputs, np.array([0, 0, 1, 1]))
    assert found.rows == 4
    assert found.loss == pytest.approx(0.70051, abs=1e-5)
    assert found.figures == {"accuracy": 0.5, "macro_f1": 0.5, "balanced_accuracy": 0.5, "roc_auc": 0.75}
    assert found.by_class == {name: {"precision": 0.5, "recall": 0.5, "f1": 0.5, "rows": 2} for name in ("no", "yes")}
    assert found.confusion is not None
    assert found.confusion.tolist() == [[1, 1], [1, 1]]


def test_one_logit_by_hand(runs: Runs):
    """Z is 2 for a row of the second class, 1 for one of the first: C = (ln(1 + e⁻²) + ln(1 + e)) / 2 = 0.72010."""
    found = evaluation_report(dp.load(runs["logit"].folder), torch.tensor([[2.0], [1.0]]), np.array([1, 0]))
    assert found.loss == pytest.approx(0.72010, abs=1e-5)
    assert found.figures["accuracy"] == 0.5  # both are above 0: the second class
    assert found.figures["roc_auc"] == 1.0  # yet in order


def test_a_class_that_is_never_predicted_and_one_without_rows(runs: Runs):
    """Of hi, lo and mid: hi right, lo taken for hi, mid in no row. What is 0/0 is undefined, and in no mean.

    hi: precision ½, recall 1, F1 ⅔; lo: recall 0, F1 0. Their means are ½ and ⅓.
    """
    outputs = torch.tensor([[5.0, 0.0, 0.0], [5.0, 0.0, 0.0]])
    found = evaluation_report(dp.load(runs["mixed"].folder), outputs, np.array([0, 1]))
    assert found.by_class["hi"] == pytest.approx({"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "rows": 1})
    assert math.isnan(found.by_class["lo"]["precision"])
    assert (found.by_class["lo"]["recall"], found.by_class["lo"]["f1"]) == (0, 0)
    assert all(math.isnan(found.by_class["mid"][figure]) for figure in ("precision", "recall", "f1"))
    assert found.by_class["mid"]["rows"] == 0
    assert found.figures == pytest.approx({"accuracy": 0.5, "macro_f1": 1 / 3, "balanced_accuracy": 0.5})
    told = found.to_json()
    assert told["classes"]["mid"] == {"precision": None, "recall": None, "f1": None, "rows": 0}
    json.dumps(told, allow_nan=False)


@pytest.mark.parametrize("label", [0, 1])
def test_rows_of_one_class_have_no_roc(runs: Runs, label: int):
    found = evaluation_report(
        dp.load(runs["numbers"].folder), torch.tensor([[2.0, 0.0], [0.0, 1.0]]), np.array([label] * 2)
    )
    assert math.isnan(found.figures["roc_auc"])
    assert found.to_json()["roc_auc"] is None


def test_a_loss_without_probabilities_has_no_roc(runs: Runs):
    found = evaluation_report(dp.load(runs["mse"].folder), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1]))
    assert found.loss == 0  # the targets are 0 and 1
    assert "roc_auc" not in found.figures


def scaled(model: dp.Model, values: list[list[float]]) -> torch.Tensor:
    """Return outputs that stand for these numbers."""
    return model.target_scaling.apply(torch.tensor(values, dtype=torch.float64))


def test_numbers_by_hand(runs: Runs):
    """True 1, 2, 4 and predicted 1, 3, 2: errors 0, 1, −2.

    RMSE √(5/3), MAE 1; about the mean 7/3 the squares are 42/9: R² = 1 − 5 / (42/9) = −1/14. C, mse, is 5/3.
    """
    model = dp.load(runs["value"].folder)
    found = evaluation_report(model, scaled(model, [[1.0], [3.0], [2.0]]), np.array([[1.0], [2.0], [4.0]]))
    assert found.figures == pytest.approx({"rmse": math.sqrt(5 / 3), "mae": 1.0, "r2": -1 / 14})
    assert found.loss == pytest.approx(5 / 3)
    assert found.confusion is None


def test_several_numbers_by_hand(runs: Runs):
    """U is right; v, true 0 and 10, is 1 off: its R² is 1 − 2/50. RMSE of all four entries: √(2/4)."""
    model = dp.load(runs["two"].folder)
    found = evaluation_report(model, scaled(model, [[1.0, 1.0], [3.0, 9.0]]), np.array([[1.0, 0.0], [3.0, 10.0]]))
    assert found.by_class["u"] == pytest.approx({"rmse": 0, "mae": 0, "r2": 1}, abs=1e-6)
    assert found.by_class["v"] == pytest.approx({"rmse": 1, "mae": 1, "r2": 0.96})
    assert found.figures == pytest.approx({"rmse": math.sqrt(0.5), "mae": 0.5, "r2": 0.98})  # the mean R²


def test_one_row_has_no_r2(runs: Runs):
    model = dp.load(runs["value"].folder)
    found = evaluation_report(model, scaled(model, [[1.0]]), np.array([[3.0]]))
    assert found.figures["rmse"] == pytest.approx(2)
    assert math.isnan(found.figures["r2"])
    assert found.to_json()["r2"] is None


# --- by scikit-learn, on data of every kind ---


@pytest.mark.parametrize("kind", [kind for kind in OF_TABLES if kind not in OF_NUMBERS])
def test_classes_of_the_training_file(runs: Runs, kind: str):
    """Beside scikit-learn's metrics of classes that are worked out by hand."""
    run, true = runs[kind], [str(name) for name in TABLES[KINDS[kind][0]]["y"]]
    found, predicted = evaluate_file(dp.load(run.folder), run.data), answers_by_hand(run, inputs_of(kind))
    names = run.saved["resolved"]["class_names"]
    report = metrics.classification_report(true, predicted, labels=names, output_dict=True, zero_division=np.nan)
    assert found.rows == N
    assert found.figures["accuracy"] == metrics.accuracy_score(true, predicted)
    assert found.figures["macro_f1"] == pytest.approx(report["macro avg"]["f1-score"])
    assert found.figures["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(true, predicted))
    assert found.confusion is not None
    assert found.confusion.tolist() == metrics.confusion_matrix(true, predicted, labels=names).tolist()
    for name in names:
        theirs = report[name]
        ours = {"precision": theirs["precision"], "recall": theirs["recall"], "f1": theirs["f1-score"]}
        assert found.by_class[name] == pytest.approx({**ours, "rows": theirs["support"]}, nan_ok=True)


@pytest.mark.parametrize("kind", OF_NUMBERS)
def test_numbers_of_the_training_file(runs: Runs, kind: str):
    run = runs[kind]
    names = run.saved["resolved"]["columns"]["targets"]
    true = np.array([TABLES[kind][name] for name in names]).T
    found, predicted = evaluate_file(dp.load(run.folder), run.data), answers_by_hand(run, inputs_of(kind))
    assert found.figures["rmse"] == pytest.approx(math.sqrt(metrics.mean_squared_error(true, predicted)), rel=1e-4)
    assert found.figures["mae"] == pytest.approx(metrics.mean_absolute_error(true, predicted), rel=1e-4)
    assert found.figures["r2"] == pytest.approx(metrics.r2_score(true, predicted), abs=1e-4)


@pytest.mark.parametrize("form", [form for form in FORMS if form.startswith(("csv", "tsv", "par", "semi"))])
@pytest.mark.parametrize("kind", ["mixed", "two", "integers"])
def test_every_form_of_a_table_gives_the_same_metrics(runs: Runs, tmp_path: Path, kind: str, form: str):
    model = dp.load(runs[kind].folder)
    columns = dict(reversed(inputs_of(kind).items()))  # in another order
    found, expected = evaluate_file(model, FORMS[form](tmp_path, columns)), evaluate_file(model, runs[kind].data)
    assert found.figures == pytest.approx(expected.figures)
    assert found.true.tolist() == expected.true.tolist()


def test_arrays_are_evaluated_by_their_y(runs: Runs, tmp_path: Path):
    """Of images.npz; and of x_test beside x_train it is x_test."""
    model, run = dp.load(runs["images"].folder), runs["images"]
    x, y = inputs_of("images"), np.array(dict(np.load(run.data))["y"])
    found = evaluate_file(model, run.data)
    assert found.figures["accuracy"] == (answers_by_hand(run, x).astype(int) == y).mean()
    np.savez(tmp_path / "both.npz", x_train=x, y_train=y, x_test=x[:50], y_test=y[:50])
    assert evaluate_file(model, tmp_path / "both.npz").rows == 50
    np.save(tmp_path / "t.npy", np.concatenate([x.reshape(N, -1), y[:, None]], axis=1))
    assert evaluate_file(model, tmp_path / "t.npy").figures == found.figures
    columns = {f"p{at}": pixels for at, pixels in enumerate(x.reshape(N, -1).T.tolist())}
    path = write_csv(tmp_path / "t.csv", {**columns, "digit": y.tolist()})
    assert evaluate_file(model, path).figures == pytest.approx(found.figures)


def test_a_folder_of_idx_files_is_evaluated_on_its_test_part(runs: Runs, tmp_path: Path):
    rng = np.random.default_rng(0)
    for part, rows in (("train", 60), ("t10k", 20)):
        images, labels = rng.integers(0, 256, (rows, 3, 3), dtype=np.uint8), (np.arange(rows) % 3).astype(np.uint8)
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(encode_idx(images))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(encode_idx(labels))
    run = runs.train("idx", tmp_path)
    found = evaluate_file(dp.load(run.folder), tmp_path)
    assert found.rows == 20
    assert found.figures["accuracy"] == run.metrics["test_accuracy"]
    assert found.loss == pytest.approx(run.metrics["test_loss"], rel=1e-5)


def test_rows_with_something_missing_are_left_out_as_in_training(runs: Runs, tmp_path: Path):
    path = write_csv(tmp_path / "t.csv", TABLES["filled"])
    run = runs.train("leaves-out", path, missing="drop")
    gaps = sum(cell is None for cell in TABLES["filled"]["a"])
    found = evaluate_file(dp.load(run.folder), path)
    assert (found.rows, found.dropped) == (N - gaps, gaps)
    whole = {name: [c for c, a in zip(cells, TABLES["filled"]["a"], strict=True) if a is not None]
             for name, cells in TABLES["filled"].items()}  # fmt: skip
    assert found.figures == evaluate_file(dp.load(run.folder), write_csv(tmp_path / "whole.csv", whole)).figures


def test_a_category_unseen_in_training_is_a_warning(runs: Runs, tmp_path: Path):
    columns = first(inputs_of("mixed"), 5)
    columns["city"][2] = "Bonn"
    found = evaluate_file(dp.load(runs["mixed"].folder), write_csv(tmp_path / "t.csv", columns))
    assert found.warnings == (f"{tmp_path}/t.csv: column 'city' has a name that no training row has, such as 'Bonn'",)
    assert found.to_json()["warnings"] == [*found.warnings]


@pytest.mark.parametrize("names", [["1.50", "2"], ["1", "x"], ["01", "x"], ["0.5", "1.5"], ["yes", "no"]], ids=str)
def test_classes_keep_the_names_they_were_trained_under(runs: Runs, tmp_path: Path, names: list[str]):
    """Numbers that the user has said are categories, as they stand in the file."""
    path = write_csv(tmp_path / "t.csv", {"a": TABLES["numbers"]["a"], "y": [names[at % 2] for at in range(N)]})
    run = runs.train("-".join(names), path, categorical=("y",))
    assert evaluate_file(dp.load(run.folder), path).rows == N
    only = write_csv(tmp_path / "only.csv", {"a": TABLES["numbers"]["a"], "y": [names[0]] * N})
    assert evaluate_file(dp.load(run.folder), only).by_class[names[0]]["rows"] == N


def test_blocks_give_the_metrics_of_the_whole(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    model, data = dp.load(runs["mixed"].folder), runs["mixed"].data
    expected = evaluate_file(model, data)
    monkeypatch.setattr("deltaprop.inference.inputs.ROWS_AT_ONCE", 7)
    monkeypatch.setattr("deltaprop.data.formats.csv.READ_BYTES", 512)
    found = evaluate_file(model, data)
    assert found.true.tolist() == expected.true.tolist()
    assert_allclose(found.loss, expected.loss, rtol=1e-5)


# --- data that is refused ---


def _table(**columns: Any) -> Mapping[str, Any]:
    return columns


@pytest.mark.parametrize(
    ("kind", "columns", "said"),
    [
        ("numbers", _table(a=[1.0], b=[2.0]), "there is no column 'y'"),
        (
            "numbers",
            _table(a=[1.0], b=[2.0], Y=["no"]),
            "there is no column 'y', which the model needs: did you mean 'Y'",
        ),
        ("numbers", _table(a=[1.0] * 2, b=[2.0] * 2, y=["no", "maybe"]), r"row 2, column 'y': class 'maybe' is in no"),
        ("numbers", _table(a=[1.0] * 2, b=[2.0] * 2, y=["no", None]), "row 2, column 'y': the cell is empty"),
        ("numbers", _table(a=[1.0], b=[2.0], y=[3.0]), r"row 1, column 'y': class '3.0' is in no training row"),
        ("integers", _table(a=[1.0], b=[2.0], y=[0.5]), r"row 1, column 'y': class '0\.5' is in no training row"),
        ("integers", _table(a=[1.0], b=[2.0], y=["x"]), r"row 1, column 'y': class 'x' is in no training row"),
        ("value", _table(a=[1.0] * 2, b=[2.0] * 2, v=["1", "x"]), "row 2, column 'v': 'x' is text"),
        ("value", _table(a=[1.0] * 2, b=[2.0] * 2, v=["1", None]), "row 2, column 'v': the cell is empty"),
        ("two", _table(a=[1.0], b=[2.0], v=[2.0]), "there is no column 'u'"),
        ("numbers", _table(a=[], b=[], y=[]), "there are no rows to evaluate on"),
        ("images", _table(**{f"p{at}": [1] for at in range(12)}), "12 columns of inputs and then 1 target"),
        ("images", _table(**{f"p{at}": [1] for at in range(14)}), "14 columns|2 columns"),
    ],
    ids=range(13),
)
def test_a_table_without_the_right_targets(
    runs: Runs, tmp_path: Path, kind: str, columns: Mapping[str, Any], said: str
):
    with pytest.raises(UserError, match=said) as error:
        evaluate_file(dp.load(runs[kind].folder), write_csv(tmp_path / "t.csv", columns))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "arrays", "said"),
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
def test_arrays_without_the_right_targets(
    runs: Runs, tmp_path: Path, kind: str, arrays: dict[str, np.ndarray], said: str
):
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(UserError, match=said) as error:
        evaluate_file(dp.load(runs[kind].folder), tmp_path / "t.npz")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["none.csv", "none.npz", "none", "t.xyz", "empty"])
def test_what_is_no_data(runs: Runs, tmp_path: Path, name: str):
    (tmp_path / "t.xyz").write_text("a,b,y\n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=name) as error:
        evaluate_file(dp.load(runs["numbers"].folder), tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_number_too_large_is_named_by_its_row_though_others_were_left_out(runs: Runs, tmp_path: Path):
    """Rows 1 and 3 have something missing."""
    run = runs.train("dropping", write_csv(tmp_path / "t.csv", TABLES["numbers"]), missing="drop")
    path = tmp_path / "u.csv"
    path.write_text("a,b,y\n,1,no\n1,1,no\n1,,no\n1,1,yes\n1e300,1,no\n")
    with pytest.raises(UserError, match=r"u\.csv: row 5, column 'a': 1e\+300 does not fit in"):
        evaluate_file(dp.load(run.folder), path)
