"""A checkpoint saves any model and any optimizer: names, shapes and state come from their own state dicts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close

from deltaprop.training import Result
from deltaprop.training.checkpoint import Checkpoint, encode, load_state_tensors, read_checkpoint, state_tensors


def unusual() -> nn.Sequential:
    """Return a model with named and nested modules, an embedding, a scalar parameter, and buffers."""
    model = nn.Sequential()
    model.add_module("embed", nn.Embedding(10, 4))
    model.add_module("body", nn.Sequential(nn.Flatten(), nn.Linear(12, 6, bias=False), nn.BatchNorm1d(6), nn.PReLU()))
    model.add_module("head", nn.Linear(6, 3))
    model[1].register_parameter("temperature", nn.Parameter(torch.tensor(0.5)))
    return model.double()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """Take one training step on random samples."""
    draw = torch.Generator().manual_seed(seed)
    x, y = torch.randint(10, (8, 3), generator=draw), torch.randint(3, (8,), generator=draw)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x) * model[1].temperature, y)  # type: ignore[index]
    loss.backward()
    optimizer.step()


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "adam": lambda model: torch.optim.Adam(model.parameters(), amsgrad=True),  # a count and three buffers
    "two groups": lambda model: torch.optim.AdamW(
        [{"params": model[2].parameters(), "lr": 0.1}, {"params": [*model[0].parameters(), *model[1].parameters()]}]  # type: ignore[index]
    ),
    "sgd without momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.1),  # its buffers are None
    "rmsprop": lambda model: torch.optim.RMSprop(model.parameters(), momentum=0.9, centered=True),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_any_model_and_optimizer_continue_exactly_from_a_checkpoint(make: Any, tmp_path: Path):
    torch.manual_seed(0)
    model = unusual()
    optimizer = make(model)
    for seed in range(3):
        step(model, optimizer, seed)
    tensors = state_tensors(model, optimizer)
    for (
        name,
        parameter,
    ) in model.named_parameters():  # each is stored under the name of its parameter, whatever the groups
        for key, value in optimizer.state[parameter].items():
            assert value is None or torch.equal(tensors[f"optimizer.{key}.{name}"], value)
    (tmp_path / "c").write_bytes(encode(Checkpoint(tensors, {})))

    restored = unusual()  # other initial weights
    other = make(restored)
    load_state_tensors(read_checkpoint(tmp_path / "c").tensors, restored, other)
    assert_same(restored.state_dict(), model.state_dict())
    for p, q in zip(restored.parameters(), model.parameters(), strict=True):
        expected = {key: value for key, value in optimizer.state[q].items() if value is not None}
        assert_same(other.state[p], expected)
    for seed in range(3, 6):
        step(model, optimizer, seed)
        step(restored, other, seed)
    assert_same(restored.state_dict(), model.state_dict())


def assert_same(actual: Any, expected: dict[str, Tensor]) -> None:
    """Assert that two dicts of tensors are equal bit for bit."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(actual[name], value, rtol=0, atol=0)


def test_restored_state_has_its_own_memory(tmp_path: Path):
    """Memory of the file would have another alignment, which changes how a product is rounded."""
    model = nn.Sequential(nn.Linear(2, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    tensors = {name: value.clone() for name, value in state_tensors(model, optimizer).items()}
    load_state_tensors(tensors, model, optimizer)
    memory = {value.data_ptr() for value in tensors.values()}
    assert not memory & {value.data_ptr() for value in state_tensors(model, optimizer).values()}


def test_state_that_is_not_a_tensor_is_refused():
    model = nn.Sequential(nn.Linear(2, 3))
    optimizer = torch.optim.LBFGS(model.parameters())
    optimizer.step(lambda: model(torch.ones(1, 2)).sum())
    with pytest.raises(TypeError, match=r"optimizer state 'func_evals' of 0\.weight must be a tensor"):
        state_tensors(model, optimizer)


def test_a_checkpoint_has_the_names_of_the_state_dicts(run: Callable[..., Result]):
    names = load_file(run(epochs=1).folder / "checkpoints" / "last.safetensors").keys()
    weights = {"0.weight", "0.bias", "2.weight", "2.bias"}
    kinds = ("model", "best", "optimizer.momentum_buffer")
    assert names == {f"{kind}.{name}" for kind in kinds for name in weights} | {"generator", "total"}


def test_tensors_of_format_1_get_the_current_names(tmp_path: Path):
    """Version 0.1 saved one kind of optimizer state, the momentum."""
    tensors = {"model.0.weight": torch.ones(2), "momentum.0.weight": torch.zeros(2)}
    (tmp_path / "c").write_bytes(encode(Checkpoint(tensors, {"format": 1})))
    assert read_checkpoint(tmp_path / "c").tensors.keys() == {"model.0.weight", "optimizer.momentum_buffer.0.weight"}
