"""The figures of docs/reliability.md: ``python -m tests.training.faults``. Takes some minutes; stops at a failure."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import torch

from deltaprop.training import train
from deltaprop.training.run_folder import LAST, load_checkpoint
from tests.training.faults import test_damage, test_kills, test_power
from tests.training.faults.shim import Shim, TrainConfig, small


def main() -> None:
    """Print a line for each kind of fault, with their number."""
    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp())
    for engine in test_kills.ENGINES:
        train(small(root / f"warm-{engine}", engine=engine))
    for engine in test_kills.ENGINES:
        count = test_kills.kill_at_each(_new(root), engine, 1)
        print(f"kill -9 at every write, fsync and rename, {engine}: {count} of {count} resumed to the same bits")
    kills, runs = test_kills.random_kills(_new(root), 200)
    print(f"kill -9 at random moments: {kills} kills, {runs} of {runs} runs ended with the same bits")
    failures = valid = 0
    log = _record_run(root / "power" / "run")
    for number, disk in test_power.power_failures(log):
        content = disk.after_power_failure().get(str(root / "power" / "run" / "checkpoints" / LAST))
        failures += 1
        if content is None:
            assert not test_power.is_checkpoint_saved(root / "power" / "run", log[:number])
            continue
        (root / "c").write_bytes(content)
        load_checkpoint(root / "c")
        valid += 1
    print(
        f"power failures: {failures}, {valid} of them after the first checkpoint: {valid} of {valid} left a valid one"
    )
    good = (root / "power" / "run" / "checkpoints" / LAST).read_bytes()
    loaded = sum(test_damage.loads(good[:length], root / "c") for length in range(len(good)))
    print(f"truncated at each of {len(good)} lengths: {loaded} loaded")
    rng = random.Random(0)
    flipped = test_damage.flips(good, root / "c", [rng.randrange(8 * len(good)) for _ in range(3000)])
    print(f"single-bit flips: 3000, {len(flipped)} loaded")


def _new(root: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=root))


def _record_run(folder: Path) -> test_power.Log:
    """Return all disk operations of a run that saves after every step."""
    folder.parent.mkdir()
    log: test_power.Log = []
    TrainConfig.save_seconds = property(lambda self: 0.0)  # type: ignore[assignment]
    shim = Shim(folder, log=lambda operation, arguments: log.append((operation, arguments)))
    shim.install()
    train(small(folder, batch_size=128))
    shim.remove()
    return log


if __name__ == "__main__":
    main()
