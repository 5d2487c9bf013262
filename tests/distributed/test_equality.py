"""Several processes take the steps of one: the same weights and the same losses, to 1e-10 in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import deltaprop as dp
from deltaprop import functional as F
from deltaprop.core import recursion
from deltaprop.distributed import World
from tests.distributed.processes import Processes
from tests.explicit.compare import F64, SGD_OPTIONS, problem
from tests.explicit.test_losses import CASES, OUTPUTS

ALONE = World()


def train(world: World, loss: Any, sizes: list[int], **options: Any) -> dict[str, Tensor]:
    """Train two epochs; return weights, biases and momentum in one vector, and the mean loss of each epoch."""
    torch.manual_seed(0)
    activation, batch_size = options.pop("activation", "tanh"), options.pop("batch_size", 8)
    exchange, rows, on_step = options.pop("exchange", "auto"), options.pop("rows", 23), options.pop("on_step", None)
    bias, weights = options.pop("bias", True), options.pop("sample_weight", None)
    name = loss.func.__name__ if isinstance(loss, functools.partial) else loss
    x, y = problem(sizes, name, rows=rows)
    if isinstance(loss, functools.partial) and loss.keywords.get("ignore_index") is not None:
        y = y.clone()
        y[3:9] = loss.keywords["ignore_index"]
    model = dp.MLP(sizes, activation, bias=bias, dtype=F64)
    optimizer = dp.SGD(model.parameters(), **{"lr": 0.02, **options})
    trainer = dp.ExplicitTrainer(model, loss, optimizer, world=world, exchange=exchange)
    losses = []
    for epoch in range(2):
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(epoch))
        losses.append(trainer.epoch(x, y, batch_size, order=order, on_step=on_step, sample_weight=weights))
    losses.append(trainer.step(x, y))
    state = [*model.parameters(), *[s["momentum_buffer"] for s in optimizer.state.values() if "momentum_buffer" in s]]
    return {"state": torch.cat([t.detach().flatten() for t in state]), "losses": torch.stack(losses)}


def assert_as_one(processes: Processes, count: int, loss: Any, sizes: list[int], **options: Any) -> None:
    """Assert that so many processes end as one does, all of them with the same bits."""
    alone = train(ALONE, loss, sizes, **options)
    first, *others = processes(count, lambda world: train(world, loss, sizes, **options))
    for name, expected in alone.items():
        torch.testing.assert_close(first[name], expected, rtol=1e-10, atol=1e-12)
        for other in others:
            assert torch.equal(other[name], first[name])


@pytest.mark.parametrize("exchange", ["sums", "factors"])
@pytest.mark.parametrize(("loss", "options"), CASES, ids=str)
def test_every_option_of_every_loss(loss: str, options: dict[str, Any], exchange: str, processes: Processes):
    """23 rows in batches of 8: the last batch has 7, and three processes have 2, 2 and 3 of them."""
    function = functools.partial(getattr(F, loss), **options)
    assert_as_one(processes, 3, function, [5, 7, OUTPUTS], exchange=exchange)


@pytest.mark.parametrize("exchange", ["sums", "factors"])
@pytest.mark.parametrize("options", SGD_OPTIONS, ids=str)
def test_every_option_of_sgd(options: dict[str, Any], exchange: str, processes: Processes):
    assert_as_one(processes, 2, "cross_entropy", [5, 7, 6, 3], exchange=exchange, **options)


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize(("batch_size", "rows"), [(1, 5), (3, 23), (8, 9), (23, 23), (40, 23)])
def test_batches_of_any_size(count: int, batch_size: int, rows: int, processes: Processes):
    """Also with fewer rows than processes."""
    assert_as_one(processes, count, "cross_entropy", [5, 7, 3], batch_size=batch_size, rows=rows)


@pytest.mark.parametrize("activation", ["relu", "softmax", "gelu"])
def test_activations(activation: str, processes: Processes):
    assert_as_one(processes, 2, "mse_loss", [5, 7, 6, 3], activation=activation)


def test_without_biases(processes: Processes):
    assert_as_one(processes, 2, "cross_entropy", [5, 7, 3], bias=False, momentum=0.9)


@pytest.mark.parametrize("loss", ["cross_entropy", "mse_loss"])
def test_weights_of_samples(loss: str, processes: Processes):
    weights = torch.linspace(0.3, 2, 23, dtype=F64)
    assert_as_one(processes, 3, loss, [5, 7, 3], sample_weight=weights)


def test_one_step_at_a_time(processes: Processes):
    assert_as_one(processes, 2, "cross_entropy", [5, 7, 3], on_step=lambda done: None)


def test_a_batch_of_ignored_labels(processes: Processes):
    """Its C is NaN, it counts nothing, and no weight changes."""

    def step(world: World) -> list[Tensor]:
        torch.manual_seed(0)
        model = dp.MLP([5, 3], dtype=F64)
        before = model[0].weight.detach().clone()
        trainer = dp.ExplicitTrainer(model, "cross_entropy", dp.SGD(model.parameters(), lr=0.1), world=world)
        c = trainer.step(torch.rand(4, 5, dtype=F64), torch.full((4,), -100))
        return [c, model[0].weight.detach() - before]

    for c, change in [step(ALONE), *processes(2, step)]:
        assert c.isnan()
        assert not change.any()


def test_auto_exchanges_factors_of_wide_layers_and_sums_of_others(processes: Processes):
    """At 600-500-5 in batches of 8 the factors of the first layer are 8 800 numbers, its sums 300 000."""

    def sent(world: World) -> list[int]:
        import torch.distributed as dist

        counts = []
        with pytest.MonkeyPatch.context() as patch:
            for name, of in (("all_gather", 1), ("all_reduce", 0)):
                call: Callable[..., Any] = getattr(dist, name)

                def counted(*args: Any, call: Callable[..., Any] = call, of: int = of, **options: Any) -> Any:
                    counts.append(args[of].numel())
                    return call(*args, **options)

                patch.setattr(dist, name, counted)
            x, y = problem([600, 500, 5])
            model = dp.MLP([600, 500, 5], dtype=F64)
            dp.ExplicitTrainer(model, "cross_entropy", dp.SGD(model.parameters(), lr=0.1), world=world).step(
                x[:8], y[:8]
            )
        return counts

    for counts in processes(2, sent):
        # b and W of the upper layer and b of the lower in one message, δ and a_prev of half of the rows, and C.
        assert sorted(counts) == sorted([5 + 5 * 500 + 500, 4 * (500 + 600), 1])


@pytest.mark.parametrize("exchange", ["sums", "factors"])
def test_bfloat16_is_sent_where_it_is_asked_for(exchange: str, processes: Processes):
    """All processes have the same parameters then, those of full precision to about 2^-8 of what is added."""

    def work(world: World) -> list[Tensor]:
        found = []
        for dtype in (torch.bfloat16, None):
            torch.manual_seed(0)
            model, (x, y) = dp.MLP([5, 70, 3]), problem([5, 3], rows=9)
            optimizer = dp.SGD(model.parameters(), lr=0.5)
            trainer = dp.ExplicitTrainer(
                model, "cross_entropy", optimizer, world=world, exchange=exchange, exchange_dtype=dtype
            )
            before = nn.utils.parameters_to_vector(model.parameters()).detach()
            for _ in range(2):  # the second finds the memory of the first
                trainer.step(x.float(), y)
            found.append(nn.utils.parameters_to_vector(model.parameters()).detach() - before)
        return found

    (rounded, full), (other, _) = processes(2, work)
    assert torch.equal(rounded, other)
    assert not torch.equal(rounded, full)
    torch.testing.assert_close(rounded, full, rtol=0.02, atol=float(full.abs().max()) / 100)


def test_all_begin_with_the_parameters_of_the_first(processes: Processes):
    def weights(world: World) -> Tensor:
        torch.manual_seed(world.rank)
        model = dp.MLP([5, 3])
        dp.ExplicitTrainer(model, "cross_entropy", dp.SGD(model.parameters(), lr=0.1), world=world)
        return model[0].weight.detach().clone()

    first, second = processes(2, weights)
    assert torch.equal(first, second)


def test_a_layers_exchange_begins_before_the_layers_below_are_computed(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
):
    """That of a weight of 1 MiB or more, here of layers 3, 2 and 1; the rest is sent together at the end, then C."""

    def work(world: World) -> list[str]:
        events = list[str]()

        def noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args, **options: events.append(name) or function(*args, **options)

        monkeypatch.setattr(recursion, "linear_grad_input", noting("BP2", recursion.linear_grad_input))
        monkeypatch.setattr(dist, "all_reduce", noting("sent", dist.all_reduce))
        model = dp.MLP([600, 600, 600, 600, 2])
        trainer = dp.ExplicitTrainer(
            model, "cross_entropy", dp.SGD(model.parameters(), lr=0.1), world=world, exchange="sums"
        )
        events.clear()  # the parameters of process 0 have been sent
        trainer.step(torch.randn(8, 600), torch.zeros(8, dtype=torch.long))
        return events

    assert processes(2, work)[0] == ["BP2", "BP2", "sent", "BP2", "sent", "sent", "sent", "sent"]
