"""A training run: its accuracy, its files, and its reproducibility."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import joblib
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from deltaprop import MLP, UserError
from deltaprop import functional as F
from deltaprop.epoch_state import EpochState
from deltaprop.training import Result, TrainConfig, TrainingError, evaluate, train
from deltaprop.training.engines import train_epoch
from deltaprop.training.run_folder import RunFolder
from deltaprop.training.setup import Setup, make_optimizer, prepare
from tests.training.conftest import metrics_of, starter, without_times

MNIST = Path(__file__).parents[3] / "shared" / "data" / "mnist"
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def sine(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A run trained on the sine."""
    folder = tmp_path_factory.mktemp("sine") / "run"
    return train(TrainConfig(data="sine", hidden=(64, 32), epochs=30, log_every=0, seed=0, run_dir=folder))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The run of the fixture ``run`` with no setting replaced; read-only."""
    return starter(tmp_path_factory.mktemp("plain"))()


class TestLearning:
    """Every data set is learned with the default settings."""

    def test_the_default_run_classifies_97_percent_of_the_digits(self, tmp_path: Path):
        """Without plots, which take longer than the training (tests/test_docs.py runs it with them)."""
        result = train(TrainConfig(run_dir=tmp_path / "run", log_every=0))
        assert result.metrics["test_accuracy"] >= 0.97

    @pytest.mark.slow
    def test_the_default_run_reaches_97_percent_in_the_median_of_ten_seeds(self, tmp_path: Path):
        accuracies = [
            train(TrainConfig(run_dir=tmp_path / str(seed), seed=seed, log_every=0)).metrics["test_accuracy"]
            for seed in range(10)
        ]
        assert sorted(accuracies)[4] >= 0.97

    @pytest.mark.parametrize(
        "data", ["spirals", *(pytest.param(d, marks=pytest.mark.slow) for d in ("moons", "circles", "xor"))]
    )
    def test_two_dimensional_data_sets_are_learned(self, run: Run, data: str):
        assert run(data=data, hidden=(64, 32), epochs=15).metrics["test_accuracy"] >= 0.97

    def test_the_sine_is_learned_in_target_units(self, sine: Result):
        """A straight line through two periods of a sine of amplitude 1 has an error of about 0.6."""
        assert sine.metrics["test_rmse"] < 0.2

    @pytest.mark.slow
    @pytest.mark.skipif(not MNIST.is_dir(), reason="no MNIST folder next to the checkout")
    def test_mnist_reaches_97_5_percent_within_10_epochs(self, run: Run):
        result = run(data=str(MNIST), hidden=(100,), lr_schedule="cosine", batch_size=64, epochs=10)
        assert result.metrics["test_accuracy"] >= 0.975

    @pytest.mark.parametrize("loss", ["mse", "quadratic", "binary-cross-entropy", "huber", "l1"])
    def test_every_loss_learns_classes(self, run: Run, loss: str):
        """All but cross-entropy, the default, which is tested above."""
        assert run(loss=loss, hidden=(32,), epochs=8).metrics["test_accuracy"] >= 0.85

    @pytest.mark.parametrize("loss", ["quadratic", "huber", "l1"])
    def test_every_regression_loss_learns_the_sine(self, run: Run, loss: str):
        """All but the mean squared error, the default, which is tested above."""
        result = run(data="sine", loss=loss, hidden=(64, 32), epochs=30, engine="explicit")
        assert result.metrics["test_rmse"] < 0.3

    def test_splits_evaluated_in_parallel_have_the_same_metrics(self, run: Run, monkeypatch: pytest.MonkeyPatch):
        """With two cores the validation and test rows are evaluated in two threads: the same bits."""
        results, threads = [], set()
        real = evaluate.evaluate

        def evaluate_and_record(*args: Any) -> Any:
            threads.add(threading.get_ident())
            return real(*args)

        monkeypatch.setattr(evaluate, "evaluate", evaluate_and_record)
        for cores in (1, 2):
            threads.clear()
            monkeypatch.setattr(Setup, "parts_at_once", cores)
            results.append(run(epochs=2, val_fraction=0.4))
            assert (threads == {threading.get_ident()}) == (cores == 1)
        assert without_times(results[0]) == without_times(results[1])

    @pytest.mark.parametrize(
        ("threads", "cores", "at_once"), [("auto", 4, 2), ("1", 4, 1), ("4", 4, 1), ("auto", 1, 1)]
    )
    def test_evaluation_uses_no_more_cores_than_given(
        self, monkeypatch: pytest.MonkeyPatch, threads: str, cores: int, at_once: int
    ):
        monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
        assert prepare(TrainConfig(data="moons", threads=threads)).parts_at_once == at_once

    def test_splits_on_a_gpu_or_on_disk_are_evaluated_one_at_a_time(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ):
        monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
        setup = prepare(TrainConfig(data="moons"))
        assert dataclasses.replace(setup, device=torch.device("cuda")).parts_at_once == 1
        (tmp_path / "t.csv").write_text("x,class\n" + "".join(f"{row},{'ab'[row % 2]}\n" for row in range(100)))
        assert prepare(TrainConfig(data=str(tmp_path / "t.csv"))).parts_at_once == 2
        assert prepare(TrainConfig(data=str(tmp_path / "t.csv")), storage="disk").parts_at_once == 1

    def test_batch_size_1_is_one_update_per_training_row(self, run: Run):
        result = run(batch_size=1, epochs=1, lr=0.01, momentum=0.0)
        rows = json.loads((result.folder / "config.json").read_text())["resolved"]["rows"]["train"]
        assert result.metrics["step"] == rows

    def test_no_hidden_layer_is_a_linear_model(self, run: Run):
        """No straight line separates the moons: most predictions are right, but not all."""
        accuracy = run(hidden=(), epochs=20).metrics["test_accuracy"]
        assert 0.8 <= accuracy < 0.97


class TestTextbook:
    """The loop computes exactly the textbook's steps."""

    def test_an_epoch_equals_torch_nn_step_by_step(self):
        """With the same weights, order and η float64 parameters agree to 1e-12 after 7 steps, the last one smaller."""
        torch.manual_seed(0)
        x, y = torch.randn(20, 4, dtype=torch.float64), torch.randint(3, (20,))
        ours = MLP([4, 5, 3], "tanh", dtype=torch.float64)
        twin = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        twin.load_state_dict(ours.state_dict())
        order = torch.randperm(20)
        config = TrainConfig(lr=0.1, momentum=0.9, weight_decay=0.01)
        progress = EpochState(x.new_zeros(()))
        train_epoch(ours, F.cross_entropy, make_optimizer(ours, config), x, y, order, 3, state=progress)
        weights, biases = [twin[0].weight, twin[2].weight], [twin[0].bias, twin[2].bias]
        groups = [{"params": weights, "weight_decay": 0.01}, {"params": biases, "weight_decay": 0.0}]
        sgd = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        total = 0.0
        for rows in order.split(3):
            c = nn.functional.cross_entropy(twin(x[rows]), y[rows])
            sgd.zero_grad()
            c.backward()
            sgd.step()
            total += c.item() * len(rows)
        assert float(progress.total) == pytest.approx(total, rel=1e-12)
        assert progress.done == 7
        for key, value in twin.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-12, atol=1e-14)

    def test_weight_decay_applies_to_biases_only_if_set(self):
        model = MLP([2, 3, 1])
        groups = make_optimizer(model, TrainConfig(lr=0.1, weight_decay=0.1)).param_groups
        assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(2, 0.1), (2, 0.0)]
        groups = make_optimizer(model, TrainConfig(lr=0.1, weight_decay=0.1, decay_biases=True)).param_groups
        assert [g["weight_decay"] for g in groups] == [0.1, 0.1]

    def test_the_schedule_reaches_the_optimizer(self, run: Run):
        result = run(lr=0.1, lr_schedule="step", lr_step=1, lr_gamma=0.5)
        assert [line["lr"] for line in metrics_of(result)] == pytest.approx([0.1, 0.05, 0.025])

    def test_a_tiny_lr_after_the_first_epoch_hardly_changes_the_weights(self, run: Run):
        one = load_file(run(epochs=1).folder / "model.safetensors")
        three = load_file(run(lr_schedule="step", lr_step=1, lr_gamma=1e-9).folder / "model.safetensors")
        for key, value in one.items():
            torch.testing.assert_close(three[key], value, rtol=1e-5, atol=1e-6)

    # Each changes one setting of the fixture's run (moons, one hidden layer of 8, 3 epochs).
    SETTINGS: ClassVar[list[dict[str, Any]]] = [
        {"hidden": (9,)}, {"activation": ("tanh",)}, {"output_activation": "tanh"}, {"loss": "mse"},
        {"init": "xavier"}, {"lr": 0.04}, {"momentum": 0.8}, {"nesterov": True}, {"weight_decay": 0.01},
        {"lr_schedule": "cosine"}, {"lr_warmup": 2}, {"epochs": 2}, {"batch_size": 15}, {"val_fraction": 0.2},
        {"val_split": "tail"}, {"test_fraction": 0.3}, {"scaling": "none"}, {"seed": 1}, {"dtype": "float64"},
    ]  # fmt: skip

    @pytest.mark.parametrize("setting", SETTINGS, ids=str)
    def test_every_setting_changes_the_weights(self, plain: Result, run: Run, setting: dict[str, Any]):
        changed = (run(**setting).folder / "model.safetensors").read_bytes()
        assert changed != (plain.folder / "model.safetensors").read_bytes()

    def test_decay_biases_and_pixel_scale_change_the_weights(self, run: Run):
        first = run(weight_decay=0.01)
        second = run(weight_decay=0.01, decay_biases=True)
        assert (first.folder / "model.safetensors").read_bytes() != (second.folder / "model.safetensors").read_bytes()
        first, second = (run(data="digits", epochs=1, pixel_scale=scale) for scale in (None, 255.0))
        assert (first.folder / "model.safetensors").read_bytes() != (second.folder / "model.safetensors").read_bytes()


class TestReproducible:
    """The same seed gives the same bytes."""

    def test_same_seed_same_weights_and_same_metrics(self, run: Run):
        torch.manual_seed(1)
        first = run()
        torch.manual_seed(2)  # the run depends on its seed, not on the state of the global generator
        second = run()
        for name in ("model.safetensors", "best.safetensors"):
            assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()
        assert without_times(first) == without_times(second)

    def test_another_seed_gives_other_weights(self, plain: Result, run: Run):
        first, second = plain, run(seed=1)
        assert (first.folder / "model.safetensors").read_bytes() != (second.folder / "model.safetensors").read_bytes()

    def test_logging_changes_no_bit(self, run: Run):
        """Histograms and δ norms come from a separate pass: the weights are the same bits."""
        unlogged, logged = run(log_every=0, epochs=2), run(log_every=1, epochs=2)
        assert (unlogged.folder / "model.safetensors").read_bytes() == (
            logged.folder / "model.safetensors"
        ).read_bytes()

    def test_threads_are_set_during_the_run(self, tmp_path: Path):
        from deltaprop.training.report.reporter import Silent

        class RecordsThreads(Silent):
            seen: ClassVar[list[int]] = []

            def epoch(self, setup: object, metrics: object) -> None:
                self.seen.append(torch.get_num_threads())

        for threads in ("2", "auto"):
            config = TrainConfig(data="moons", hidden=(8,), epochs=1, log_every=0, threads=threads)
            train(dataclasses.replace(config, run_dir=tmp_path / threads), RecordsThreads())
        wide = TrainConfig(
            data="moons", hidden=(2**10,), batch_size=2**14, epochs=1, log_every=0, run_dir=tmp_path / "w"
        )
        train(wide, RecordsThreads())  # 2^10 · 2 · 2^14 = 2^25 multiply-adds
        assert RecordsThreads.seen == [2, 1, joblib.cpu_count(only_physical_cores=True)]

    def test_the_callers_random_state_and_threads_are_unchanged(self, run: Run):
        torch.manual_seed(7)
        before, threads = torch.get_rng_state(), torch.get_num_threads()
        run(threads="2")
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.get_num_threads() == threads


class TestRunFolder:
    """The files that a run writes."""

    def test_the_folder_holds_config_metrics_weights_and_events(self, plain: Result):
        names = {path.name.split(".tfevents")[0].split(".out")[0] for path in plain.folder.iterdir()}
        assert {"config.json", "metrics.jsonl", "model.safetensors", "best.safetensors"} <= names
        assert any(name.startswith("events") for name in names)
        assert not any(".tmp-" in name for name in names)  # no temporary file is left

    def test_a_write_that_fails_leaves_the_old_file_and_no_temporary(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        folder = RunFolder(tmp_path)
        folder.write_config({"seed": 1})

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.replace", full)
        with pytest.raises(OSError, match="No space left"):
            folder.write_config({"seed": 2})
        assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
        assert json.loads((tmp_path / "config.json").read_text()) == {"seed": 1}

    def test_config_json_defines_the_run(self, run: Run):
        config = json.loads((run(seed=5).folder / "config.json").read_text())
        assert (config["seed"], config["hidden"], config["lr"]) == (5, [8], 0.05)
        assert config["resolved"]["sizes"] == [2, 8, 2]
        assert config["resolved"]["loss"] == "cross-entropy"
        assert config["resolved"]["device"] == "cpu"
        assert config["resolved"]["threads"] == 1
        assert len(config["resolved"]["data_sha256"]) == 64
        assert config["versions"]["torch"] == torch.__version__

    def test_metrics_have_a_line_per_epoch(self, plain: Result):
        lines = metrics_of(plain)
        assert [line["epoch"] for line in lines] == [1, 2, 3]
        assert list(lines[0]) == [
            "epoch", "step", "train_loss", "val_loss", "val_accuracy", "test_loss", "test_accuracy",
            "lr", "seconds", "samples_per_second",
        ]  # fmt: skip

    @pytest.mark.parametrize("part", ["val", "test"])
    def test_regression_losses_are_in_target_units(self, run: Run, part: str):
        """The mean squared error is the square of the rmse, which is in target units."""
        for line in metrics_of(run(data="sine")):
            assert line[f"{part}_loss"] == pytest.approx(line[f"{part}_rmse"] ** 2, rel=1e-4)

    def test_the_regression_training_loss_is_in_target_units(self, run: Run):
        """With a tiny η the training loss is that of the untrained network, computed here."""
        from deltaprop.training.setup import prepare

        result = run(data="sine", lr=1e-12, epochs=1)
        setup = prepare(TrainConfig(data="sine", hidden=(8,), seed=0))
        train, scaling = setup.dataset.train, setup.dataset.target_scaling
        with torch.no_grad():
            error = scaling.invert(setup.model(train.x)) - scaling.invert(train.y)
        assert result.metrics["train_loss"] == pytest.approx(error.square().mean().item(), rel=1e-4)

    def test_regression_metrics_have_rmse(self, run: Run):
        line = metrics_of(run(data="sine"))[0]
        assert "val_rmse" in line
        assert "test_rmse" in line
        assert "val_accuracy" not in line

    def test_the_weights_load_in_plain_pytorch_and_give_the_reported_accuracy(self, plain: Result):
        from deltaprop.data import load

        result = plain
        twin = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
        twin.load_state_dict(load_file(result.folder / "model.safetensors"))
        test = load("moons", seed=0).test
        accuracy = (twin(test.x).argmax(1) == test.y).float().mean().item()
        assert accuracy == pytest.approx(result.metrics["test_accuracy"])

    def test_best_is_the_epoch_with_the_lowest_validation_loss(self, run: Run):
        result = run(epochs=10)
        lines = metrics_of(result)
        assert result.best == min(lines, key=lambda line: line["val_loss"])

    def test_the_saved_weights_give_the_metrics_of_their_epoch(self, run: Run):
        """best.safetensors gives the metrics of the best epoch, model.safetensors those of the last."""
        from deltaprop.data import load

        result = run(epochs=12, lr=1.0)  # overshoots: the best epoch is not the last
        assert result.best is not None
        assert result.best["epoch"] < result.metrics["epoch"]
        data = load("moons", seed=0)
        for name, line in (("best", result.best), ("model", result.metrics)):
            twin = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
            twin.load_state_dict(load_file(result.folder / f"{name}.safetensors"))
            for part, split in (("val", data.val), ("test", data.test)):
                outputs = twin(split.x)
                assert line[f"{part}_loss"] == pytest.approx(nn.functional.cross_entropy(outputs, split.y).item())
                accuracy = (outputs.argmax(1) == split.y).float().mean().item()
                assert line[f"{part}_accuracy"] == pytest.approx(accuracy)

    def test_config_json_holds_the_scaling_of_inputs_and_targets(self, sine: Result):
        """At x = π/2 plain PyTorch gives about sin(π/2) = 1, in target units."""
        resolved = json.loads((sine.folder / "config.json").read_text())["resolved"]
        inputs, targets = resolved["input_scaling"], resolved["target_scaling"]
        twin = nn.Sequential(nn.Linear(1, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))
        twin.load_state_dict(load_file(sine.folder / "model.safetensors"))
        x = torch.tensor([[torch.pi / 2], [-torch.pi / 2]])
        y = twin((x - inputs["mean"]) / inputs["scale"]) * targets["scale"] + targets["mean"]
        torch.testing.assert_close(y, torch.tensor([[1.0], [-1.0]]), atol=0.3, rtol=0)

    def test_runs_that_start_in_the_same_second_get_separate_folders(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        """Both look for a free name before either has created its folder; the second uses the next number."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("time.strftime", lambda form: "20260101-000000")
        names = iter([Path("runs/xor-20260101-000000"), Path("runs/xor-20260101-000000"), Path("runs/xor-2")])
        monkeypatch.setattr("deltaprop.training.run_folder.default_folder", lambda data: next(names))
        first = RunFolder.make(None, "xor")
        second = RunFolder.make(None, "xor")
        assert first.path != second.path

    def test_without_validation_rows_there_is_no_best_epoch(self, run: Run):
        result = run(val_fraction=0.0)
        assert result.best is None
        assert not (result.folder / "best.safetensors").exists()
        assert metrics_of(result)[0]["val_loss"] is None

    def test_patience_stops_when_validation_no_longer_improves(self, run: Run):
        """A large η overshoots, so the validation loss stops improving."""
        result = run(epochs=200, patience=2, lr=1.0, momentum=0.0)
        assert result.stopped_early
        assert result.best is not None
        assert result.metrics["epoch"] == result.best["epoch"] + 2


class TestRefusals:
    """Invalid input is refused before anything is written."""

    def test_a_non_finite_loss_ends_the_run_with_a_remedy(self, run: Run, tmp_path: Path):
        with pytest.raises(TrainingError, match=r"not finite: layer 1 .*, steps .* lower `lr`"):
            run(loss="mse", data="sine", lr=1e6)

    @pytest.mark.parametrize("log_every", [0, 1])
    def test_divergence_in_the_last_step_saves_nothing_non_finite(self, run: Run, tmp_path: Path, log_every: int):
        """One huge step: the training loss of the epoch is still finite, the evaluation after it is not."""
        with pytest.raises(TrainingError, match=r"not finite|loss became"):
            run(batch_size=10**6, lr=1e38, epochs=1, log_every=log_every)
        assert not (tmp_path / "run1" / "metrics.jsonl").exists()
        assert not (tmp_path / "run1" / "best.safetensors").exists()

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"data": "mnits"}, "mnits"),
            ({"data": "sine", "loss": "cross-entropy"}, "needs classes"),
            ({"output_activation": "softmax"}, "already contains it"),
            ({"output_activation": "sigmoid", "loss": "binary-cross-entropy"}, "already contains it"),
            ({"device": "tpu"}, "`device` must be"),
            ({"scaling": "pixel"}, "pixel"),
        ],
    )
    def test_invalid_settings_leave_no_folder(self, run: Run, tmp_path: Path, settings: dict, message: str):
        with pytest.raises(UserError, match=message):
            run(**settings)
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_is_not_empty_is_refused(self, run: Run, tmp_path: Path):
        (tmp_path / "run1").mkdir()
        (tmp_path / "run1" / "notes.txt").write_text("mine")
        with pytest.raises(UserError, match="not empty"):
            run()
        assert [path.name for path in (tmp_path / "run1").iterdir()] == ["notes.txt"]

    def test_the_folder_is_checked_before_any_data_is_loaded(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        def load(*_: object, **__: object) -> None:
            raise AssertionError("the data was loaded")

        monkeypatch.setattr("deltaprop.training.setup.load", load)
        (tmp_path / "run1").write_text("a file")
        with pytest.raises(UserError, match="there is a file of this name"):
            run()

    def test_a_run_dir_that_is_a_file_is_refused(self, run: Run, tmp_path: Path):
        (tmp_path / "run1").write_text("a file")
        with pytest.raises(UserError, match="there is a file of this name"):
            run()

    def test_a_run_dir_inside_a_file_is_refused(self, run: Run, tmp_path: Path):
        (tmp_path / "file").write_text("a file")
        with pytest.raises(UserError, match="is a file, not a folder"):
            run(run_dir=tmp_path / "file" / "run")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_run_on_cuda_learns_the_digits(tmp_path: Path):
    result = train(TrainConfig(device="cuda", run_dir=tmp_path / "run"))
    assert result.metrics["test_accuracy"] >= 0.97
