"""Damaged and malicious checkpoints: none is loaded, none executes code, none needs much memory."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import random
import resource
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaprop import UserError
from deltaprop.training import TrainConfig, train
from deltaprop.training.checkpoint import Checkpoint, DamagedError, encode
from deltaprop.training.run_folder import LAST, RunFolder, load_checkpoint
from tests.training.faults.shim import forked, run_outputs, small


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 4 epochs that keeps 3 checkpoints."""
    folder = tmp_path_factory.mktemp("damage") / "run"
    train(small(folder, epochs=4, keep=3))
    return folder


@pytest.fixture(scope="module")
def good(run: Path) -> bytes:
    return (run / "checkpoints" / LAST).read_bytes()


def loads(content: bytes, path: Path) -> bool:
    """Return whether some bytes are accepted as a valid checkpoint."""
    path.write_bytes(content)
    try:
        load_checkpoint(path)
    except DamagedError:
        return False
    return True


def test_a_valid_checkpoint_loads(good: bytes, tmp_path: Path):
    assert loads(good, tmp_path / "c")


def test_truncated_checkpoints_are_refused(good: bytes, tmp_path: Path):
    """Every seventh length, and each of the first 200 and the last 100."""
    lengths = [*range(200), *range(200, len(good) - 100, 7), *range(len(good) - 100, len(good))]
    assert [n for n in lengths if loads(good[:n], tmp_path / "c")] == []


@pytest.mark.slow
def test_checkpoints_truncated_at_every_length_are_refused(good: bytes, tmp_path: Path):
    assert [n for n in range(len(good)) if loads(good[:n], tmp_path / "c")] == []


def test_a_checkpoint_with_trailing_bytes_is_refused(good: bytes, tmp_path: Path):
    assert not loads(good + b"\0", tmp_path / "c")


def flips(good: bytes, path: Path, bits: list[int]) -> list[int]:
    """Return the single-bit flips after which the checkpoint still loads."""
    loaded = []
    for bit in bits:
        content = bytearray(good)
        content[bit // 8] ^= 1 << bit % 8
        if loads(bytes(content), path):
            loaded.append(bit)
    return loaded


def test_600_single_bit_flips_are_refused(good: bytes, tmp_path: Path):
    """Half of them in the header."""
    rng = random.Random(0)
    header = 8 + int.from_bytes(good[:8], "little")
    bits = [rng.randrange(8 * header) for _ in range(300)] + [rng.randrange(8 * len(good)) for _ in range(300)]
    assert flips(good, tmp_path / "c", bits) == []


@pytest.mark.slow
def test_3000_single_bit_flips_are_refused(good: bytes, tmp_path: Path):
    rng = random.Random(1)
    assert flips(good, tmp_path / "c", [rng.randrange(8 * len(good)) for _ in range(3000)]) == []


def test_without_the_digest_flipped_weights_would_load(good: bytes, tmp_path: Path):
    """The digest is needed: safetensors alone accepts flipped bits in the tensors."""
    import safetensors.torch

    rng = random.Random(2)
    start = 8 + int.from_bytes(good[:8], "little")
    before, loaded = safetensors.torch.load(good), 0
    for _ in range(50):
        content = bytearray(good)
        content[rng.randrange(start, len(good))] ^= 4
        tensors = safetensors.torch.load(bytes(content))
        loaded += any(not torch.equal(value, before[name]) for name, value in tensors.items())
    assert loaded == 50


def test_an_unreadable_file_counts_as_damaged(good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Unreadable(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    (tmp_path / "c").write_bytes(good)
    with monkeypatch.context() as patch:
        patch.setattr("deltaprop.training.checkpoint.open", lambda *_: Unreadable(), raising=False)
        with pytest.raises(DamagedError, match="cannot be read: Input/output error"):
            load_checkpoint(tmp_path / "c")


def test_a_shape_with_many_dimensions_is_refused_quickly(tmp_path: Path):
    """Their product would have about a million digits."""
    shape = {"dtype": "F32", "shape": [2**61] * 50_000, "data_offsets": [0, 4]}
    (tmp_path / "c").write_bytes(with_header({"__metadata__": META, "a": shape}, b"1234")(tmp_path))
    began = time.monotonic()
    with pytest.raises(DamagedError, match="overflow computing buffer size"):
        load_checkpoint(tmp_path / "c")
    assert time.monotonic() - began < 1


class TestFallback:
    """If the last checkpoint is damaged, the newest valid one is used, with a warning."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        train(small(tmp_path / "run", epochs=3, keep=3))
        return tmp_path / "run"

    @staticmethod
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))

    def test_damaged_checkpoints_are_reported_and_resume_gives_the_same_bits(self, folder: Path):
        expected = run_outputs(folder)
        warnings: list[str] = []
        self.damage(folder / "checkpoints" / LAST)
        newest = RunFolder(folder).numbered()[0]
        self.damage(newest)
        path, *_ = RunFolder(folder).latest_checkpoint(warnings.append)
        assert path == RunFolder(folder).numbered()[1]
        assert [line.partition(": ")[0] for line in warnings] == [str(folder / "checkpoints" / LAST), str(newest)]
        assert forked(lambda: train(small(folder, epochs=3, keep=3), resume=folder)) == 0
        assert run_outputs(folder) == expected

    def test_resume_without_a_valid_checkpoint_is_refused(self, folder: Path):
        for path in (folder / "checkpoints").iterdir():
            self.damage(path)
        with pytest.raises(UserError, match="none of its 4 checkpoints is valid"):
            train(small(folder, epochs=3), resume=folder)

    def test_a_named_checkpoint_has_no_fallback(self, folder: Path):
        path = folder / "checkpoints" / LAST
        self.damage(path)
        with pytest.raises(UserError, match=r"checkpoints/last\.safetensors: damaged: its SHA-256"):
            train(small(folder, epochs=3), resume=path)


# --- malicious files ---


class Trap:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


def pickled(marker: Path) -> bytes:
    return pickle.dumps(Trap(marker))


def torch_saved(marker: Path) -> bytes:
    file = io.BytesIO()
    torch.save({"model": Trap(marker)}, file)
    return file.getvalue()


def zip_bomb(_: Path) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", bytes(2**26))
    return file.getvalue()


def with_header(header: Any, tail: bytes = b"") -> Callable[[Path], bytes]:
    """Return a function that makes a file with this header and the right digest."""
    raw = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    content = len(raw).to_bytes(8, "little") + raw + tail
    return lambda _: content.replace(DIGEST, b'"sha256":"' + hashlib.sha256(content).hexdigest().encode(), 1)


def state_of(good: bytes) -> dict[str, Any]:
    header = json.loads(good[8 : 8 + int.from_bytes(good[:8], "little")])
    return dict(json.loads(header["__metadata__"]["state"]))


META = {"state": "{}", "sha256": "0" * 64}
DIGEST = b'"sha256":"' + b"0" * 64
HUGE = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (pickled, "damaged or not a checkpoint"),
        (torch_saved, "damaged or not a checkpoint"),
        (zip_bomb, "damaged or not a checkpoint"),
        (lambda _: b"", "a header of 0 bytes in a file of 0"),
        (lambda _: (2**63).to_bytes(8, "little") + b"{}", "damaged or not a checkpoint"),
        (lambda _: (2**25).to_bytes(8, "little") + bytes(2**25), "a header of 33554432 bytes"),
        (with_header(b"[" * 100_000 + DIGEST), "invalid JSON in header"),
        (with_header(b"\xff\xfe{}" + DIGEST), "invalid UTF-8 in header"),
        (with_header([1, {"sha256": "0" * 64}]), "invalid JSON in header"),
        (with_header({}), "it has no SHA-256"),
        (with_header({"__metadata__": {"sha256": "0" * 64}}), "it has no state"),
        (with_header({"__metadata__": META, "a": HUGE}), "file not fully covered"),
        (with_header({"__metadata__": META, "a": {**HUGE, "data_offsets": [0, 4]}}, b"1234"), "invalid shape"),
        (with_header({"__metadata__": META, "a": {**HUGE, "shape": [-1]}}), "invalid value"),
        (with_header({"__metadata__": META, "a": {**HUGE, "dtype": "F8"}}), "unknown variant"),
        (with_header({"__metadata__": META, "a": 3}), "invalid type"),
        (with_header({"__metadata__": {**META, "state": "[" * 100_000}}), "its state is not JSON"),
        (with_header({"__metadata__": {**META, "state": '{"format": 3}'}}), "of format 3"),
        (with_header({"__metadata__": {**META, "state": "[1]"}}), "or one without a format"),
        (with_header({"__metadata__": {**META, "state": '{"format": 1}'}}), "damaged: 'epoch' is missing"),
        (lambda _: encode(Checkpoint({}, {})), "damaged: 'epoch' is missing"),
    ],
    ids=range(21),
)
def test_a_file_that_is_not_a_checkpoint_runs_no_code_and_is_refused_in_one_line(
    make: Callable[[Path], bytes], message: str, tmp_path: Path
):
    path, marker = tmp_path / "c", tmp_path / "marker"
    path.write_bytes(make(marker))
    with pytest.raises(DamagedError, match=message) as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)
    assert not marker.exists()


def test_a_network_larger_than_the_file_is_not_allocated(good: bytes, tmp_path: Path):
    """With the right digest: a configuration of 10^12 weights, and the tensors of a small network."""
    state = state_of(good)
    state["config"]["hidden"], state["resolved"]["sizes"] = [10**6, 10**6], [2, 10**6, 10**6, 2]
    path = tmp_path / "c"
    path.write_bytes(encode(Checkpoint({"model.0.weight": torch.zeros(4, 2)}, state)))
    with pytest.raises(DamagedError, match=r"damaged: it has .*, the run's model "):
        load_checkpoint(path)


def test_a_large_file_is_checked_in_little_memory(tmp_path: Path):
    """A sparse file of 256 MiB with a matching header: its digest is computed piece by piece."""
    size = 2**28
    header = {"__metadata__": {**META, "state": '{"format": 1}'}, "a": {"dtype": "U8", "shape": [size],
                                                                        "data_offsets": [0, size]}}  # fmt: skip
    raw = json.dumps(header, separators=(",", ":")).encode()
    path = tmp_path / "c"
    with open(path, "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + size)

    def work() -> None:
        from deltaprop.training.checkpoint import read_checkpoint

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(DamagedError, match="SHA-256"):
            read_checkpoint(path)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB

    assert forked(work) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": 1e308}, {"epoch": 0}, {"epoch": "1"}, {"epoch": True}, {"epoch": 2**70}, {"done": -1}, {"done": None},
        {"threads": 10**9}, {"split_seed": -1}, {"last": []}, {"last": {"epoch": 1}}, {"best": {"epoch": "x"}},
        {"seconds": "1"}, {"overrides": [3]}, {"overrides": "lr"}, {"versions": None}, {"data_sha256": 3},
        {"resolved": {"sizes": [2, 4, -2]}}, {"resolved": {"sizes": "24"}}, {"resolved": []}, {"config": []},
        {"last": None}, {"best": None}, {"epoch": 9}, {"epoch": 1, "best": None},
        {"best": {"epoch": 77, "val_loss": 1.0, "test_loss": 1.0}},
        {"config": {"hidden": [4], "lr": "fast"}}, {"config": {"hidden": [4], "activation": [[]]}},
    ],
    ids=str,
)  # fmt: skip
def test_an_impossible_state_is_refused(change: dict[str, Any], good: bytes, tmp_path: Path):
    """Each with the right digest."""
    import safetensors.torch

    state = {**state_of(good), **change}
    assert not loads(encode(Checkpoint(safetensors.torch.load(good), state)), tmp_path / "c")


def test_more_steps_than_an_epoch_has_are_refused_before_anything_is_written(run: Path, good: bytes, tmp_path: Path):
    import safetensors.torch

    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    state = {**state_of(good), "done": 10**9}
    (folder / "checkpoints" / LAST).write_bytes(encode(Checkpoint(safetensors.torch.load(good), state)))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"damaged: its checkpoint has 1000000000 of 3 steps done"):
        train(small(folder, epochs=9), resume=folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_invalid_json_numbers_and_missing_tensors_are_refused(good: bytes, tmp_path: Path):
    import safetensors.torch

    tensors = safetensors.torch.load(good)
    for name in ("model.0.weight", "generator", "total", "optimizer.momentum_buffer.0.bias", "best.2.weight"):
        fewer = {key: t for key, t in tensors.items() if key != name}
        assert not loads(encode(Checkpoint(fewer, state_of(good))), tmp_path / "c")
    garbage = {**tensors, "generator": torch.zeros_like(tensors["generator"])}
    assert not loads(encode(Checkpoint(garbage, state_of(good))), tmp_path / "c")
    valid = encode(Checkpoint(tensors, {**state_of(good), "seconds": 123456}))
    assert loads(valid, tmp_path / "c")
    with_nan = valid.replace(b"123456", b"   NaN")
    assert not loads(with_nan, tmp_path / "c")


@pytest.mark.parametrize("change", ["scalars", "another key"])
def test_state_that_the_optimizer_does_not_have_is_refused(change: str, good: bytes, tmp_path: Path):
    """A momentum buffer is shaped as its parameter, and SGD has no other state."""
    (tmp_path / "good").write_bytes(good)
    checkpoint = load_checkpoint(tmp_path / "good")
    tensors = dict(checkpoint.tensors)
    for name in [name for name in tensors if name.startswith("optimizer.")]:
        value = tensors.pop(name)
        scalar = change == "scalars"
        tensors[name if scalar else name.replace("momentum_buffer", "exp_avg")] = value.sum() if scalar else value
    (tmp_path / "c").write_bytes(encode(Checkpoint(tensors, {**checkpoint.state})))
    with pytest.raises(DamagedError, match=r"momentum_buffer|exp_avg"):
        load_checkpoint(tmp_path / "c")


@pytest.mark.parametrize("name", ["../../outside", "/etc/outside", "model.0.weight/../../x"])
def test_a_tensor_name_with_a_path_writes_no_file(name: str, good: bytes, tmp_path: Path):
    path = tmp_path / "run" / "checkpoints" / "c"
    path.parent.mkdir(parents=True)
    path.write_bytes(encode(Checkpoint({name: torch.zeros(4, 2)}, state_of(good))))
    with pytest.raises(DamagedError, match=r"damaged: it has .*, the run's model "):
        load_checkpoint(path)
    assert {p.name for p in tmp_path.rglob("*")} == {"run", "checkpoints", "c"}


def test_the_run_dir_in_a_checkpoint_is_ignored(run: Path, good: bytes, tmp_path: Path):
    """Nothing is written to the run_dir in the configuration of a checkpoint."""
    state = state_of(good)
    state["config"] = {**state["config"], "run_dir": str(tmp_path / "elsewhere")}
    config = TrainConfig()
    from deltaprop.training.resume import saved_config

    saved = saved_config(Checkpoint({}, state), run)
    assert saved.run_dir == run
    assert config.run_dir is None


def test_a_folder_and_a_pipe_are_refused(tmp_path: Path):
    import os

    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "none"):
        with pytest.raises(DamagedError):
            load_checkpoint(path)
