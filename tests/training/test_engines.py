"""All engines train a run alike: the same metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaprop import MLP, SGD, UserError
from deltaprop.epoch_state import EpochState
from deltaprop.explicit import precision
from deltaprop.training import Result, TrainConfig, evaluate, loop
from deltaprop.training.engines import ENGINES
from deltaprop.training.objective import choose_objective
from deltaprop.training.setup import make_optimizer, prepare
from tests.training.conftest import without_times

Run = Callable[..., Result]


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "cross-entropy", "activation": ("relu",)},
        {"loss": "binary-cross-entropy", "activation": ("tanh",), "momentum": 0.0},
        {"loss": "quadratic", "activation": ("sigmoid",), "output_activation": "sigmoid", "nesterov": True},
        {"loss": "mse", "activation": ("gelu",), "weight_decay": 0.01, "lr_schedule": "cosine"},
        {"data": "sine", "loss": "mse", "decay_biases": True, "weight_decay": 0.01},
        {"data": "sine", "loss": "huber", "lr_schedule": "step", "lr_step": 1},
        {"data": "sine", "loss": "l1", "hidden": (), "activation": ("relu",)},
    ],
    ids=str,
)
@pytest.mark.usefixtures("compiler")
def test_a_run_has_the_same_metrics_with_each_engine(run: Run, settings: dict[str, Any]):
    """In float64, over three epochs whose last batch is smaller; regression metrics are in target units."""
    lines = [without_times(run(engine=engine, dtype="float64", **settings)) for engine in ENGINES]
    for first, *others in zip(*lines, strict=True):
        for other in others:
            assert first == pytest.approx(other, rel=1e-9)


def test_the_same_seed_gives_the_same_bytes(run: Run):
    first, second = (run(engine="explicit") for _ in range(2))
    assert (first.folder / "model.safetensors").read_bytes() == (second.folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("data", ["moons", "sine"])
def test_an_epoch_with_pauses_gives_the_same_bits(engine: str, data: str):
    """The same bits of weights, momentum and summed loss, wherever it pauses."""

    def trained(pauses: bool) -> tuple[EpochState, list[torch.Tensor]]:
        setup = prepare(TrainConfig(data=data, hidden=(8,), batch_size=16))
        optimizer = make_optimizer(setup.model, setup.config)
        train_epoch = ENGINES[engine](setup.model, setup.objective, optimizer).train
        x = setup.dataset.train.x
        y = setup.objective.targets(setup.dataset.train.y, x.dtype)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        progress = EpochState(x.new_zeros(()), pause=lambda done: pauses)
        steps = -(-len(x) // 16)
        calls = 0
        while progress.done < steps:
            train_epoch(x, y, order, 16, progress)
            calls += 1
        assert (calls > 1) == pauses
        buffers = [optimizer.state[p]["momentum_buffer"] for p in setup.model.parameters()]
        return progress, [progress.total, *setup.model.parameters(), *buffers]

    for whole, parts in zip(trained(False)[1], trained(True)[1], strict=True):
        assert torch.equal(whole, parts)


def test_logging_changes_no_bit(run: Run):
    first, second = (run(engine="explicit", epochs=2, log_every=log_every) for log_every in (0, 1))
    assert (first.folder / "model.safetensors").read_bytes() == (second.folder / "model.safetensors").read_bytes()


class TestPrecision:
    def test_an_unsupported_precision_is_refused_and_nothing_is_written(
        self, run: Run, tmp_path: Path, monkeypatch: Any
    ):
        monkeypatch.setattr(precision, "_has", lambda *_: False)
        with pytest.raises(UserError, match="`precision='bf16'`: the cpu here does not support it"):
            run(precision="bf16", run_dir=tmp_path / "run")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("engine", ["autograd", "explicit"])
    def test_precision_applies_to_training_and_not_to_evaluation(self, run: Run, engine: str, monkeypatch: Any):
        monkeypatch.setattr(precision, "_has", lambda *_: True)
        seen: dict[str, set[str]] = {"training": set(), "evaluation": set()}
        matmul: Any = torch.backends.mkldnn.matmul
        real_log_softmax, real_evaluate = torch.log_softmax, evaluate.evaluate

        def log_softmax(*args: Any, **kwargs: Any) -> Any:
            seen[phase].add(matmul.fp32_precision)
            return real_log_softmax(*args, **kwargs)

        def evaluate_and_mark(*args: Any, **kwargs: Any) -> Any:
            nonlocal phase
            phase = "evaluation"
            result = real_evaluate(*args, **kwargs)
            phase = "training"
            return result

        phase, before = "training", matmul.fp32_precision
        monkeypatch.setattr(torch, "log_softmax", log_softmax)
        monkeypatch.setattr(evaluate, "evaluate", evaluate_and_mark)
        for after_training in ("health_note", "save_validation_outputs"):  # forward passes of their own
            monkeypatch.setattr(loop, after_training, lambda *_: None)
        run(engine=engine, precision="bf16", log_every=0)
        assert seen == {"training": {"bf16"}, "evaluation": {before}}

    def test_precision_excludes_the_update_and_callbacks_with_autograd(self, monkeypatch: Any):
        monkeypatch.setattr(precision, "_has", lambda *_: True)
        matmul: Any = torch.backends.mkldnn.matmul
        seen, before = [], matmul.fp32_precision
        model = MLP([4, 3], dtype=torch.float32)
        optimizer = SGD(model.parameters(), lr=0.1)
        optimizer.register_step_pre_hook(lambda *_: seen.append(matmul.fp32_precision))
        objective = choose_objective("cross-entropy", "classification", 3, "none")
        engine = ENGINES["autograd"](model, objective, optimizer, "bf16")
        x, y, order = torch.rand(6, 4), torch.arange(6) % 3, torch.arange(6)
        state = EpochState(x.new_zeros(()), pause=lambda step: seen.append(matmul.fp32_precision))
        engine.train(x, y, order, 3, state)
        assert seen == [before] * 4

    @pytest.mark.cuda
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    @pytest.mark.parametrize("engine", ["autograd", "explicit"])
    def test_bf16_on_cuda_learns(self, run: Run, engine: str):
        plain, rounded = (run(engine=engine, precision=name, device="cuda") for name in ("float32", "bf16"))
        bf16, float32 = (without_times(result)[-1] for result in (rounded, plain))
        assert bf16["test_accuracy"] == pytest.approx(float32["test_accuracy"], abs=0.03)
