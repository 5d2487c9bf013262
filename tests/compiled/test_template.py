"""The C++ template: short, tagged, without warnings, the same by tiles and by BLAS, and safe in memory."""

from __future__ import annotations

import copy
import functools
import os
import re
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch

import deltaprop as dp
from deltaprop.compiled import find_toolchain, trainer
from deltaprop.compiled.build import FLAGS
from deltaprop.compiled.source import distinct_activations, source_for
from deltaprop.loss_spec import parse_loss
from deltaprop.nn.layers import read_layers
from tests.compiled.shared import SharedTrainer
from tests.explicit.compare import SGD_OPTIONS, assert_same, problem, targets
from tests.explicit.test_cost import Operations

TEMPLATE = resources.files("deltaprop.compiled").joinpath("epoch.cpp").read_text(encoding="utf-8")


def test_it_can_be_read_in_one_sitting():
    lines = TEMPLATE.splitlines()
    assert len(lines) <= 500
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("tag", ["FWD", "BP1", "BP2", "BP3", "BP4", "SGD"])
def test_each_equation_is_tagged_where_it_is_computed(tag: str):
    head = TEMPLATE.index("#include")
    assert re.search(rf";.*// .*{tag}|\{{ *// .*{tag}", TEMPLATE[head:])


def source(dtype: torch.dtype, loss: str = "cross_entropy") -> str:
    layers = read_layers(dp.MLP([784, 30, 10], "sigmoid"))
    return source_for(distinct_activations(layers), parse_loss(loss), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_it_has_no_warnings(dtype: torch.dtype, tmp_path: Path):
    (tmp_path / "epoch.cpp").write_text(source(dtype, "mse_loss"), encoding="utf-8")
    command = [*find_toolchain().compiler, *FLAGS, "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "epoch.cpp"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)


class Twins:
    """The same model, trained in two ways."""

    def __init__(self, sizes: list[int], batch_size: int, rows: int = 50, **sgd: Any) -> None:
        self.model = dp.MLP(sizes, "tanh", dtype=torch.float64)
        self.x, self.y = problem(sizes, rows=rows)
        self.batch_size, self.sgd = batch_size, sgd

    def trained(self, epochs: int = 2) -> tuple[dp.MLP, dp.SGD]:
        model = copy.deepcopy(self.model)
        optimizer = dp.SGD(model.parameters(), **{"lr": 0.1, **self.sgd})
        ours = SharedTrainer(model, "cross_entropy", optimizer)
        for _ in range(epochs):
            ours.epoch(self.x, self.y, self.batch_size)
        return model, optimizer


@pytest.mark.parametrize("options", SGD_OPTIONS, ids=str)
def test_blas_and_tiles_take_the_same_steps(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    """Also where only some of the layers are wide."""
    twins = Twins([17, 33, 9, 3], 8, **options)
    model, optimizer = twins.trained()
    for wide in (0, 8 * 17 * 33):
        monkeypatch.setattr(trainer, "WIDE", wide)
        other, by_blas = twins.trained()
        assert_same(other, model, by_blas, optimizer)


@pytest.mark.parametrize("threads", [2, 5])
@pytest.mark.parametrize("batch_size", [1, 2, 8, 50])
def test_threads_take_the_same_steps_and_always_the_same_bits(
    batch_size: int, threads: int, monkeypatch: pytest.MonkeyPatch
):
    """Also where some of them have nothing to do."""
    twins = Twins([33, 40, 3], batch_size, momentum=0.9)
    model, optimizer = twins.trained()
    monkeypatch.setattr(SharedTrainer, "_threads", lambda self, size: threads)
    shared, again = twins.trained(), twins.trained()
    assert_same(shared[0], model, shared[1], optimizer)
    for p, q in zip(shared[0].parameters(), again[0].parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_an_epoch_is_one_call_whatever_its_steps(momentum: float):
    """No operation of PyTorch's is called between the steps."""
    model = dp.MLP([20, 30, 3], dtype=torch.float64)
    ours = SharedTrainer(model, "cross_entropy", dp.SGD(model.parameters(), lr=0.1, momentum=momentum))
    counts = []
    for steps in (2, 2, 100):
        x, y = problem([20, 30, 3], rows=10 * steps)
        with Operations() as operations:
            ours.epoch(x, y, 10)
        counts.append(len(operations.names))
    assert counts[1] == counts[2] <= 60


SANITIZED = """
from deltaprop.compiled import build
from tests.compiled.test_template import sanitized_cases
build.FLAGS, build.SECONDS = (*build.FLAGS, "-O1"), 600  # a build takes 20 s to two minutes
for case in sanitized_cases():
    case()
print("done")
"""


def sanitized_cases() -> list[Any]:
    """Return epochs with sizes around those of vectors, panels and tiles, and what a loss reads besides targets."""

    def epoch(
        sizes: list[int], batch_size: int, wide: int, threads: int, dtype: torch.dtype, sgd: Any, loss: str = "mse_loss"
    ) -> None:
        trainer.WIDE = wide
        SharedTrainer._threads = lambda self, size: threads  # type: ignore[method-assign]
        model = dp.MLP(sizes, "tanh", dtype=dtype, bias=len(sizes) % 2 == 0)
        options = {}
        if loss == "binary_cross_entropy_with_logits":
            options = {name: torch.rand(sizes[-1], dtype=dtype) for name in ("weight", "pos_weight")}
            model[0].weight.requires_grad_(False)
        function = functools.partial(getattr(dp.functional, loss), **options)
        ours = SharedTrainer(model, function, dp.SGD(model.parameters(), **{"lr": 0.1, **sgd}))
        x, y = torch.rand(23, sizes[0], dtype=dtype), targets(loss, 23, sizes[-1], dtype)
        ours.epoch(x, y, batch_size, order=torch.randint(23, (131,)))
        ours.step(x, y)

    nesterov = {"momentum": 0.9, "nesterov": True}
    kinds = [
        (torch.float64, nesterov, "cross_entropy"),
        (torch.float32, {}, "cross_entropy"),
        (torch.float64, {"momentum": 0.5}, "binary_cross_entropy_with_logits"),
    ]
    return [
        functools.partial(epoch, sizes, batch_size, wide, threads, *kind)
        for sizes in ([5, 3], [7, 16, 2], [33, 17, 31, 8], [9, 65, 10])
        for batch_size in (1, 7, 100)
        for wide, threads in ((2**60, 1), (0, 1), (2**60, 3))
        for kind in kinds
    ]


@pytest.mark.slow
def test_no_memory_is_used_wrongly(tmp_path: Path):
    """Under the sanitizers of addresses and of undefined behaviour, which end the process at the first error."""
    compiler = find_toolchain().compiler
    runtime = subprocess.run([*compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    library = runtime.stdout.strip()
    if not os.path.isabs(library):
        pytest.skip("the compiler has no address sanitizer")
    environment = {
        **os.environ,
        "CXX": " ".join([*compiler, "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-fno-lto"]),
        "XDG_CACHE_HOME": str(tmp_path),
        "LD_PRELOAD": library,
        "ASAN_OPTIONS": "detect_leaks=0",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", SANITIZED]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "done" in done.stdout


MAIN = """
int main() {
    const long n_0 = 784, n_1 = 30, n_2 = 10, size = 10, rows = 200;
    std::vector<real> W1(n_1 * n_0, 0.01), b1(n_1), W2(n_2 * n_1, 0.01), b2(n_2);
    std::vector<real> x(rows * n_0, 0.5), k(rows * n_2), g(rows, 0.1);
    std::vector<int64_t> order(rows);
    std::vector<double> losses(rows / size);
    for (long r = 0; r < rows; r++) order[r] = r, k[r * n_2 + r % n_2] = 1;
    Options sgd = {0.1, 0, 0, 0, 0, 0, 0};
    LayerSpec layers[] = {{n_0, n_1, 0, nullptr, {W1.data(), nullptr, sgd, 1}, {b1.data(), nullptr, sgd, 1}},
                          {n_1, n_2, -1, nullptr, {W2.data(), nullptr, sgd, 1}, {b2.data(), nullptr, sgd, 1}}};
    Batches data = {x.data(), order.data(), k.data(), g.data(), nullptr, nullptr, rows, size, losses.data(), nullptr};
    return train(layers, 2, 0, &data, 1);
}
"""


@pytest.mark.slow
def test_a_step_takes_no_more_instructions_than_it_did(tmp_path: Path):
    """784-30-10, batches of 10: 20 steps, counted by callgrind with AVX2, which it knows, whatever the processor has.

    The products alone are 714 000 multiply-adds a step, 8 to an instruction: 89 000.
    """
    if not shutil.which("valgrind"):
        pytest.skip("no valgrind")
    (tmp_path / "epoch.cpp").write_text(source(torch.float32) + MAIN, encoding="utf-8")
    flags = [flag for flag in FLAGS if flag not in ("-shared", "-fPIC")]
    command = [*find_toolchain().compiler, *flags, "-march=haswell", "-o", "epoch", "epoch.cpp"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
    count = ["valgrind", "--tool=callgrind", "--toggle-collect=train", "--callgrind-out-file=out", "./epoch"]
    said = subprocess.run(count, cwd=tmp_path, check=True, timeout=300, capture_output=True, text=True).stderr
    collected = int(re.search(r"Collected : (\d+)", said)[1])
    assert collected / 20 < 250_000
