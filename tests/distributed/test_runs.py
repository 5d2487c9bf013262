"""Runs in several processes: the weights, metrics and files of one, and what happens when they are interrupted."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from deltaprop import MLP, UserError
from deltaprop.cli.console import describe
from deltaprop.data import Scaling, Split
from deltaprop.distributed import World
from deltaprop.training import TrainConfig, train
from deltaprop.training import evaluate as evaluate_module
from deltaprop.training.evaluate import evaluate
from deltaprop.training.folds import cross_validate
from deltaprop.training.loop import TrainingError
from deltaprop.training.objective import choose_objective
from deltaprop.training.report.reporter import Reporter
from deltaprop.training.resume import plan_resume, saved_config
from deltaprop.training.run_folder import LAST, load_checkpoint
from deltaprop.training.setup import prepare
from tests.distributed.processes import Processes

# 33 steps an epoch, the last of 8 rows.
CONFIG = TrainConfig(
    data="moons", hidden=(6,), engine="explicit", dtype="float64", epochs=3, batch_size=22, lr=0.05, log_every=0
)
KINDS: dict[str, dict[str, Any]] = {
    "classes": {},
    "two outputs and weights": {"class_weight": "balanced", "lr_schedule": "cosine", "nesterov": True},
    "numbers": {"data": "sine", "lr": 0.02},
    "early stopping": {"epochs": 30, "patience": 2, "lr": 0.5},
    "augmentation": {"data": "digits", "augment": "affine", "epochs": 1, "batch_size": 100},
}


def weights_of(folder: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: x for name, x in line.items() if "second" not in name} for line in lines]


def run(config: TrainConfig, folder: Path, **options: Any) -> None:
    if "resume" not in options:
        config = dataclasses.replace(config, run_dir=folder)
    train(config, **options)


def assert_same_run(folder: Path, expected: Path) -> None:
    for name, of_one in weights_of(expected).items():
        torch.testing.assert_close(weights_of(folder)[name], of_one, rtol=1e-10, atol=1e-12)
    assert metrics_of(folder) == [pytest.approx(line, rel=1e-10, abs=1e-12) for line in metrics_of(expected)]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_metrics_are_those_of_one_process(kind: str, tmp_path: Path, processes: Processes):
    config = dataclasses.replace(CONFIG, **KINDS[kind])
    run(config, tmp_path / "one")
    processes(3, lambda world: run(config, tmp_path / "three"))
    assert_same_run(tmp_path / "three", tmp_path / "one")
    names = [sorted(path.name for path in (tmp_path / name).iterdir() if "tfevents" not in path.name)
             for name in ("one", "three")]  # fmt: skip
    assert names[0] == names[1]


def test_a_table_that_is_read_from_disk(tmp_path: Path, processes: Processes):
    rows = torch.randn(900, 3, generator=torch.Generator().manual_seed(0)).tolist()
    table = tmp_path / "t.csv"
    table.write_text("a,b,c,y\n" + "".join(f"{a},{b},{c},{'yes' if a > b else 'no'}\n" for a, b, c in rows))
    config = dataclasses.replace(CONFIG, data=str(table), target="y", memory="10k", cache=tmp_path / "cache")
    run(config, tmp_path / "one")
    processes(2, lambda world: run(config, tmp_path / "two"))
    assert_same_run(tmp_path / "two", tmp_path / "one")


class Warnings(Reporter):
    """Keeps the warnings of a run."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def warn(self, text: str) -> None:
        self.texts.append(text)


def test_processes_on_one_machine_are_warned_that_threads_are_faster(tmp_path: Path, processes: Processes):
    def work(world: World) -> list[str]:
        warnings = Warnings()
        run(dataclasses.replace(CONFIG, epochs=1), tmp_path / "run", reporter=warnings)
        return warnings.texts

    first, second = processes(2, work)
    assert [text[:52] for text in first] == ["the 2 processes share the cores of one machine: ther"]
    assert second == []
    os.environ["LOCAL_WORLD_SIZE"] = "1"  # as on two machines
    try:
        tmp_path = tmp_path / "other"
        assert processes(2, work) == [[], []]
    finally:
        del os.environ["LOCAL_WORLD_SIZE"]


class Interrupted(Reporter):
    """Sends a signal to one process after some steps."""

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.at = rank, step

    def step(self, epoch: int, steps: int, step: int) -> None:
        if (epoch - 1) * steps + step >= self.at:
            self.at = 10**9
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("afterwards", [1, 2, 3])
def test_a_signal_to_one_process_stops_all_and_any_number_resumes(
    rank: int, afterwards: int, tmp_path: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch
):
    """All stop at one step, in the middle of an epoch. Two processes go on to the same bytes, one or three nearly."""
    processes(2, lambda world: run(CONFIG, tmp_path / "whole"))
    folder = tmp_path / "run"

    def interrupted(world: World) -> int:
        if world.rank == rank:
            from deltaprop.training import loop

            monkeypatch.setattr(loop, "Silent", lambda: Interrupted(rank, 40))
        with pytest.raises(SystemExit) as left:
            run(CONFIG, folder, **({"reporter": Interrupted(rank, 40)} if rank == world.rank == 0 else {}))
        return int(left.value.code or 0)

    assert processes(2, interrupted) == [143, 143]
    assert len(metrics_of(folder)) == 1
    resumed = dataclasses.replace(CONFIG, run_dir=folder)
    processes(afterwards, lambda world: run(resumed, folder, resume=folder))
    if afterwards == 2:
        assert (folder / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert_same_run(folder, tmp_path / "whole")


def refusal(world: World, config: TrainConfig, folder: Path) -> str:
    with pytest.raises((UserError, TrainingError)) as refused:
        run(config, folder)
    return str(refused.value)


def test_the_compiled_engine_is_refused(tmp_path: Path, processes: Processes):
    config = dataclasses.replace(CONFIG, engine="compiled")
    for said in processes(2, lambda world: refusal(world, config, tmp_path / "run")):
        assert said == "`engine='compiled'`: it trains in one process, and there are 2; take `engine='explicit'`"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("engine", "changes", "said"),
    [
        ("explicit", {"parallel": "fsdp"}, "`parallel='fsdp'` is not for `engine='explicit'`"),
        ("autograd", {"exchange": "sums"}, "`exchange='sums'` is not for `engine='autograd'`"),
        ("autograd", {"exchange_dtype": "bfloat16"}, "`exchange_dtype='bfloat16'` is not for `engine='autograd'`"),
    ],
)
def test_a_setting_of_the_other_engine_is_refused(
    engine: Any, changes: dict[str, Any], said: str, tmp_path: Path, processes: Processes
):
    config = dataclasses.replace(CONFIG, engine=engine, **changes)
    other = "autograd" if engine == "explicit" else "explicit"
    for refused in processes(2, lambda world: refusal(world, config, tmp_path / "run")):
        assert refused == f"{said}: leave it out, or take `engine='{other}'`"


@pytest.mark.parametrize("engine", ["explicit", "autograd"])
def test_other_settings_in_one_process_are_refused_in_all(engine: Any, tmp_path: Path, processes: Processes):
    def work(world: World) -> str:
        config = dataclasses.replace(CONFIG, engine=engine, lr=0.5 if world.rank else 0.05, batch_size=8 + world.rank)
        return refusal(world, config, tmp_path / "run")

    for said in processes(2, work):
        assert said == ("process 1 has other settings than process 0: `lr=0.5`, there 0.05, `batch_size=9`, there 8")
    assert not (tmp_path / "run").exists()


def test_a_process_that_does_not_find_the_run_to_resume_is_told(tmp_path: Path, processes: Processes):
    """As where the run folder is on a disk of one machine alone."""
    run(dataclasses.replace(CONFIG, epochs=1), tmp_path / "run")

    def work(world: World) -> str:
        with pytest.raises(UserError) as refused:
            train(CONFIG, resume=None if world.rank else tmp_path / "run")
        return str(refused.value)

    for said in processes(2, work):
        assert said == "process 1 begins a run and process 0 resumes one: they must see the same run folder"


def test_what_a_machine_decides_is_as_process_0_has_it(tmp_path: Path, processes: Processes):
    """The memory for a table, on which the order of an epoch depends, and the number of threads."""
    table = tmp_path / "t.csv"
    table.write_text("a,y\n" + "".join(f"{i * 7 % 97},{i % 2}\n" for i in range(90_000)))
    config = dataclasses.replace(
        CONFIG, data=str(table), target="y", epochs=1, batch_size=3000, cache=tmp_path / "cache"
    )

    def work(world: World) -> list[Any]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("deltaprop.training.processes.default_memory", lambda: 2**20 if world.is_first else 2**30)
            patch.setattr("deltaprop.training.setup.pick_threads", lambda *_: 1 + world.rank)
            run(config, tmp_path / "run")
        return [torch.get_num_threads()]

    processes(2, work)
    resolved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (resolved["memory"], resolved["resolved"]["storage"], resolved["resolved"]["threads"]) == ("auto", "disk", 1)


def test_a_figure_that_differs_in_its_last_bit_parts_no_process(tmp_path: Path, processes: Processes):
    """Early stopping follows from the validation loss, which another machine may round in another way."""
    config = dataclasses.replace(CONFIG, epochs=30, patience=2, lr=0.5)
    run(config, tmp_path / "one")

    def work(world: World) -> None:
        with pytest.MonkeyPatch.context() as patch:
            if not world.is_first:
                patch.setattr(evaluate_module, "evaluate", lambda *args: dataclasses.replace(evaluate(*args), loss=9.0))
            run(config, tmp_path / "two")

    processes(2, work)
    assert_same_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize("engine", ["explicit", "autograd"])
def test_tuned_threads_are_those_of_process_0(engine: Any, tmp_path: Path, processes: Processes):
    config = dataclasses.replace(CONFIG, engine=engine, threads="tune", epochs=1)
    with pytest.MonkeyPatch.context() as patch:  # in a forked process two threads may hang
        patch.setattr("deltaprop.training.setup.physical_cores", lambda: 1)
        processes(2, lambda world: run(config, tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["resolved"]["threads"] == 1


def test_other_data_in_one_process_are_refused_in_all(tmp_path: Path, processes: Processes):
    def work(world: World) -> str:
        table = tmp_path / f"{world.rank}.csv"
        table.write_text("a,y\n" + "".join(f"{i + world.rank},{i % 2}\n" for i in range(60)))
        config = dataclasses.replace(CONFIG, data=str(table), target="y")
        return refusal(world, config, tmp_path / "run").replace(str(table), "t.csv")

    for said in processes(2, work):
        assert said == "process 1 has other data in t.csv than process 0 (by SHA-256)"
    assert not (tmp_path / "run").exists()


def test_what_one_process_cannot_read_all_refuse(tmp_path: Path, processes: Processes):
    def work(world: World) -> str:
        data = "moons" if world.rank == 0 else "nowhere.csv"
        return refusal(world, dataclasses.replace(CONFIG, data=data), tmp_path / "run")

    for said in processes(2, work):
        assert "nowhere.csv" in said
    assert not (tmp_path / "run").exists()


def test_a_taken_folder_is_refused_in_all(tmp_path: Path, processes: Processes):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").touch()
    for said in processes(2, lambda world: refusal(world, CONFIG, tmp_path / "run")):
        assert "the folder is not empty" in said


def test_divergence_ends_all(tmp_path: Path, processes: Processes):
    config = dataclasses.replace(CONFIG, lr=1e38)
    first, second = processes(2, lambda world: refusal(world, config, tmp_path / "run"))
    assert first == second
    assert "not finite" in first


def test_a_cross_validation_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each process would write the same folders."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="`folds=3` is for one process: several train one fold at a time, `fold=1`"):
        cross_validate(dataclasses.replace(CONFIG, folds=3, run_dir=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_another_number_of_processes_may_have_other_threads(tmp_path: Path):
    """Those of the saved run were chosen for its own number; with the same number they stay."""
    folder = tmp_path / "run"
    run(dataclasses.replace(CONFIG, epochs=1), folder)
    checkpoint = load_checkpoint(folder / "checkpoints" / LAST)
    checkpoint.state["threads"], checkpoint.state["resolved"]["processes"] = 4, 2
    saved = saved_config(checkpoint, folder)
    threads = {
        (processes, asked): plan_resume(
            folder, checkpoint, dataclasses.replace(saved, threads=asked), (), processes
        )[0].threads
        for processes, asked in [(2, "auto"), (2, "4"), (1, "auto"), (1, "4"), (1, "3")]
    }  # fmt: skip
    assert [*threads.values()] == ["4", "4", "auto", "auto", "3"]
    with pytest.raises(UserError, match="threads 4 → 3"):
        plan_resume(folder, checkpoint, dataclasses.replace(saved, threads="3"), (), 2)


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_each_process_evaluates_its_share_and_all_have_the_figures_of_one(rows: int, processes: Processes):
    """Also with fewer rows than processes."""
    objective = choose_objective("cross-entropy", "classification", 3, "none")
    torch.manual_seed(0)
    model, part = (
        MLP([4, 5, 3], dtype=torch.float64),
        Split(x=torch.randn(rows, 4, dtype=torch.float64), y=torch.arange(rows) % 3),
    )

    def work(world: World) -> list[Any]:
        seen = list[int]()
        model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
        found = evaluate(model, objective, part, Scaling.identity(1), world=world)
        assert found is not None
        return [seen, found.outputs, torch.tensor([found.loss, found.accuracy])]

    _, outputs, figures = work(World())
    shares = []
    for seen, of_all, same in processes(3, work):
        shares += seen
        torch.testing.assert_close(of_all, outputs, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(same, figures)
    assert sorted(shares) == sorted((r + 1) * rows // 3 - r * rows // 3 for r in range(3))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "the sums of ∂C/∂W of all layers"),
        ({"hidden": (800, 800)}, "δ and a_prev of layer 2, the sums of the others"),
        ({"exchange": "factors", "exchange_dtype": "bfloat16"}, "δ and a_prev of layers 1 and 2, in bfloat16"),
        ({"engine": "autograd", "parallel": "fsdp"}, None),
    ],
)
def test_the_console_says_what_is_sent(changes: dict[str, Any], said: str | None):
    setup = dataclasses.replace(prepare(dataclasses.replace(CONFIG, **changes)), processes=2)
    rows = dict(describe(setup))
    assert rows["device"] == "cpu, 1 thread in each of 2 processes, float64"
    assert rows.get("sent") == said
    if said is None:
        assert rows["engine"] == "autograd: each process has a part of every parameter (FSDP)"
