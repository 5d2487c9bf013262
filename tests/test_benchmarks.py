"""The benchmarks compare equal work: every peer takes the same steps."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from benchmarks import clusters, scaling
from benchmarks.__main__ import SIZES, parse
from benchmarks.cost_model import TEN_GIGABIT, WAYS, Cluster, Link, step
from benchmarks.epochs import EPOCHS
from benchmarks.peers import PEERS
from benchmarks.problem import Problem, make_problem
from benchmarks.report import Table, machine, write
from benchmarks.timing import interleave, quartiles

# torch.compile takes a minute, JAX is an optional dependency, not every device supports bf16.
LEFT_OUT = ("torch.compile", "JAX jit", "JAX lax.scan", "the products alone", "explicit .epoch, bf16")
QUICK = [name for name in PEERS if name not in LEFT_OUT]


@pytest.fixture(scope="module")
def problem() -> Problem:
    """A small problem of five batches."""
    return make_problem((12, 8, 4), batch_size=6, batches=5)


@pytest.mark.parametrize("name", QUICK)
def test_peers_end_at_the_same_weights(problem: Problem, name: str):
    """After two passes in float32 the weights agree up to rounding, and have changed."""
    ends = []
    for peer in (PEERS["autograd"], PEERS[name]):
        run, weights = peer(problem)
        run()
        run()
        ends.append(weights())
    for expected, actual, start in zip(*ends, problem.weights, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)
        assert np.abs(actual - start.numpy()).max() > 1e-5


@pytest.mark.parametrize("name", [name for name in EPOCHS if not name.startswith(("JAX", "scikit"))])
def test_epochs_end_at_the_same_weights(problem: Problem, name: str):
    """After two epochs with the same orders; scikit-learn is left out, since it shuffles by itself."""
    ends = []
    for peer in (EPOCHS["torch.nn with a DataLoader"], EPOCHS[name]):
        run, weights = peer(problem)
        run()
        run()
        ends.append(weights())
    for expected, actual in zip(*ends, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stepz"], "table: unknown 'stepz'; there are steps, activations, epochs, memory"),
        (["--sizes", "7-8"], "--sizes: unknown '7-8'; there are 784-30-10/10"),
        (["--peers", "numpy"], "--peers: no name begins with 'numpy'; there are compiled .epoch"),
        (["--threads", "many"], "--threads: 'many' is neither a number of threads nor auto"),
        (["--threads", "0"], "--threads: '0' is neither a number"),
        (["--threads", "1", "steps"], "tables go before the options"),
        (["--rounds", "1"], "--rounds: quartiles need at least 2, got 1"),
    ],
    ids=str,
)
def test_invalid_arguments_are_refused_in_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        parse(words)
    assert end.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_everything_is_measured_by_default():
    arguments = parse([])
    assert (arguments.tables, arguments.sizes) == (["steps", "activations", "epochs", "memory"], list(SIZES))


def test_scikit_learn_trains_one_more_epoch_per_call(problem: Problem):
    run, weights = EPOCHS["scikit-learn MLP"](problem)
    run()
    run()
    assert weights() == []


class TestPage:
    """docs/benchmarks.md has a section per machine, and in it one table per title."""

    @pytest.fixture
    def page(self, tmp_path: Path) -> Path:
        page = tmp_path / "page.md"
        page.write_text("# Benchmarks\n\nHow.\n\n## Another machine, 8 cores\n\n### Old\n\nkept\n")
        return page

    def test_a_new_machine_gets_a_new_section(self, page: Path):
        write([Table("A size", ["", "µs"], [["ours", "1.0"]], ["A note."])], "python -m benchmarks", page)
        text = page.read_text()
        assert text.startswith("# Benchmarks\n\nHow.\n\n## Another machine, 8 cores\n\n### Old\n\nkept\n\n")
        assert f"\n## {machine()}\n\n### A size\n\n|  | µs |\n| --- | ---: |\n| ours | 1.0 |\n\nA note.\n" in text
        assert "`python -m benchmarks`: Python 3" in text

    def test_a_table_replaces_the_one_with_its_title(self, page: Path):
        for value in ("1.0", "2.0"):
            write([Table("A size", ["", "µs"], [["ours", value]])], "python -m benchmarks", page)
            write([Table("Another", ["", "µs"], [["ours", "3.0"]])], "python -m benchmarks", page)
        text = page.read_text()
        assert text.count("### A size") == text.count("### Another") == 1
        assert "| ours | 2.0 |" in text
        assert "| ours | 1.0 |" not in text


def test_every_round_times_every_peer_in_random_order():
    """Each is called twice to warm up; in 40 rounds each is the first at least once."""
    calls: list[str] = []
    figures = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=40, seconds=0)
    assert [len(f) for f in figures.values()] == [40, 40]
    rounds = list(zip(calls[4::2], calls[5::2], strict=True))
    assert set(rounds) == {("a", "b"), ("b", "a")}


def test_quartiles():
    """The quartiles of 1 … 7 are 2, 4 and 6."""
    assert quartiles([7.0, 1.0, 4.0, 2.0, 6.0, 3.0, 5.0]) == (2, 4, 6)


class TestTheModelOfProcesses:
    def test_the_page_has_its_table(self):
        assert clusters.table().markdown().strip() in clusters.PAGE.read_text(encoding="utf-8")

    @pytest.mark.parametrize("way", WAYS)
    def test_one_process_sends_nothing(self, way: str):
        """Its step is the arithmetic, and for what is not fused the update."""
        sizes, cluster = [784, 512, 10], TEN_GIGABIT
        slower = dataclasses.replace(cluster, outer=Link(1.0, 1.0))
        assert step(cluster, sizes, 64, 1, way) == step(slower, sizes, 64, 1, way) > 0

    def test_a_ring_takes_the_time_of_its_rounds(self):
        """Four processes, a megabyte: three rounds of α + B/(4 β), twice for a sum."""
        cluster = Cluster(1e9, 1e9, Link(1e-3, 1e6))
        assert cluster.ring(4, 1e6) == pytest.approx(3 * (1e-3 + 0.25))
        assert cluster.ring(4, 1e6, 2) == pytest.approx(6 * (1e-3 + 0.25))

    def test_hosts_sum_within_themselves_first(self):
        flat = Cluster(1e9, 1e9, Link(1e-3, 1e6))
        hosts = dataclasses.replace(flat, inner=Link(0.0, 1e9), host=8)
        assert hosts.ring(32, 1e6, 2) == pytest.approx(2 * 7 * 1e6 / 8e9 + 2 * 3 * (1e-3 + 1e6 / 8 / 4e6))
        assert hosts.ring(32, 1e6, 2) < flat.ring(32, 1e6, 2)

    def test_messages_are_hidden_behind_the_arithmetic_that_overlaps_them(self):
        together = Cluster(1e9, 1e12, Link(0.0, 1e7))
        apart = dataclasses.replace(together, overlaps=False)
        alone = dataclasses.replace(together, outer=Link(0.0, 1e18))
        times = [step(cluster, [512] * 5, 64, 2, "sums") for cluster in (alone, together, apart)]
        assert times == sorted(times)
        assert times[2] - times[0] == pytest.approx(4 * 512 * 512 * 4 / 1e7, rel=1e-6)
        assert times[1] < times[2]

    def test_bytes_by_theory_are_those_of_the_exchange(self):
        """Two processes, 5-7-3 in batches of 8: half of twice the sums; half of the rows of δ and a_prev."""
        assert scaling.bytes_sent([5, 7, 3], 8, 2, "sums") == 4 * (5 * 7 + 7 * 3 + 7 + 3)
        assert scaling.bytes_sent([5, 7, 3], 8, 2, "factors") == 4 * (4 * (5 + 7 + 7 + 3) + 7 + 3)
