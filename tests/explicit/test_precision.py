"""The precision of matrix products: set only for the products of a step, and refused if unsupported."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import deltaprop as dp
from deltaprop import functional as F
from deltaprop.core.recursion import Layer
from deltaprop.explicit import precision
from deltaprop.explicit.precision import PRECISIONS, MatmulPrecision, RoundedFactors, check_precision, products_in
from tests.explicit.compare import by_autograd

CPU = torch.device("cpu")
X, Y = torch.rand(12, 4), torch.randint(3, (12,))


def current_precision() -> str:
    """Return PyTorch's current setting for the CPU."""
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    return str(matmul.fp32_precision)


@pytest.fixture
def any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat every precision as supported by every device."""
    monkeypatch.setattr(precision, "_has", lambda *_: True)


def trainer(name: str) -> dp.ExplicitTrainer:
    model = dp.MLP([4, 5, 3])
    return dp.ExplicitTrainer(model, "cross_entropy", dp.SGD(model.parameters(), lr=0.1), precision=name)


class TestMatmulPrecision:
    def test_precision_is_set_within_the_context_only(self):
        before = current_precision()
        products = products_in("bf16", CPU)
        for _ in range(2):
            with products:
                assert current_precision() == "bf16"
            assert current_precision() == before

    def test_a_backend_wide_setting_applies_afterwards(self):
        backend: Any = torch.backends.mkldnn
        before = backend.fp32_precision
        try:
            for everywhere in ("tf32", "bf16", "tf32"):
                backend.fp32_precision = everywhere
                assert current_precision() == everywhere
                with products_in("bf16", CPU):
                    pass
        finally:
            backend.fp32_precision = before

    def test_precision_is_restored_after_an_error(self):
        before = current_precision()
        with pytest.raises(KeyError), products_in("tf32", CPU):
            raise KeyError
        assert current_precision() == before

    def test_float32_keeps_the_users_setting(self):
        with products_in("bf16", CPU), products_in("float32", CPU):
            assert current_precision() == "bf16"

    def test_bf16_on_cuda_rounds_the_factors(self):
        assert isinstance(products_in("bf16", torch.device("cuda")), RoundedFactors)
        assert isinstance(products_in("tf32", torch.device("cuda")), MatmulPrecision)

    @pytest.mark.usefixtures("any_device")
    @pytest.mark.parametrize("name", ["tf32", "bf16"])
    def test_precision_applies_to_products_and_not_to_callbacks(self, name: str, monkeypatch: pytest.MonkeyPatch):
        during, between = [], []
        ours, forward, back = trainer(name), Layer.activate, Layer.apply_activation_grad

        def activate(layer: Layer) -> Tensor:
            during.append(current_precision())
            return forward(layer)

        def apply_activation_grad(layer: Layer, grad_a: Tensor) -> Tensor:
            during.append(current_precision())
            return back(layer, grad_a)

        monkeypatch.setattr(Layer, "activate", activate)
        monkeypatch.setattr(Layer, "apply_activation_grad", apply_activation_grad)
        before = current_precision()
        ours.epoch(X, Y, 4, on_step=lambda step: between.append(current_precision()))
        ours.step(X, Y)
        assert during == [name] * 4 * 4  # three steps and one, two layers each way
        assert between == [before] * 3
        assert current_precision() == before

    @pytest.mark.usefixtures("any_device")
    def test_a_copy_keeps_the_precision(self):
        """A pickled copy too."""
        ours = trainer("bf16")
        assert copy.deepcopy(ours).precision == pickle.loads(pickle.dumps(ours)).precision == "bf16"

    @pytest.mark.usefixtures("any_device")
    def test_precision_is_restored_after_a_refusal_and_an_interrupt(self):
        before, ours = current_precision(), trainer("bf16")
        with pytest.raises(dp.UserError):
            ours.step(X, Y + 5)
        assert current_precision() == before

        def interrupt(step: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ours.epoch(X, Y, 4, on_step=interrupt)
        assert current_precision() == before


class TestRefusals:
    def test_an_unsupported_device(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(precision, "_has", lambda *_: False)
        with pytest.raises(dp.UserError, match="`precision='bf16'`: the cpu here does not support it; use float32"):
            trainer("bf16")

    def test_an_untested_device(self):
        with pytest.raises(dp.UserError, match="`precision='tf32'`: the mps here does not support it"):
            check_precision("tf32", torch.device("mps"), torch.float32)

    def test_weights_of_float64(self):
        with pytest.raises(dp.UserError, match=r"`precision='bf16'` is for weights of float32, got torch\.float64"):
            check_precision("bf16", CPU, torch.float64)

    def test_an_unknown_name(self):
        with pytest.raises(dp.UserError, match=r"unknown precision 'bf61': did you mean 'bf16'"):
            trainer("bf61")


@pytest.mark.parametrize("name", PRECISIONS[1:])
def test_a_product_shows_whether_the_device_rounds(name: str, monkeypatch: pytest.MonkeyPatch):
    """Rounding 1 + 2^−b to b bits gives 1; a device that ignores the setting gives the finer number."""
    assert not precision._has(name, CPU) or _rounds(name)

    def rounded(left: Tensor, right: Tensor) -> Tensor:
        return torch.mm(left.bfloat16().float(), right)

    monkeypatch.setattr(Tensor, "__matmul__", rounded)
    assert precision._has(name, CPU)


def rounded(t: Tensor) -> Tensor:
    """Return numbers rounded to the eight bits of bf16."""
    return t.to(torch.bfloat16).to(t.dtype)


@pytest.fixture
def cpu_as_cuda(any_device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the CPU in place of CUDA: factors are rounded in the same way, and sums are float32 on both."""
    monkeypatch.setattr(precision, "ROUNDED", {"cpu", "cuda"})


@pytest.mark.usefixtures("cpu_as_cuda")
class TestRoundedFactors:
    """bf16 on CUDA: which numbers are rounded, and which are not."""

    @pytest.mark.parametrize("call", ["step", "epoch"])
    @pytest.mark.parametrize("momentum", [0.0, 0.9])
    def test_only_the_factors_are_rounded(self, call: str, momentum: float):
        """One step of a 3-4-2 net on five samples, with every factor rounded by hand."""
        model = dp.MLP([3, 4, 2], "tanh")
        w1, b1, w2, b2 = (p.detach().clone() for p in model.parameters())
        x, y = torch.randn(5, 3), torch.randn(5, 2)
        sgd = dp.SGD(model.parameters(), lr=0.5, momentum=momentum)
        ours = dp.ExplicitTrainer(model, "quadratic_loss", sgd, precision="bf16")
        ours.step(x, y) if call == "step" else ours.epoch(x, y, 5)
        a1 = torch.tanh(rounded(x) @ rounded(w1).T + b1)
        delta2 = (rounded(a1) @ rounded(w2).T + b2 - y) / 5
        delta1 = (rounded(delta2) @ rounded(w2)) * (1 - a1**2)
        expected = [
            w1 - 0.5 * rounded(delta1).T @ rounded(x),
            b1 - 0.5 * delta1.sum(0),
            w2 - 0.5 * rounded(delta2).T @ rounded(a1),
            b2 - 0.5 * delta2.sum(0),
        ]
        for p, should_be in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(p.detach(), should_be, rtol=1e-6, atol=1e-6)

    def test_steps_too_small_for_a_bf16_weight_accumulate(self):
        """W = 1 is changed by 100 steps of 10⁻⁴; the next bf16 number below 1 is 2⁻⁸ away."""
        model = dp.MLP([1, 1])
        with torch.no_grad():
            model[0].weight.fill_(1)
            model[0].bias.fill_(0)
        ours = dp.ExplicitTrainer(model, "l1_loss", dp.SGD(model.parameters(), lr=1e-4), precision="bf16")
        for _ in range(100):
            ours.step(torch.ones(1, 1), torch.full((1, 1), -10.0))
        assert model[0].weight.item() == pytest.approx(0.99, abs=1e-5)

    @pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}], ids=str)
    @pytest.mark.parametrize("bias", [True, False])
    def test_bf16_trains_like_float32(self, device: str, options: dict[str, Any], bias: bool):
        """Up to eight bits: after a few steps the weights differ by about a percent of their change."""
        model = dp.MLP([20, 30, 10], "sigmoid", bias=bias).to(device)
        start = [p.detach().clone() for p in model.parameters()]
        twin = copy.deepcopy(model)
        x, y = torch.randn(64, 20, device=device), torch.randint(10, (64,), device=device)
        sgd = dp.SGD(model.parameters(), lr=0.5, **options)
        ours = dp.ExplicitTrainer(model, "cross_entropy", sgd, precision="bf16")
        for _ in range(2):
            mean = float(ours.epoch(x, y, 16))
        tape = dp.SGD(twin.parameters(), lr=0.5, **options)
        for _ in range(2):
            expected = by_autograd(twin, F.cross_entropy, tape, x, y, 16)
        assert mean == pytest.approx(expected, rel=1e-2)
        for p, q, before in zip(model.parameters(), twin.parameters(), start, strict=True):
            assert p.dtype == torch.float32
            assert (p - q).norm() <= 0.03 * (q - before).norm()
            assert not torch.equal(p, q)  # the factors were rounded

    def test_rounding_ends_with_the_step(self):
        ours = trainer("bf16")
        seen: list[Tensor] = []
        fine = torch.full((4, 4), 1 + 2.0**-12)
        ours.epoch(X, Y, 4, on_step=lambda step: seen.append(fine @ torch.eye(4)))
        assert len(seen) == 3
        assert all(torch.equal(product, fine) for product in seen)


def _rounds(name: str) -> bool:
    with products_in(name, CPU):
        return bool((torch.full((64, 64), 1 + 2.0**-11) @ torch.eye(64) == 1).all())
