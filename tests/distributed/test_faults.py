"""What happens when a process ends or does not answer, and what is refused."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
import torch

import deltaprop as dp
from deltaprop import UserError
from deltaprop.distributed import LostError, World, join, leave
from tests.distributed.processes import Processes
from tests.explicit.compare import F64, problem

X, Y = problem([5, 7, 3], rows=24)


def trainer_of(world: World | None, **options: Any) -> dp.ExplicitTrainer:
    torch.manual_seed(0)
    model = dp.MLP([5, 7, 3], dtype=F64)
    optimizer = dp.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return dp.ExplicitTrainer(model, "cross_entropy", optimizer, world=world, **options)


@pytest.mark.parametrize("exchange", ["sums", "factors"])
@pytest.mark.parametrize("hangs", [False, True], ids=["ends", "hangs"])
def test_a_failed_exchange_changes_nothing(exchange: str, hangs: bool, processes: Processes):
    """The message says which of the two it is; weights and momentum are those before the step."""

    def work(world: World) -> Any:
        trainer = trainer_of(world, exchange=exchange)
        trainer.step(X, Y)
        before = [t.clone() for t in trainer.model.state_dict().values()]
        if world.rank == 1:
            if hangs:
                time.sleep(3)
            leave()
            return None
        with pytest.raises(LostError) as lost:
            trainer.step(X, Y)
        assert all(map(torch.equal, before, trainer.model.state_dict().values()))
        return str(lost.value)

    said, _ = processes(2, work, seconds=2.0)
    what = "process 1 has not answered for 2 s" if hangs else "another process has ended"
    assert said == f"{what}; process 0 of 2 cannot go on alone"


def test_the_process_that_hangs_is_named_and_one_of_the_others_tells_it(processes: Processes):
    def work(world: World) -> Any:
        trainer = trainer_of(world)
        trainer.step(X, Y)
        if world.rank == 1:
            time.sleep(4)
            return None
        with pytest.raises(LostError) as lost:
            trainer.step(X, Y)
        time.sleep(1)  # as long as the other needs it
        return [str(lost.value), lost.value.is_told]

    told = [said for said in processes(3, work, seconds=2.0) if said is not None]
    assert [text.partition(";")[0] for text, _ in told] == ["process 1 has not answered for 2 s"] * 2
    assert sorted(is_told for _, is_told in told) == [False, True]


@pytest.mark.parametrize("kind", [dp.ExplicitTrainer, dp.CompiledTrainer])
def test_several_processes_without_a_world_are_refused(kind: Any, processes: Processes):
    """Each would train a model of its own, and nobody would notice."""

    def work(world: World) -> str:
        model = dp.MLP([5, 3])
        with pytest.raises(UserError) as refused:
            kind(model, "cross_entropy", dp.SGD(model.parameters(), lr=0.1))
        return str(refused.value)

    for said in processes(2, work):
        assert said.startswith("2 processes are connected, and each would train a model of its own: pass world=")


def test_a_model_for_each_process_is_allowed(processes: Processes):
    def work(world: World) -> float:
        torch.manual_seed(world.rank)
        model = dp.MLP([5, 3], dtype=F64)
        return float(
            dp.ExplicitTrainer(model, "mse_loss", dp.SGD(model.parameters(), lr=0.1), world=World()).step(
                torch.ones(2, 5, dtype=F64), torch.ones(2, 3, dtype=F64)
            )
        )

    first, second = processes(2, work)
    assert first != second


def test_a_wrong_label_in_one_share_is_refused_in_all(processes: Processes):
    """At once, and not after the others have waited for it."""

    def work(world: World) -> str:
        y = Y.clone()
        y[0] = 9  # of process 0
        with pytest.raises(UserError) as refused:
            trainer_of(world).step(X, y)
        return str(refused.value)

    for said in processes(2, work):
        assert said.startswith("labels must be 0 to 2")


@pytest.mark.parametrize("size", ["", "2", "many"])
def test_a_size_without_a_rank_starts_nothing(size: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", size)
    assert join().size == 1


def test_processes_that_cannot_be_connected_are_told(monkeypatch: pytest.MonkeyPatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "many", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LostError, match="cannot be connected"):
        join()


def test_an_unknown_exchange_is_refused():
    with pytest.raises(UserError, match=r"'summs'.*sums"):
        trainer_of(None, exchange="summs")


def test_a_process_alone_needs_no_connection(monkeypatch: pytest.MonkeyPatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert join().size == 1
    assert "MASTER_ADDR" not in os.environ
    assert trainer_of(join()).step(X, Y).isfinite()


def test_work_done_together_may_have_parts_done_together(processes: Processes):
    """What fails in a part, or before it in one process, fails everywhere with the same line, and all go on."""

    def work(world: World) -> list[str]:
        said = []
        for where in ("before", "within", "after"):

            def fail(at: str, where: str = where) -> None:
                if world.rank == 1 and at == where:
                    raise UserError(f"failed {at}")

            def whole(fail: Any = fail) -> None:
                fail("before")
                world.together(lambda: fail("within"))
                fail("after")

            with pytest.raises(UserError) as error:
                world.together(whole)
            said.append(str(error.value))
            said.append(str(world.largest(world.rank)[0]))
        return said

    first, second = processes(2, work)
    assert second == ["failed before", "1.0", "failed within", "1.0", "failed after", "1.0"]
    assert first == [
        "process 1: failed before",
        "1.0",
        "process 1: failed within",
        "1.0",
        "process 1: failed after",
        "1.0",
    ]
