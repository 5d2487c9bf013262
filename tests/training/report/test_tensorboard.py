"""TensorBoard: the scalars, histograms, plots and texts of a run, as a real server shows them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deltaprop.training import Result
from deltaprop.training.report.reporter import Silent

LAYERS = ("layer1", "layer2")
HISTOGRAMS = {f"{kind}/{layer}" for kind in ("weights", "biases", "activations", "deltas") for layer in LAYERS}
CHEAP = {"loss/train", "loss/val", "loss/test", "accuracy/val", "accuracy/test", "lr", "samples_per_second"}
COSTLY = {"delta_norm/layer1", "delta_norm/layer2", "saturated/layer1", "dead/layer1"}
PICTURES = {f"pictures/{name}" for name in ("first_layer_weights", "confusion_matrix", "worst_samples")}
HPARAMS = {"hparam/test_loss", "hparam/test_accuracy"}


class Server:
    """A TensorBoard server on the loopback interface."""

    def __init__(self, logdir: Path) -> None:
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host", "127.0.0.1"]
        self.process = subprocess.Popen(
            [*command, "--port", "0", "--load_fast=false", "--reload_interval", "1"],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
        assert self.process.stderr is not None
        for line in self.process.stderr:  # it prints its address when it listens
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            if found:
                self.address = found[0]
                return
        raise RuntimeError("TensorBoard did not start")

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.address}/data/{path}", timeout=30) as response:
            return json.load(response)

    def tags(self, plugin: str) -> dict[str, set[str]]:
        """Return the tags of each run, as soon as the server has loaded any."""
        deadline = time.monotonic() + 60
        while not (runs := self.get(f"plugin/{plugin}/tags")) and time.monotonic() < deadline:
            time.sleep(0.3)
        return {run: set(tags) for run, tags in runs.items()}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """Serve three new runs: moons, the sine, and digits without histograms and plots."""
    from deltaprop.training import TrainConfig, train

    root = tmp_path_factory.mktemp("runs")
    train(TrainConfig(data="moons", hidden=(8,), epochs=2, log_every=1, run_dir=root / "moons"))
    train(TrainConfig(data="sine", hidden=(8,), epochs=2, log_every=2, run_dir=root / "sine"))
    train(TrainConfig(data="digits", hidden=(8,), epochs=2, log_every=0, run_dir=root / "digits"))
    server = Server(root)
    deadline = time.monotonic() + 60
    while ["hparam/test_loss" in tags for tags in server.tags("scalars").values()] != [True] * 3:  # written last
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield server, root
    server.process.terminate()
    server.process.wait()
    assert server.process.stderr is not None
    server.process.stderr.close()


def test_every_tag_is_served_over_http(served: tuple[Server, Path]):
    server, _ = served
    scalars = server.tags("scalars")
    assert scalars["moons"] == CHEAP | COSTLY | HPARAMS
    assert server.tags("histograms")["moons"] == HISTOGRAMS
    assert server.tags("images")["moons"] == PICTURES | {"pictures/decision_boundary"}
    assert {"config/text_summary", "equations/text_summary"} <= {
        tag if tag.endswith("text_summary") else f"{tag}/text_summary" for tag in server.tags("text")["moons"]
    }


def test_regression_runs_have_a_fitted_curve_and_rmse(served: tuple[Server, Path]):
    server, _ = served
    assert {"rmse/val", "rmse/test"} <= server.tags("scalars")["sine"]
    assert server.tags("images")["sine"] == {"pictures/first_layer_weights", "pictures/fitted_curve"}


def test_log_every_0_omits_histograms_and_plots(served: tuple[Server, Path]):
    server, _ = served
    assert server.tags("scalars")["digits"] == CHEAP | HPARAMS
    assert "digits" not in server.tags("histograms")
    assert "digits" not in server.tags("images")


def test_each_run_appears_once(served: tuple[Server, Path]):
    """By default add_hparams and add_scalars would create additional runs."""
    server, _ = served
    assert sorted(server.get("runs")) == ["digits", "moons", "sine"]


def test_the_accuracy_chart_matches_metrics_jsonl(served: tuple[Server, Path]):
    server, root = served
    points = server.get("plugin/scalars/scalars?tag=accuracy/val&run=moons")
    lines = [json.loads(line) for line in (root / "moons" / "metrics.jsonl").read_text().splitlines()]
    assert [(step, value) for _, step, value in points] == [
        (line["epoch"], pytest.approx(line["val_accuracy"])) for line in lines
    ]


def test_delta_norms_start_before_training(served: tuple[Server, Path]):
    server, _ = served
    points = server.get("plugin/scalars/scalars?tag=delta_norm/layer1&run=moons")
    assert [step for _, step, _ in points] == [0, 1, 2]


def test_hyperparameters_are_in_the_run_itself(served: tuple[Server, Path]):
    server, _ = served
    request = urllib.request.Request(
        f"{server.address}/data/plugin/hparams/experiment", data=b"{}", headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        experiment = json.load(response)
    assert {"lr", "hidden", "activation", "momentum", "batch_size"} <= {h["name"] for h in experiment["hparamInfos"]}


def test_log_every_records_the_start_every_n_epochs_and_the_end(run: Callable[..., Result]):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run(epochs=3, log_every=2).folder))
    events.Reload()
    assert [event.step for event in events.Scalars("delta_norm/layer1")] == [0, 2, 3]


def test_a_new_run_purges_older_events(run: Callable[..., Result]):
    """A session start at step 0 makes readers drop the events that an earlier writer left in the folder."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    first, *_ = sorted(run().folder.glob("events.out.tfevents.*"))
    starts = [event for event in EventFileLoader(str(first)).Load() if event.HasField("session_log")]
    assert [(event.session_log.status, event.step) for event in starts] == [(1, 0)]  # 1 is START


def test_exceptions_in_other_threads_are_still_reported(run: Callable[..., Result], monkeypatch: Any):
    """During a run only the tracebacks of the event writer's own thread are suppressed."""
    reported: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", reported.append)

    class Failing(Silent):
        def epoch(self, setup: Any, metrics: dict[str, Any]) -> None:
            thread = threading.Thread(target=lambda: 1 / 0)
            thread.start()
            thread.join()

    run(epochs=1, reporter=Failing())
    assert [arguments.exc_type for arguments in reported] == [ZeroDivisionError]
    assert threading.excepthook == reported.append


def test_layer_statistics_match_the_captured_layers(run: Callable[..., Result], tmp_path: Path):
    """At epoch 0 each histogram has the count, sum and sum of squares of W, b, a or δ of the untrained network."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from deltaprop.tracing.capture import capture_layers, delta_norm
    from deltaprop.training import TrainConfig
    from deltaprop.training.setup import prepare

    settings = {"data": "moons", "hidden": (8,), "epochs": 1, "log_every": 1, "seed": 0}
    events = EventAccumulator(
        str(run(**settings).folder), size_guidance={"histograms": 0}
    )  # all histograms, not only the last
    events.Reload()
    setup = prepare(TrainConfig(**settings, run_dir=tmp_path / "other"))
    train = setup.dataset.train
    for number, layer in enumerate(
        capture_layers(setup.model, setup.objective.call, train.x[:256], train.y[:256]), start=1
    ):
        assert events.Scalars(f"delta_norm/layer{number}")[0].value == pytest.approx(delta_norm(layer), rel=1e-5)
        kinds = {
            "weights": layer.weight,
            "biases": layer.bias,
            "activations": layer.a,
            "deltas": layer.delta,
        }
        for kind, shown in kinds.items():
            tensor = shown.detach().double()
            histogram = events.Histograms(f"{kind}/layer{number}")[0].histogram_value
            assert histogram.num == tensor.numel()
            assert histogram.sum == pytest.approx(float(tensor.sum()), rel=1e-4, abs=1e-6), kind
            assert histogram.sum_squares == pytest.approx(float(tensor.square().sum()), rel=1e-4), kind
