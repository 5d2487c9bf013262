"""What the processes of a run do together before it begins, or goes on."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from deltaprop.data.store import default_memory
from deltaprop.distributed import World
from deltaprop.errors import UserError, setting
from deltaprop.training.checkpoint import Checkpoint, encode, load_checkpoint
from deltaprop.training.config import TrainConfig
from deltaprop.training.devices import set_threads
from deltaprop.training.report.reporter import Reporter
from deltaprop.training.run_folder import FollowedFolder, RunFolder
from deltaprop.training.setup import Setup, prepare
from deltaprop.training.signals import Stop

# Settings that may differ between processes.
OWN_SETTINGS = {"data", "test", "run_dir", "config", "cache", "timeout", "device"}


@dataclass(frozen=True)
class Together:
    """What the processes of a run begin with.

    Attributes:
        world: The processes.
        stop: Receives this one's signals.
        stack: Closed when the run ends.
    """

    world: World
    stop: Stop
    stack: ExitStack

    def folder(self, make: Callable[[], RunFolder]) -> RunFolder:
        """Return the run folder, which process 0 makes and locks; the others write nothing."""

        def locked() -> RunFolder | None:
            if not self.world.is_first:
                return None
            folder = make()
            self.stack.enter_context(folder.locked())
            return folder

        folder = self.world.together(locked)
        path = self.world.of_first(b"" if folder is None else os.fsencode(folder.path))
        return FollowedFolder(Path(os.fsdecode(path))) if folder is None else folder

    def agree(self, config: TrainConfig, *, resumes: bool) -> None:
        """Check that all processes begin, or resume, a run with the same settings.

        Raises:
            UserError: If they do not; it names those that differ.
        """
        settings = {name: value for name, value in config.to_json().items() if name not in OWN_SETTINGS}
        told = self.world.of_each(json.dumps({"resume": resumes, **settings}).encode())
        first, *others = map(json.loads, told)
        for rank, other in enumerate(others, start=1):
            differ = [name for name in first if first[name] != other[name]]
            if "resume" in differ:
                which = ("begins", "resumes") if first["resume"] else ("resumes", "begins")
                what = f"process {rank} {which[0]} a run and process 0 {which[1]} one"
                raise UserError(f"{what}: they must see the same run folder")
            if differ:
                what = ", ".join(f"{setting(name, other[name])}, there {first[name]!r}" for name in differ)
                raise UserError(f"process {rank} has other settings than process 0: {what}")

    def prepare(self, config: TrainConfig, reporter: Reporter, *split_seed: int, storage: Any = None) -> Setup:
        """Return the setup, once all processes have the same data.

        What a machine decides, the memory for a table and the number of threads, is as process 0 has it: the order of
        an epoch depends on the one, and the bits of sums on the other.
        """
        memory = config.memory
        if self.world.size > 1 and memory == "auto":
            config = replace(config, memory=self.world.of_first(f"{max(1, default_memory() >> 20)}m".encode()).decode())
        if self.world.size > 1:
            if config.engine == "compiled":
                engine, other = setting("engine", config.engine), setting("engine", "explicit")
                raise UserError(f"{engine}: it trains in one process, and there are {self.world.size}; take {other}")
            config = replace(config, engine="explicit" if config.engine == "auto" else config.engine)
            _check_exchange(config)
        setup = self.world.together(
            lambda: prepare(
                config, *split_seed, check=self.stop.check, progress=reporter.reading, on_build=reporter.building,
                storage=storage, world=self.world,
            )
        )  # fmt: skip
        threads = int(self.world.of_first(str(setup.threads).encode()))
        setup = replace(setup, threads=threads, config=replace(setup.config, memory=memory))
        if setup.device.type == "cuda" and self.world.size > 1:
            torch.cuda.set_device(setup.device)
        if setup.device.type == "cpu" and 1 < self.world.size == self.world.local_size:
            reporter.warn(
                f"the {self.world.size} processes share the cores of one machine: there one process, with threads, is "
                "usually faster (docs/distributed.md)"
            )
        digests = self.world.of_each(str(setup.dataset.digest).encode())
        for rank, digest in enumerate(digests):
            if digest != digests[0]:
                raise UserError(f"process {rank} has other data in {config.data} than process 0 (by SHA-256)")
        self.stack.enter_context(set_threads(setup.threads))
        return setup


def _check_exchange(config: TrainConfig) -> None:
    """Raise a UserError for a setting that is the other engine's."""
    explicit = {"exchange": "auto", "exchange_dtype": "same"}
    others = explicit if config.engine == "autograd" else {"parallel": "ddp"}
    for name, default in others.items():
        if getattr(config, name) != default:
            engine, own = setting("engine", config.engine), setting(name, getattr(config, name))
            other = setting("engine", "autograd" if config.engine == "explicit" else "explicit")
            raise UserError(f"{own} is not for {engine}: leave it out, or take {other}")


def checkpoint_of_first(
    folder: RunFolder, only: Path | None, reporter: Reporter, world: World
) -> tuple[Path, Checkpoint]:
    """Return the checkpoint to resume from, which process 0 reads, and its path."""
    found = world.together(lambda: folder.latest_checkpoint(reporter.warn, only) if world.is_first else None)
    if world.size == 1:
        assert found is not None
        return found
    path = world.of_first(b"" if found is None else os.fsencode(found[0]))
    content = world.of_first(b"" if found is None else encode(found[1]))
    if found is not None:
        return found
    with tempfile.TemporaryDirectory() as temporary:
        copied = Path(temporary, "checkpoint.safetensors")
        copied.write_bytes(content)
        return Path(os.fsdecode(path)), load_checkpoint(copied)
