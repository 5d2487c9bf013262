"""The autograd engine in several processes: DDP and FSDP2 over the hand-written Functions take the steps of one."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import deltaprop as dp
from deltaprop import functional as F
from deltaprop.distributed import LostError, World, leave, own, replicate, shard_parameters
from deltaprop.epoch_state import EpochState
from deltaprop.training.engines import train_epoch
from tests.distributed.processes import Processes
from tests.distributed.test_runs import CONFIG, Interrupted, assert_same_run, metrics_of, run
from tests.explicit.compare import F64, SGD_OPTIONS, problem

ALONE = World()


@pytest.fixture(autouse=True, scope="module")
def imported() -> None:
    """Import here what the forked processes would each import."""
    for name in ("torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor"):
        importlib.import_module(name)


PARALLEL = ["ddp", "fsdp"]
LOSSES = {
    "cross_entropy": F.cross_entropy,
    "class weights, targets one-hot": lambda a, y: F.cross_entropy(
        a, nn.functional.one_hot(y, 3).to(a.dtype), weight=torch.tensor([0.3, 1, 2], dtype=F64)
    ),
    "mse_loss": F.mse_loss,
    "huber_loss": F.huber_loss,
    "binary_cross_entropy_per_sample": F.binary_cross_entropy_per_sample,
}


def train(world: World, parallel: str, loss: str = "cross_entropy", **options: Any) -> dict[str, Tensor]:
    """Train two epochs; return weights, biases and momentum in one vector, and the mean loss of each epoch."""
    torch.manual_seed(0)
    sizes, batch_size, rows = [5, 7, 6, 3], options.pop("batch_size", 8), options.pop("rows", 23)
    x, y = problem(sizes, "cross_entropy" if "class" in loss else loss, rows=rows)
    model = dp.MLP(sizes, "tanh", dtype=F64)
    network: nn.Module = model
    if world.size > 1 and parallel == "fsdp":
        shard_parameters(model)
    elif world.size > 1:
        network = replicate(model)
    optimizer = dp.SGD(model.parameters(), **{"lr": 0.02, **options})
    losses = []
    for epoch in range(2):
        order, state = torch.randperm(rows, generator=torch.Generator().manual_seed(epoch)), EpochState(x.new_zeros(()))
        train_epoch(network, LOSSES[loss], optimizer, x, y, order, batch_size, state=state, world=world)
        losses.append(world.sum(state.total) / rows)
    buffers = [s["momentum_buffer"] for s in optimizer.state.values() if "momentum_buffer" in s]
    state_tensors = [t.full_tensor() if hasattr(t, "full_tensor") else t for t in [*model.parameters(), *buffers]]
    return {"state": torch.cat([t.detach().flatten() for t in state_tensors]), "losses": torch.stack(losses)}


def assert_as_one(processes: Processes, count: int, parallel: str, **options: Any) -> None:
    alone = train(ALONE, parallel, **options)
    first, *others = processes(count, lambda world: train(world, parallel, **options))
    for name, expected in alone.items():
        torch.testing.assert_close(first[name], expected, rtol=1e-10, atol=1e-12)
        for other in others:
            assert torch.equal(other[name], first[name])


@pytest.mark.parametrize("parallel", PARALLEL)
@pytest.mark.parametrize("loss", LOSSES)
def test_losses(loss: str, parallel: str, processes: Processes):
    """23 rows in batches of 8: the last batch has 7, and three processes have 2, 2 and 3 of them."""
    assert_as_one(processes, 3, parallel, loss=loss)


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
@pytest.mark.parametrize("options", SGD_OPTIONS, ids=str)
def test_every_option_of_sgd(options: dict[str, Any], parallel: str, processes: Processes):
    assert_as_one(processes, 2, parallel, **options)


@pytest.mark.parametrize("parallel", PARALLEL)
@pytest.mark.parametrize(("batch_size", "rows"), [(1, 5), (8, 9), (13, 13)])
def test_batches_of_any_size(batch_size: int, rows: int, parallel: str, processes: Processes):
    """Also with fewer rows than processes."""
    assert_as_one(processes, 4, parallel, batch_size=batch_size, rows=rows)


@pytest.mark.parametrize("parallel", PARALLEL)
def test_a_run_has_the_weights_metrics_and_files_of_one_process(parallel: str, tmp_path: Path, processes: Processes):
    config = dataclasses.replace(CONFIG, engine="autograd", parallel=parallel, log_every=1 if parallel == "fsdp" else 0)
    run(config, tmp_path / "one")
    processes(3, lambda world: run(config, tmp_path / "three"))
    assert_same_run(tmp_path / "three", tmp_path / "one")
    names = [sorted(path.name for path in (tmp_path / name).iterdir() if "tfevents" not in path.name)
             for name in ("one", "three")]  # fmt: skip
    assert names[0] == names[1]


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
@pytest.mark.parametrize("afterwards", [1, 3])
def test_a_run_that_is_stopped_goes_on_to_the_same_bytes_and_in_one_process(
    afterwards: int, parallel: str, tmp_path: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch
):
    """Three processes: there the order of a sum's terms could depend on how gradients are put together."""
    config = dataclasses.replace(CONFIG, engine="autograd", parallel=parallel)
    processes(3, lambda world: run(config, tmp_path / "whole"))
    folder = tmp_path / "run"

    def interrupted(world: World) -> int:
        if world.rank == 1:
            from deltaprop.training import loop

            monkeypatch.setattr(loop, "Silent", lambda: Interrupted(1, 40))
        with pytest.raises(SystemExit) as left:
            run(config, folder)
        return int(left.value.code or 0)

    assert processes(3, interrupted) == [143, 143, 143]
    assert len(metrics_of(folder)) == 1
    resumed = dataclasses.replace(config, run_dir=folder)
    processes(afterwards, lambda world: run(resumed, folder, resume=folder))
    if afterwards == 3:
        assert (folder / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert_same_run(folder, tmp_path / "whole")


def test_large_gradients_are_summed_in_the_same_order_after_a_restart(processes: Processes):
    """DDP by itself puts them together anew after its first backward pass, in a run and again in a resumed one."""

    def work(world: World) -> list[Tensor]:
        torch.manual_seed(0)
        x, y, order, found = torch.randn(32, 300), torch.randint(10, (32,)), torch.arange(32), []
        for is_resumed in (False, True):
            torch.manual_seed(0)
            model = dp.MLP([300, 900, 400, 10])
            optimizer, state = dp.SGD(model.parameters(), lr=0.1), EpochState(torch.zeros(()))
            if is_resumed:
                state.pause = lambda done: done == 2
                train_epoch(replicate(model), F.cross_entropy, optimizer, x, y, order, 8, state=state, world=world)
                state.pause = None
            train_epoch(replicate(model), F.cross_entropy, optimizer, x, y, order, 8, state=state, world=world)
            found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        return found

    whole, resumed = processes(3, work)[0]
    assert torch.equal(whole, resumed)


def test_gradients_are_sent_while_the_layers_below_are_differentiated(processes: Processes):
    def work(world: World) -> list[str]:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

        torch.manual_seed(0)
        model, events = dp.MLP([4, 600, 600, 2]), list[str]()
        network = replicate(model)

        network.register_comm_hook(None, lambda group, bucket: events.append("sent") or allreduce_hook(group, bucket))
        for number, layer in enumerate(layer for layer in model if isinstance(layer, nn.Linear)):
            layer.register_full_backward_pre_hook(lambda *_, n=number: events.append(f"layer {n + 1}"))
        F.cross_entropy(network(torch.randn(8, 4, requires_grad=True)), torch.zeros(8, dtype=torch.long)).backward()
        return events

    events = processes(2, work)[0]
    assert events.index("sent") < events.index("layer 1")
    assert events[-1] == "sent"


@pytest.mark.parametrize("parallel", PARALLEL)
def test_a_process_that_ends_leaves_the_parameters_of_the_others_as_they_were(parallel: str, processes: Processes):
    def work(world: World) -> Any:
        torch.manual_seed(0)
        model = dp.MLP([5, 7, 3], dtype=F64)
        if parallel == "fsdp":
            shard_parameters(model)
        network = replicate(model) if parallel == "ddp" else model
        optimizer = dp.SGD(model.parameters(), lr=0.1)
        x, y, order = *problem([5, 7, 3], rows=8), torch.arange(8)
        train_epoch(network, F.cross_entropy, optimizer, x, y, order, 8, world=world)
        before = [own(t).clone() for t in model.state_dict().values()]
        if world.rank == 1:
            leave()
            return None
        with pytest.raises(LostError) as lost:
            train_epoch(network, F.cross_entropy, optimizer, x, y, order, 8, world=world)
        if parallel == "ddp":  # the parameters of FSDP are those of a forward pass that was broken off
            assert all(map(torch.equal, before, map(own, model.state_dict().values())))
        return str(lost.value)

    said, _ = processes(2, work, seconds=3.0)
    assert said == "another process has ended; process 0 of 2 cannot go on alone"


def test_an_error_of_the_model_is_told_as_it_is(processes: Processes):
    def work(world: World) -> str:
        model = dp.MLP([5, 3], dtype=F64)
        optimizer = dp.SGD(model.parameters(), lr=0.1)
        x, y, order = *problem([5, 3], rows=8), torch.arange(8)
        with pytest.raises((RuntimeError, IndexError)) as error:
            train_epoch(replicate(model), F.cross_entropy, optimizer, x, y + 7, order, 8, world=world)
        return type(error.value).__name__

    assert "LostError" not in processes(2, work)


# --- with loops of one's own ---


def test_ddp_with_ignored_labels_by_the_denominator_of_all(processes: Processes):
    """As docs/distributed.md has it; a mean in each process would be wrong."""
    x, y = problem([5, 3], rows=9)
    y[:4] = -100

    def work(world: World, *, is_right: bool = True) -> Tensor:
        torch.manual_seed(0)
        model = dp.MLP([5, 3], dtype=F64)
        network, rows = (DistributedDataParallel(model) if world.size > 1 else model), world.share(9)
        if is_right:
            count = world.sum((y[rows] != -100).sum())
            loss = F.cross_entropy(network(x[rows]), y[rows], reduction="sum") * world.size / count
        else:
            loss = F.cross_entropy(network(x[rows]), y[rows])
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    alone = work(ALONE, is_right=False)
    torch.testing.assert_close(processes(2, work)[0], alone, rtol=1e-10, atol=1e-12)
    wrong = processes(2, lambda world: work(world, is_right=False))[0]
    assert float((wrong - alone).norm() / alone.norm()) > 0.3 or bool(wrong.isnan().any())


def by_hand(model: nn.Module, network: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Return the parameters after three steps of an ordinary loop."""
    optimizer = dp.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    for _ in range(3):
        loss = F.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    state = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return torch.cat([p.detach().flatten() for p in state])


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "gelu"])
def test_tensor_parallelism_by_columns_and_rows(activation: str, processes: Processes):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    def work(world: World) -> Tensor:
        torch.manual_seed(0)
        model, (x, y) = dp.MLP([5, 8, 6, 3], activation, dtype=F64), problem([5, 3], rows=9)
        if world.size > 1:
            mesh = init_device_mesh("cpu", (world.size,))
            parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
        return by_hand(model, model, x, y)

    for found in processes(2, work):
        torch.testing.assert_close(found, work(ALONE), rtol=1e-10, atol=1e-12)


def test_a_pipeline_of_two_slices(processes: Processes):
    from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

    sizes = [5, 8, 6, 3]

    def work(world: World) -> Tensor:
        torch.manual_seed(0)
        model, (x, y) = dp.MLP(sizes, "tanh", dtype=F64), problem([5, 3], rows=12)
        part = model[:2] if world.rank == 0 else model[2:]
        schedule = ScheduleGPipe(PipelineStage(part, world.rank, 2, torch.device("cpu")), 3, loss_fn=F.cross_entropy)
        optimizer = dp.SGD(part.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            if world.rank == 0:
                schedule.step(x)
            else:
                schedule.step(target=y, losses=[])
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in part.parameters()])

    torch.manual_seed(0)
    model = dp.MLP(sizes, "tanh", dtype=F64)
    alone = by_hand(model, model, *problem([5, 3], rows=12))
    torch.testing.assert_close(torch.cat(processes(2, work)), alone, rtol=1e-10, atol=1e-12)
