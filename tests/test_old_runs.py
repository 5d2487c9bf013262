"""Files written by version 0.1.0 still load, give the same predictions and can be resumed.

``fixtures/runs-0.1`` was made by version 0.1.0 with ``fixtures/make_runs_0_1.py``, together with its expected outputs.
A failing test means that files of users no longer work: change the code, not the files.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from safetensors.torch import load_file

import deltaprop as dp
from deltaprop.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:deltaprop.* is deltaprop.* now:DeprecationWarning")

OLD = Path(__file__).parent / "fixtures" / "runs-0.1"
FINISHED = {  # the arguments with which a finished run continues
    "classes": ["--epochs", "6"],
    "numbers": ["--epochs", "6"],
    "categories": ["--epochs", "6"],
    "patience": ["--epochs", "20", "--patience", "0"],
}
STOPPED = ["stopped-autograd", "stopped-explicit"]  # in the second of three epochs

ROUNDING = {"rtol": 1e-5, "atol": 1e-6}  # float32 rounding in one forward pass
TRAINED = {  # rounding accumulated in at most 94 steps
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.float64: {"rtol": 1e-9, "atol": 1e-9},
}


@pytest.fixture
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Change into a copy of a run's folder, with the run in ``run`` and its data in ``data.csv``; return its name."""
    name: str = request.param
    shutil.copytree(OLD / name, tmp_path / name)
    monkeypatch.chdir(tmp_path / name)
    return name


for_each_finished_run = pytest.mark.parametrize("run", FINISHED, indirect=True)


def evaluated(*words: str) -> Any:
    assert main(["evaluate", "run", "--json", "found.json", *words]) == 0
    return json.loads(Path("found.json").read_text())


def assert_same_metrics(actual: Any, expected: Any, path: str = "") -> None:
    """Compare the output of ``evaluate``; a later version may add metrics and change texts."""
    if isinstance(expected, dict):
        for name in expected.keys() - {"data", "warnings"}:
            assert_same_metrics(actual[name], expected[name], f"{path}/{name}")
    elif isinstance(expected, list):
        assert len(actual) == len(expected), path
        for index, (one, other) in enumerate(zip(actual, expected, strict=True)):
            assert_same_metrics(one, other, f"{path}/{index}")
    elif isinstance(expected, float):
        assert_allclose(actual, expected, **ROUNDING, err_msg=path)
    else:
        assert actual == expected, path


def assert_same_predictions(found: str, expected: str) -> None:
    """Compare two prediction files: names and classes as text, numbers up to rounding."""
    with open(found, encoding="utf-8") as one, open(expected, encoding="utf-8") as other:
        ours, theirs = list(csv.DictReader(one)), list(csv.DictReader(other))
    assert [*ours[0]] == [*theirs[0]]
    assert len(ours) == len(theirs) == 15
    for name in theirs[0]:
        cells, expected_cells = [row[name] for row in ours], [row[name] for row in theirs]
        try:
            values = np.array(expected_cells, dtype=float)
        except ValueError:  # class names
            assert cells == expected_cells
        else:
            assert_allclose(np.array(cells, dtype=float), values, **ROUNDING, err_msg=name)


def assert_same_weights(found: str, expected: str, tolerance: dict[str, float] | None = None) -> None:
    ours, theirs = load_file(found), load_file(expected)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype
        assert_allclose(ours[name], value, **(tolerance or TRAINED[value.dtype]), err_msg=name)


# --- runs ---


@for_each_finished_run
def test_a_run_evaluates_to_the_same_metrics(run: str):
    """On its own test rows, which are the same as before, and on new rows."""
    assert_same_metrics(evaluated(), json.loads(Path("evaluation.json").read_text()))
    expected = json.loads(Path("evaluation-new.json").read_text())
    found = evaluated("--data", "new.csv")
    assert_same_metrics(found, expected)
    assert len(found["warnings"]) == len(expected["warnings"])


@for_each_finished_run
def test_a_run_predicts_the_same(run: str):
    """The rows of ``categories`` include an unseen category and missing numbers."""
    assert main(["predict", "run", "--data", "new.csv", "--out", "found.csv"]) == 0
    assert_same_predictions("found.csv", "predictions.csv")


@pytest.mark.parametrize("run", ["patience"], indirect=True)
def test_the_best_weights_of_a_run_predict_the_same(run: str):
    assert main(["predict", "run", "--weights", "best", "--data", "new.csv", "--out", "found.csv"]) == 0
    assert_same_predictions("found.csv", "predictions-best.csv")


@pytest.mark.filterwarnings("ignore::UserWarning")  # about an unseen category
@for_each_finished_run
def test_a_run_loads_in_python_and_predicts_the_same(run: str):
    found = dp.load("run").predict("new.csv").reshape(15, -1)
    with open("predictions.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    expected = np.array([[row[name] for name in row if name.startswith("prediction")] for row in rows])
    if found.dtype.kind == "f":
        assert_allclose(found, expected.astype(float), **ROUNDING)
    else:
        assert found.tolist() == expected.tolist()


@for_each_finished_run
def test_a_run_exports_the_same_weights(run: str):
    assert main(["export", "run", "--to", "state-dict", "--out", "found.safetensors"]) == 0
    assert_same_weights("found.safetensors", "exported.safetensors", ROUNDING)


@pytest.mark.parametrize("run", [*FINISHED, *STOPPED], indirect=True)
def test_info_shows_the_version_of_a_run(run: str, capsys: pytest.CaptureFixture[str]):
    assert main(["info", "run"]) == 0
    assert "0.1.0" in capsys.readouterr().out


@for_each_finished_run
def test_a_finished_run_continues_like_an_uninterrupted_run(run: str, capsys: pytest.CaptureFixture[str]):
    """Momentum and order of samples continue; the metrics of earlier epochs are unchanged."""
    before = Path("run/metrics.jsonl").read_text()
    assert main(["train", "--resume", "run", *FINISHED[run]]) == 0
    assert_warns_of_versions(capsys)
    assert_same_weights("run/model.safetensors", "longer.safetensors")
    after = Path("run/metrics.jsonl").read_text()
    assert after.startswith(before)
    assert [json.loads(line)["epoch"] for line in after.splitlines()] == [*range(1, int(FINISHED[run][1]) + 1)]


@pytest.mark.parametrize("run", STOPPED, indirect=True)
def test_a_run_stopped_in_mid_epoch_resumes_to_the_same_weights(run: str, capsys: pytest.CaptureFixture[str]):
    assert not Path("run/model.safetensors").exists()
    assert main(["train", "--resume", "run"]) == 0
    assert_warns_of_versions(capsys)
    assert_same_weights("run/model.safetensors", "longer.safetensors")
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 3
    assert evaluated()["rows"] > 0


@pytest.mark.parametrize("run", ["patience"], indirect=True)
def test_a_numbered_checkpoint_is_used_if_the_last_is_damaged(run: str, capsys: pytest.CaptureFixture[str]):
    last = Path("run/checkpoints/last.safetensors")
    last.write_bytes(last.read_bytes()[:-1])
    assert main(["train", "--resume", "run", *FINISHED[run]]) == 0
    assert "warning: run/checkpoints/last.safetensors: damaged" in capsys.readouterr().err
    assert_same_weights("run/model.safetensors", "longer.safetensors")


@pytest.mark.parametrize("run", ["classes"], indirect=True)
def test_changes_of_the_result_are_still_refused(run: str, capsys: pytest.CaptureFixture[str]):
    """New settings are compared with those in the checkpoint of version 0.1.0."""
    assert main(["train", "--resume", "run", "--epochs", "6", "--momentum", "0.9"]) == 2
    assert "momentum 0.8 → 0.9; " in capsys.readouterr().err
    words = ["--epochs", "6", "--momentum", "0.9", "--override", "momentum"]
    assert main(["train", "--resume", "run", *words]) == 0
    (record,) = json.loads(Path("run/config.json").read_text())["overrides"]
    assert record == {"epoch": 5, "step": 0, "setting": "momentum", "from": 0.8, "to": 0.9}


@for_each_finished_run
def test_settings_missing_in_config_json_have_the_defaults_of_0_1(run: str):
    """All settings with the default of version 0.1.0 are removed from config.json."""
    path, defaults = Path("run/config.json"), json.loads((OLD / "defaults.json").read_text())
    config = json.loads(path.read_text())
    remaining = {name: value for name, value in config.items() if name not in defaults or value != defaults[name]}
    assert len(remaining) < len(config) - 20
    path.write_text(json.dumps(remaining))
    assert_same_metrics(evaluated(), json.loads(Path("evaluation.json").read_text()))


def assert_warns_of_versions(capsys: pytest.CaptureFixture[str]) -> None:
    """Assert that stderr is one warning about versions, which always differ: the fixture names an unknown platform."""
    err = capsys.readouterr().err
    assert err.startswith("warning: ")
    assert "versions" in err
    assert err.count("\n") == 1


# --- pickled objects ---


@pytest.fixture(scope="module")
def estimators() -> Any:
    """Return rows, and the outputs of the estimators of version 0.1.0 for them."""
    return json.loads((OLD / "estimators.json").read_text())


def test_a_dumped_classifier_gives_the_same_probabilities(estimators: Any):
    classifier = joblib.load(OLD / "classifier.joblib")
    assert_allclose(classifier.predict_proba(estimators["inputs"]), estimators["probabilities"], **ROUNDING)
    assert classifier.predict(estimators["inputs"]).tolist() == estimators["classes"]
    assert isinstance(classifier, dp.MLPClassifier)
    assert classifier.get_params()["hidden_layer_sizes"] == (6,)
    assert classifier.n_iter_ == len(classifier.loss_curve_) == 20


def test_a_dumped_regressor_gives_the_same_values_and_trains_on(estimators: Any):
    """Dumped between two calls of partial_fit: the next one continues with its velocities and random state."""
    regressor = joblib.load(OLD / "regressor.joblib")
    assert_allclose(regressor.predict(estimators["inputs"]), estimators["values"], **ROUNDING)
    regressor.partial_fit(estimators["x"], estimators["y"])
    expected = estimators["values after partial_fit on x, y"]
    assert_allclose(regressor.predict(estimators["inputs"]), expected, **TRAINED[torch.float32])


@pytest.fixture(scope="module")
def nets() -> Any:
    """Return inputs, and the outputs of the networks of version 0.1.0 for them."""
    return json.loads((OLD / "nets.json").read_text())


def test_a_saved_module_loads_and_computes_the_same(nets: Any):
    """A network for each activation, and another with non-default constants if it has constants."""
    models = torch.load(OLD / "model.pt", weights_only=False)
    assert models.keys() == nets["outputs"].keys()
    for name, model in models.items():
        assert type(model) is dp.MLP
        x = torch.tensor(nets["inputs"], dtype=model[0].weight.dtype)
        assert_allclose(model(x).detach(), nets["outputs"][name], **ROUNDING, err_msg=name)
    assert repr(models["leaky_relu"][1]) == "LeakyReLU(negative_slope=0.3)"


def test_a_state_dict_loads_with_its_optimizers_and_trains_on(nets: Any):
    """Without unpickling; the step here is the third, with the momentum of the two before."""
    saved, expected = torch.load(OLD / "state_dict.pt", weights_only=True), nets["state_dict"]
    x, classes = torch.tensor(nets["inputs"]), torch.tensor(expected["classes"])
    model = dp.MLP([3, 5, 2], "tanh")
    optimizer = dp.SGD(model.parameters(), lr=1.0)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    assert_allclose(model(x).detach(), expected["outputs"], **ROUNDING)
    dp.functional.cross_entropy(model(x), classes).backward()
    optimizer.step()
    assert_allclose(model(x).detach(), expected["outputs after a step"], **ROUNDING)
