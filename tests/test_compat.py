"""Compatibility with skorch and scikit-learn, Lightning, torchmetrics, and plain PyTorch.

The real packages are used. Tests of a missing package are skipped, or fail with DELTAPROP_COMPAT=1. A twin is a model
of torch.nn modules only, trained with the same tool and torch's own SGD and losses.
"""

from __future__ import annotations

import copy
import importlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

import deltaprop as dp
import deltaprop.functional as F
from deltaprop.data import load
from deltaprop.training import TrainConfig, train


def required(name: str) -> ModuleType:
    """Return a package; if it is missing, skip the test, or fail it with DELTAPROP_COMPAT=1."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:  # of the package, or of one that it needs
        missing = f"{name} cannot be imported: {error}"
    if os.environ.get("DELTAPROP_COMPAT") == "1":
        pytest.fail(f"DELTAPROP_COMPAT=1, and {missing}", pytrace=False)
    pytest.skip(missing)


@pytest.fixture(scope="module")
def skorch() -> ModuleType:
    return required("skorch")


@pytest.fixture(scope="module")
def lightning() -> ModuleType:
    return required("pytorch_lightning")


@pytest.fixture(scope="module")
def torchmetrics() -> ModuleType:
    return required("torchmetrics")


@pytest.fixture(scope="module")
def iris() -> tuple[Tensor, Tensor]:
    """x, [150, 4], standardised in float64, and labels, [150], 50 of each class; rows in a random order."""
    x, y = (torch.tensor(part) for part in load_iris(return_X_y=True))
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    return ((x - x.mean(0)) / x.std(0))[order], y[order]


# Chance is a third; Fisher's linear discriminant (1936) has 147 of the 150 right, 0.98.
GOOD_ACCURACY = 0.93


def ours_and_twin() -> tuple[dp.MLP, nn.Sequential]:
    """Return an MLP for iris and a torch.nn model with copies of its weights."""
    twin = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    ours = dp.MLP([4, 16, 3], "tanh", dtype=torch.float64)
    ours.load_state_dict(twin.state_dict())
    return ours, twin


def assert_trained_alike(ours: nn.Module, twin: nn.Module, start: dict[str, Tensor]) -> None:
    """Assert that every parameter has changed, and equals the twin's to 1e-12 in float64."""
    assert ours.state_dict().keys() == twin.state_dict().keys() == start.keys()
    for key, value in twin.state_dict().items():
        assert not torch.allclose(value, start[key], rtol=1e-3), key
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-12, atol=1e-14)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a module's state_dict, which training does not change."""
    return {key: value.clone() for key, value in module.state_dict().items()}


def assert_same_bits(first: nn.Module, second: nn.Module) -> None:
    """Assert that every parameter is the same to the bit."""
    for (key, one), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other), key


class TestMissingPackages:
    """A missing package is reported, and its tests do not pass."""

    def test_a_missing_package_skips_the_test(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.delenv("DELTAPROP_COMPAT", raising=False)
        with pytest.raises(pytest.skip.Exception, match="no_such_package cannot be imported"):
            required("no_such_package")

    def test_a_missing_package_fails_with_deltaprop_compat(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("DELTAPROP_COMPAT", "1")
        ends = (pytest.fail.Exception, pytest.skip.Exception)  # an uncaught skip would skip this test
        with pytest.raises(ends, match="no_such_package cannot be imported") as raised:
            required("no_such_package")
        assert raised.type is pytest.fail.Exception


class CrossEntropy(nn.Module):
    """The library's loss as a criterion for skorch, which requires a module class."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return C from logits and labels."""
        return F.cross_entropy(input, target)


class InferredCrossEntropy(CrossEntropy, nn.CrossEntropyLoss):
    """The same as a subclass of torch's loss, after which skorch applies a softmax to the logits."""


def softmax(logits: Tensor) -> Tensor:
    """The nonlinearity after the logits for skorch; a module-level function, since a lambda cannot be pickled."""
    return logits.softmax(-1)


class TestSkorch:
    """dp.MLP and dp.SGD in a NeuralNetClassifier, and this in scikit-learn."""

    @staticmethod
    def net(skorch: ModuleType, module: Any = dp.MLP, **settings: Any) -> Any:
        """Return a classifier for iris; settings may be replaced."""
        sizes = {"module__sizes": [4, 16, 3], "module__activation": "tanh"} if module is dp.MLP else {}
        usual = {
            "criterion": CrossEntropy, "predict_nonlinearity": softmax, "optimizer": dp.SGD,
            "optimizer__momentum": 0.9, "lr": 0.1, "batch_size": 16, "max_epochs": 20,
            "iterator_train__shuffle": True, "train_split": None, "verbose": 0,
        }  # fmt: skip
        return skorch.NeuralNetClassifier(module, **{**sizes, **usual, **settings})

    @pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss, CrossEntropy])
    def test_it_learns(self, skorch: ModuleType, iris: tuple[Tensor, Tensor], criterion: type[nn.Module]):
        x, y = iris[0].float().numpy(), iris[1].numpy()
        net = self.net(skorch, criterion=criterion).fit(x, y)
        assert net.score(x, y) >= GOOD_ACCURACY
        assert net.history[-1, "train_loss"] < net.history[0, "train_loss"] / 2

    @pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss, CrossEntropy])
    @pytest.mark.parametrize("helped", [False, True], ids=["bare", "clipped and scheduled"])
    def test_the_weights_equal_a_torch_twins(
        self, skorch: ModuleType, iris: tuple[Tensor, Tensor], criterion: type[nn.Module], helped: bool
    ):
        """Same weights and batches; the twin has torch's SGD and loss. skorch uses torch's global generator."""
        nets = [
            self.net(skorch, module__dtype=torch.float64, criterion=criterion),
            self.net(skorch, ours_and_twin()[1], criterion=nn.CrossEntropyLoss, optimizer=torch.optim.SGD),
        ]
        start = state_of(nets[1].module)
        for net in nets:
            if helped:
                halve = skorch.callbacks.LRScheduler("StepLR", step_size=5, gamma=0.5)
                net.set_params(callbacks=[("clip", skorch.callbacks.GradientNormClipping(0.5)), ("halve", halve)])
            net.initialize().module_.load_state_dict(start)
            torch.manual_seed(1)
            net.partial_fit(iris[0].numpy(), iris[1].numpy())
        ours, twin = (net.module_ for net in nets)
        assert (type(ours), type(twin)) == (dp.MLP, nn.Sequential)
        assert_trained_alike(ours, twin, start)

    def test_cross_validation_in_a_pipeline(self, skorch: ModuleType):
        x, y = load_iris(return_X_y=True)
        pipeline = make_pipeline(StandardScaler(), self.net(skorch))
        scores = cross_val_score(pipeline, x.astype("float32"), y, cv=3, error_score="raise")
        assert scores.mean() >= GOOD_ACCURACY

    def test_a_grid_search_finds_the_learning_rate_that_learns(self, skorch: ModuleType, iris: tuple[Tensor, Tensor]):
        """With η = 1e-9 nothing is learned; each point of the grid is an MLP with other sizes and activation."""
        grid = {"lr": [1e-9, 0.1], "module__sizes": [[4, 8, 3], [4, 8, 8, 3]], "module__activation": ["relu", "tanh"]}
        search = GridSearchCV(self.net(skorch, max_epochs=10), grid, cv=2, error_score="raise")
        search.fit(iris[0].float().numpy(), iris[1].numpy())
        assert search.best_params_["lr"] == 0.1
        assert search.best_score_ >= GOOD_ACCURACY
        sizes = search.best_params_["module__sizes"]
        widths = [layer.out_features for layer in search.best_estimator_.module_ if isinstance(layer, dp.Linear)]
        assert widths == sizes[1:]

    def test_a_pickled_net_predicts_and_trains_to_the_same_bits(self, skorch: ModuleType, iris: tuple[Tensor, Tensor]):
        """The momentum is pickled too; otherwise the second fit would differ."""
        x, y = iris[0].float().numpy(), iris[1].numpy()
        net = self.net(skorch, max_epochs=3).fit(x, y)
        loaded = pickle.loads(pickle.dumps(net))
        assert type(loaded.module_) is dp.MLP
        assert (loaded.predict_proba(x) == net.predict_proba(x)).all()
        for each in (net, loaded):
            torch.manual_seed(1)
            each.partial_fit(x, y)
        assert_same_bits(net.module_, loaded.module_)

    def test_a_loss_derived_from_torchs_gives_probabilities_by_default(
        self, skorch: ModuleType, iris: tuple[Tensor, Tensor]
    ):
        """Skorch applies a softmax to outputs for nn.CrossEntropyLoss; for another class it returns them unchanged."""
        x, y = iris[0].float().numpy(), iris[1].numpy()
        for criterion, inferred in ((InferredCrossEntropy, True), (CrossEntropy, False)):
            net = self.net(skorch, criterion=criterion, predict_nonlinearity="auto", max_epochs=1).fit(x, y)
            with torch.no_grad():
                logits = net.module_(torch.from_numpy(x))
            expected = logits.softmax(1) if inferred else logits
            torch.testing.assert_close(torch.from_numpy(net.predict_proba(x)), expected)

    def test_invalid_sizes_raise_a_user_error(self, skorch: ModuleType):
        with pytest.raises(dp.UserError, match="sizes must be two or more positive integers"):
            self.net(skorch, module__sizes=[4]).initialize()


@pytest.fixture
def learner(lightning: ModuleType) -> type:
    """A LightningModule as a user would write it: a network, a loss, an optimizer."""

    class Learner(lightning.LightningModule):
        def __init__(self, net: nn.Module, loss: Callable[..., Tensor] = F.cross_entropy, sgd: type = dp.SGD):
            super().__init__()
            self.net, self.loss, self.sgd = net, loss, sgd

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            loss = self.loss(self(batch[0]), batch[1])
            self.log("loss", loss, on_step=False, on_epoch=True)
            return loss

        def predict_step(self, batch: list[Tensor], index: int) -> Tensor:
            return self(batch[0])

        def configure_optimizers(self) -> Any:
            optimizer = self.sgd(self.parameters(), lr=0.1, momentum=0.9)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)]

    return Learner


@pytest.fixture
def batches(iris: tuple[Tensor, Tensor]) -> torch.utils.data.DataLoader:
    """Iris in batches of 16, the last of 6, in the same order each time."""
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*iris), batch_size=16)


@pytest.fixture
def trainer(lightning: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that makes a Trainer on the CPU without output; files are written below tmp_path."""
    monkeypatch.chdir(tmp_path)

    def make(**options: Any) -> Any:
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        quiet |= {"accelerator": "cpu", "devices": 1, "enable_model_summary": False, "max_epochs": 5}
        return lightning.Trainer(default_root_dir=tmp_path, **{**quiet, **options})

    return make


# Lightning 2.6 uses LeafSpec, which PyTorch 2.13 deprecates.
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")
# On a machine with more than one core Lightning suggests worker processes; for 150 rows they are slower.
@pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers:UserWarning")
# On a machine with a GPU Lightning warns that the CPU is used.
@pytest.mark.filterwarnings("ignore:GPU available but not used:UserWarning")
class TestLightning:
    """A LightningModule with a dp.MLP, trained by Lightning's Trainer."""

    def test_it_learns(self, learner: type, trainer: Callable[..., Any], batches: Any, iris: tuple[Tensor, Tensor]):
        x, y = iris
        net = ours_and_twin()[0]
        before = nn.functional.cross_entropy(net(x), y)
        run = trainer(max_epochs=10)
        run.fit(learner(net), batches)
        after = nn.functional.cross_entropy(net(x), y)
        assert after < before / 2
        assert (net(x).argmax(1) == y).double().mean() >= GOOD_ACCURACY
        assert run.callback_metrics["loss"] < before / 2  # the value passed to self.log

    OPTIONS: ClassVar[list[dict[str, Any]]] = [
        {}, {"gradient_clip_val": 0.5}, {"accumulate_grad_batches": 3}, {"detect_anomaly": True},
    ]  # fmt: skip

    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    def test_the_weights_equal_a_torch_twins(
        self, learner: type, trainer: Callable[..., Any], batches: Any, options: dict[str, Any]
    ):
        """With the same weights and batches; the twin has torch's SGD and loss."""
        ours, twin = ours_and_twin()
        start = state_of(twin)
        trainer(**options).fit(learner(ours), batches)
        trainer(**options).fit(learner(twin, nn.functional.cross_entropy, torch.optim.SGD), batches)
        assert_trained_alike(ours, twin, start)

    def test_manual_optimization_gives_the_same_bits(self, learner: type, trainer: Callable[..., Any], batches: Any):
        class Manual(learner):
            def __init__(self, net: nn.Module):
                super().__init__(net)
                self.automatic_optimization = False

            def training_step(self, batch: list[Tensor], index: int) -> None:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(self.loss(self(batch[0]), batch[1]))
                optimizer.step()

        first = ours_and_twin()[0]
        second, start = copy.deepcopy(first), state_of(first)
        trainer(max_epochs=2).fit(
            learner(first), batches
        )  # η is halved after two epochs, and Manual does not step its schedule
        trainer(max_epochs=2).fit(Manual(second), batches)
        assert not torch.equal(first[0].weight, start["0.weight"])
        assert_same_bits(first, second)

    def test_a_checkpoint_gives_the_same_outputs_in_lightning_and_plain_torch(
        self, lightning: ModuleType, learner: type, trainer: Callable[..., Any], batches: Any, iris: Any, tmp_path: Path
    ):
        x, (ours, twin) = iris[0], ours_and_twin()
        start = state_of(ours)
        saver = lightning.callbacks.ModelCheckpoint(dirpath=tmp_path / "saved")
        trainer(enable_checkpointing=True, callbacks=[saver]).fit(learner(ours), batches)
        empty = dp.MLP([4, 16, 3], "tanh", dtype=torch.float64)
        loaded = learner.load_from_checkpoint(saver.best_model_path, net=empty)
        assert not torch.equal(empty[0].weight, start["0.weight"])
        assert torch.equal(loaded(x), ours(x))
        weights = torch.load(saver.best_model_path, weights_only=True)["state_dict"]
        twin.load_state_dict({key.removeprefix("net."): value for key, value in weights.items()})
        torch.testing.assert_close(twin(x), ours(x), rtol=1e-12, atol=1e-14)

    def test_a_run_resumed_from_a_checkpoint_gives_the_same_bits(
        self, learner: type, trainer: Callable[..., Any], batches: Any, tmp_path: Path
    ):
        """2 epochs and 3 more equal 5: velocities and schedule of dp.SGD are restored too."""
        whole = ours_and_twin()[0]
        parts = [copy.deepcopy(whole), ours_and_twin()[0]]  # the second has other weights until it loads the checkpoint
        trainer(max_epochs=5).fit(learner(whole), batches)
        interrupted = trainer(max_epochs=2)
        interrupted.fit(learner(parts[0]), batches)
        interrupted.save_checkpoint(tmp_path / "two.ckpt")
        resumed = trainer(max_epochs=5)
        resumed.fit(learner(parts[1]), batches, ckpt_path=tmp_path / "two.ckpt")
        assert resumed.global_step == 5 * 10  # 150 rows are 10 batches
        assert_same_bits(whole, parts[1])

    def test_predict_gives_the_nets_own_outputs(
        self, learner: type, trainer: Callable[..., Any], batches: Any, iris: tuple[Tensor, Tensor]
    ):
        """Lightning predicts in inference mode, where an MLP records no graph and uses another code path."""
        ours, twin = ours_and_twin()
        outputs = trainer().predict(learner(ours), batches)
        assert all(output.is_inference() for output in outputs)
        torch.testing.assert_close(torch.cat(outputs), twin(iris[0]).detach(), rtol=1e-12, atol=1e-14)


class TestTorchmetrics:
    """torchmetrics with the outputs of dp.MLP."""

    def test_classification_by_hand(self, torchmetrics: ModuleType):
        """W is the identity and b is 0: the logits are x, their largest [0, 1, 0, 1], against [0, 1, 1, 1]: 3 of 4."""
        net = dp.MLP([2, 2])
        net.load_state_dict({"0.weight": torch.eye(2), "0.bias": torch.zeros(2)})
        x, y = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0], [-2.0, -1.0]]), torch.tensor([0, 1, 1, 1])
        accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=2, average="micro")
        assert accuracy(net(x), y) == 0.75
        confusion = torchmetrics.ConfusionMatrix(task="multiclass", num_classes=2)
        assert confusion(net(x), y).tolist() == [[1, 0], [1, 2]]  # rows: true classes; columns: predictions

    def test_regression_by_hand(self, torchmetrics: ModuleType):
        """From x = [0, 1] come a = 2 x + 1 = [1, 3], against [0, 5]: (1² + 2²) / 2."""
        net = dp.MLP([1, 1])
        net.load_state_dict({"0.weight": torch.tensor([[2.0]]), "0.bias": torch.tensor([1.0])})
        assert torchmetrics.MeanSquaredError()(net(torch.tensor([[0.0], [1.0]])), torch.tensor([[0.0], [5.0]])) == 2.5

    def test_a_collection_over_batches_equals_counting_with_torch(
        self, torchmetrics: ModuleType, iris: tuple[Tensor, Tensor]
    ):
        """Batches of 40, the last of 30; the expected counts come from the twin's outputs."""
        (x, y), (ours, twin) = iris, ours_and_twin()
        metrics = torchmetrics.MetricCollection({
            "accuracy": torchmetrics.Accuracy(task="multiclass", num_classes=3, average="micro"),
            "confusion": torchmetrics.ConfusionMatrix(task="multiclass", num_classes=3),
        })  # fmt: skip
        for rows in torch.arange(150).split(40):
            metrics.update(ours(x[rows]), y[rows])
        result, predicted = metrics.compute(), twin(x).argmax(1)
        counts = torch.zeros(3, 3, dtype=torch.int64)
        for label, other in zip(y, predicted, strict=True):
            counts[label, other] += 1
        assert torch.equal(result["confusion"], counts)
        assert result["accuracy"].item() == pytest.approx((predicted == y).double().mean().item(), rel=1e-6)

    def test_metrics_in_a_training_loop_change_nothing(self, torchmetrics: ModuleType, iris: tuple[Tensor, Tensor]):
        """The outputs passed to the metric require grad; the weights are the bits of a loop without metrics."""
        x, y = iris
        with_metric = ours_and_twin()[0]
        without_metric = copy.deepcopy(with_metric)
        accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=3, average="micro")
        for net in (with_metric, without_metric):
            optimizer = dp.SGD(net.parameters(), lr=0.1, momentum=0.9)
            for _ in range(10):
                right = 0
                accuracy.reset()
                for rows in torch.arange(150).split(40):
                    outputs = net(x[rows])
                    assert outputs.requires_grad
                    if net is with_metric:
                        accuracy(outputs, y[rows])
                    right += (outputs.argmax(1) == y[rows]).sum().item()
                    loss = F.cross_entropy(outputs, y[rows])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                if net is with_metric:
                    value = accuracy.compute()
                    assert not value.requires_grad
                    assert value.item() == pytest.approx(right / 150, rel=1e-6)
        assert value >= 0.8  # chance is a third
        assert_same_bits(with_metric, without_metric)

    def test_a_differentiable_metric_gives_the_gradients_of_the_loss(
        self, torchmetrics: ModuleType, iris: tuple[Tensor, Tensor]
    ):
        """MeanSquaredError of a batch can be differentiated through an MLP, like torch's mse_loss in the twin."""
        x, nets = iris[0], ours_and_twin()
        y = torch.randn(150, 3, dtype=torch.float64)
        metric = torchmetrics.MeanSquaredError().set_dtype(torch.float64)  # by default it rounds to float32
        metric(nets[0](x), y).backward()
        nn.functional.mse_loss(nets[1](x), y).backward()
        for ours, theirs in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-14)


PLAIN = """
import sys
sys.modules["deltaprop"] = None  # from here on, `import deltaprop` is an ImportError

import torch
from safetensors.torch import load_file, save_file
from torch import nn

try:
    import deltaprop
except ImportError:
    pass
else:
    raise SystemExit("deltaprop was imported")

folder, x = sys.argv[1], load_file("inputs.safetensors")["x"]
model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 2))
outputs = {}
for name in ("model", "best"):
    model.load_state_dict(load_file(f"{folder}/{name}.safetensors"))
    with torch.no_grad():
        outputs[name] = model(x)
save_file(outputs, "outputs.safetensors")
held = [name for name, module in sys.modules.items() if name.startswith("deltaprop") and module is not None]
print("held:", *held)
"""


class TestPlainPytorch:
    """The weights of a run can be used without deltaprop."""

    def test_weights_of_a_run_give_the_same_outputs_without_deltaprop(self, tmp_path: Path):
        """In another process, where deltaprop cannot be imported, on the test rows of moons; up to float32 rounding."""
        net = {"hidden": (8, 6), "activation": ("tanh", "gelu")}
        result = train(TrainConfig(data="moons", **net, epochs=5, seed=0, log_every=0, run_dir=tmp_path / "run"))
        test = load("moons", seed=0).test
        save_file({"x": test.x}, tmp_path / "inputs.safetensors")
        plain = subprocess.run(
            [sys.executable, "-c", PLAIN, str(result.folder)], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert plain.returncode == 0, plain.stderr
        assert plain.stdout.split() == ["held:"]
        outputs = load_file(tmp_path / "outputs.safetensors")
        model = dp.MLP([2, *net["hidden"], 2], net["activation"])
        for name, line in (("model", result.metrics), ("best", result.best)):
            model.load_state_dict(load_file(result.folder / f"{name}.safetensors"))
            torch.testing.assert_close(outputs[name], model(test.x).detach(), rtol=1e-5, atol=1e-6)
            accuracy = (outputs[name].argmax(1) == test.y).float().mean().item()
            assert accuracy == pytest.approx(line["test_accuracy"])
