"""The precision of products: a switch that is on for the products alone, refused where it would do nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import deltaprop as dp
from deltaprop.explicit import precision
from deltaprop.explicit.precision import PRECISIONS, Switch, check_precision, products_in

CPU = torch.device("cpu")
X, Y = torch.rand(12, 4), torch.randint(3, (12,))


def switch() -> str:
    """Return where PyTorch's switch for the CPU stands."""
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    return str(matmul.fp32_precision)


@pytest.fixture
def any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every device have every precision: what the switch does is another matter than when it is on."""
    monkeypatch.setattr(precision, "_has", lambda *_: True)


def trainer(name: str) -> dp.ExplicitTrainer:
    model = dp.MLP([4, 5, 3])
    return dp.ExplicitTrainer(model, "cross_entropy", dp.SGD(model.parameters(), lr=0.1), precision=name)


class TestSwitch:
    def test_it_is_on_within_and_off_after(self):
        before = switch()
        products = products_in("bf16", CPU)
        for _ in range(2):
            with products:
                assert switch() == "bf16"
            assert switch() == before

    def test_a_setting_for_all_operations_is_followed_afterwards(self):
        backend: Any = torch.backends.mkldnn
        before = backend.fp32_precision
        try:
            for everywhere in ("tf32", "bf16", "tf32"):
                backend.fp32_precision = everywhere
                assert switch() == everywhere
                with products_in("bf16", CPU):
                    pass
        finally:
            backend.fp32_precision = before

    def test_an_error_switches_it_off_too(self):
        before = switch()
        with pytest.raises(KeyError), products_in("tf32", CPU):
            raise KeyError
        assert switch() == before

    def test_float32_leaves_it_as_the_user_has_set_it(self):
        with products_in("bf16", CPU), products_in("float32", CPU):
            assert switch() == "bf16"

    def test_bf16_on_cuda_is_no_switch_but_layers_of_their_own(self):
        assert not isinstance(products_in("bf16", torch.device("cuda")), Switch)
        assert isinstance(products_in("tf32", torch.device("cuda")), Switch)

    @pytest.mark.usefixtures("any_device")
    @pytest.mark.parametrize("name", ["tf32", "bf16"])
    def test_the_products_of_a_step_see_it_and_a_callback_does_not(self, name: str, monkeypatch: pytest.MonkeyPatch):
        during, between = set(), set()
        ours, forward = trainer(name), dp.explicit.layers.Layer.activate

        def activate(layer: Any) -> None:
            during.add(switch())
            forward(layer)

        monkeypatch.setattr(dp.explicit.layers.Layer, "activate", activate)
        before = switch()
        for reads in (True, False):
            ours.epoch(X, Y, 4, on_step=lambda step: between.add(switch()), on_step_reads=reads)
        ours.step(X, Y)
        ours.look(X, Y)
        assert during == {name}
        assert between == {before} == {switch()}


class TestRefusals:
    def test_a_device_without_such_products(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(precision, "_has", lambda *_: False)
        with pytest.raises(dp.UserError, match="precision bf16: the cpu here has no such products; take float32"):
            trainer("bf16")

    def test_a_device_that_nobody_has_tried(self):
        with pytest.raises(dp.UserError, match="precision tf32: the mps here has no such products"):
            check_precision("tf32", torch.device("mps"), torch.float32)

    def test_weights_of_float64(self):
        with pytest.raises(dp.UserError, match=r"bf16 is for weights of float32, got torch.float64"):
            check_precision("bf16", CPU, torch.float64)

    def test_an_unknown_name(self):
        with pytest.raises(dp.UserError, match=r"unknown precision 'bf61': did you mean 'bf16'"):
            trainer("bf61")


@pytest.mark.parametrize("name", PRECISIONS[1:])
def test_a_product_shows_whether_the_device_rounds(name: str, monkeypatch: pytest.MonkeyPatch):
    """Rounding 1 + 2^−b to b bits gives 1; a device that only says so gives what is finer."""
    assert not precision._has(name, CPU) or _rounds(name)

    def rounded(left: Tensor, right: Tensor) -> Tensor:
        return torch.mm(left.bfloat16().float(), right)

    monkeypatch.setattr(Tensor, "__matmul__", rounded)
    assert precision._has(name, CPU)


def _rounds(name: str) -> bool:
    with products_in(name, CPU):
        return bool((torch.full((64, 64), 1 + 2.0**-11) @ torch.eye(64) == 1).all())
