"""What defines a training run: one dataclass, every field a flag of ``deltaprop train``.

Whatever can be checked without reading data is checked here, so that a wrong value is refused before anything is loaded
or written.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deltaprop import core
from deltaprop.data import Augment, CacheConfig, Source, TableOptions
from deltaprop.data.store import default_cache, default_memory
from deltaprop.errors import UserError, as_keys, setting, unknown_name
from deltaprop.nn.init import INITS
from deltaprop.training.objective import losses

LARGEST = 3e38  # that float32 holds
SCHEDULES = ("constant", "step", "cosine")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a multilayer perceptron with hand-written backpropagation."""

    data: str = "digits"
    """What to learn: digits, moons, circles, spirals, xor, sine; your own table (.csv, .tsv, .txt, these with .gz,
    .parquet, a folder of .parquet parts) or arrays (.npz with x and y, .npy); or a folder with IDX files (MNIST and its
    kin)."""

    target: tuple[str, ...] = ()
    """Of a table: the column to predict, by default the last; several for several numbers. Of x.npy: the file of y."""

    drop: tuple[str, ...] = ()
    """Of a table: columns to leave out, such as identifiers."""

    categorical: tuple[str, ...] = ()
    """Of a table: columns of categories though they hold numbers, or a mixture; columns of text are by themselves."""

    task: Literal["auto", "classification", "regression"] = "auto"
    """Of a table or arrays: auto takes text, and whole numbers of at most 20 different values, for classes."""

    missing: Literal["refuse", "mean", "drop"] = "refuse"
    """Of a table: what to do about a missing cell: refuse it, put the mean of the training rows there (a category: none
    of them), or drop its row."""

    delimiter: str = "auto"
    """Of a CSV: one character, or tab; auto tells comma, semicolon, tab and bar by the header."""

    test: str | None = None
    """A table of its own to test on, with the same columns; by default a part of the data (`test_fraction`)."""

    cache: Path | None = None
    """Folder for tables that do not fit in memory; by default ~/.cache/deltaprop."""

    memory: str = "auto"
    """What a table may take in memory, such as 500m or 4g; a larger one is read into `cache` once, and trained from
    there. auto is an eighth of the machine's memory."""

    hidden: tuple[int, ...] = (128, 64)
    """Neurons of each hidden layer; no number for none, a linear model."""

    activation: tuple[str, ...] = ("relu",)
    """Of the hidden layers: one name for all, or one per layer."""

    output_activation: str = "none"
    """Of the last layer: none, or a name as for `activation`; one that the loss already contains is refused."""

    class_weight: Literal["none", "balanced"] = "none"
    """Weigh the loss of each sample by its class: balanced by N / (classes · samples of the class)."""

    one_logit: bool = False
    """Of two classes: one output, whose sigmoid is the probability of the second, instead of two."""

    loss: str = "auto"
    """auto: cross-entropy for classes, mse for numbers. binary-cross-entropy is on one-hot targets, summed over outputs
    and averaged over samples."""

    init: str = "torch"
    """Initial weights."""

    lr: float | Literal["auto"] = "auto"
    """Learning rate η, above 0. auto: 0.05; for tables and arrays of your own, whose columns are standardised, 0.02
    with classes and 0.001 with numbers as targets."""

    momentum: float = 0.9
    """Momentum μ, in [0, 1)."""

    nesterov: bool = False
    """Nesterov's form of momentum."""

    weight_decay: float = 0.0
    """L2 penalty λ: each step adds λ W to ∂C/∂W."""

    decay_biases: bool = False
    """Let weight decay act on biases too."""

    lr_schedule: str = "constant"
    """constant, step (η times `lr_gamma` every `lr_step` epochs) or cosine (½ (1 + cos) of
    the way gone, from η towards 0)."""

    lr_step: int = 10
    """Epochs between two steps of the step schedule."""

    lr_gamma: float = 0.1
    """Factor of the step schedule, in (0, 1]."""

    lr_warmup: int = 0
    """Epochs in which η first rises linearly, before the schedule."""

    epochs: int = 30
    """Passes through the training data, at most."""

    batch_size: int = 16
    """Samples per step; 1 is the textbook's update per training instance."""

    val_fraction: float = 0.1
    """Share of the training data kept for validation, in [0, 1)."""

    val_split: Literal["random", "tail"] = "random"
    """Validate on a random part (the same share of each class), or on the last rows."""

    test_fraction: float = 0.2
    """Share of the data kept for the test where no official test set comes with it, in (0, 1)."""

    scaling: Literal["auto", "pixel", "standard", "none"] = "auto"
    """Of the inputs: pixel (divide by the full scale), standard (mean 0, deviation 1, fitted on the training part),
    or none; auto takes pixel for pictures and standard for the rest."""

    pixel_scale: float | None = None
    """Full scale of a pixel; by default that of the data: 255 for byte images, 16 for digits."""

    augment: Augment = "none"
    """Of pictures, to train on: deform each anew in every epoch: affine (turns and stretches), elastic (pixels pulled
    about, neighbours alike) or affine-elastic."""

    patience: int = 0
    """Stop when the validation loss has not improved for this many epochs; 0 for never."""

    seed: int = 42
    """Of the split, the initial weights and the order of samples: the same seed gives the same bits."""

    engine: Literal["autograd", "explicit"] = "autograd"
    """autograd (PyTorch's tape calls the hand-written backward of each operation) or explicit (the same formulas as one
    loop, without a tape: several times faster for small nets, in steps that agree but for rounding)."""

    device: str = "auto"
    """auto (CUDA, else mps, else cpu), cpu, cuda, cuda:N or mps."""

    dtype: Literal["float32", "float64"] = "float32"
    """Of weights and data."""

    precision: Literal["float32", "tf32", "bf16"] = "float32"
    """Of the products of matrices in training: tf32 and bf16 round their factors, where the device is then faster;
    weights stay float32, and evaluation is by float32."""

    threads: str = "auto"
    """CPU threads: a number; auto: 1 for small nets, the physical cores where a layer's product has at least 2^24
    multiply-adds; or tune: time a few steps at 1, 2, 4, … and take the fastest. One more thread makes ready what comes
    from disk or is deformed."""

    run_dir: Path | None = None
    """Folder of this run; by default runs/<data>-<date>-<time>."""

    log_every: int = 5
    """Epochs between two costly views in TensorBoard (histograms, δ norms, pictures); 0 for none."""

    save_every: str = "1m"
    """Between two checkpoints: epochs (a number), or time such as 30s or 5m; the end and an interruption save too."""

    keep: int = 1
    """Numbered checkpoints to keep beside the last; the newest sound one is taken where the last is damaged."""

    config: Path | None = None
    """TOML file with any of these settings, the flag names as keys; flags win over it."""

    def __post_init__(self) -> None:
        """Take lists for tuples, and one activation for a list of it; checks are for `validate`."""
        if isinstance(self.activation, str):  # a TOML file may say activation = "tanh"
            object.__setattr__(self, "activation", (self.activation,))
        for name in ("run_dir", "cache"):
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, Path(getattr(self, name)))
        for name in ("target", "drop", "categorical"):
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, (getattr(self, name),))
        for name in ("hidden", "activation", "target", "drop", "categorical"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def validate(self) -> None:
        """Refuse what cannot be right.

        Not at birth: a file's setting may be wrong, or not fit the others, until a flag replaces it.

        Raises:
            UserError: In one line, naming the setting.
        """
        for size in self.hidden:
            _require(_is_int(size) and size >= 1, "hidden", "positive whole numbers", size)
            _require(size < 2**31, "hidden", "below 2^31", size)
        for name in self.activation:
            _require_name("activation", name, core.ACTIVATIONS)
        _require(
            len(self.activation) in (1, len(self.hidden)),
            "activation",
            f"one name, or one per hidden layer ({len(self.hidden)})",
            " ".join(self.activation) or "none",
        )
        _require_name("output activation", self.output_activation, ["none", *core.ACTIVATIONS])
        _require_name("loss", self.loss, ["auto", *losses()])
        _require_name("initialisation", self.init, INITS)
        _require_name("lr schedule", self.lr_schedule, SCHEDULES)
        if self.lr != "auto":
            _require(_is_number(self.lr) and self.lr > 0, "lr", "auto or a number above 0", self.lr)
            _require(self.lr <= LARGEST, "lr", "at most 3e38, the largest float32", self.lr)
        _require(_is_number(self.momentum) and 0 <= self.momentum < 1, "momentum", "in [0, 1)", self.momentum)
        _require(not self.nesterov or self.momentum > 0, "nesterov", "used with a `momentum` above 0", self.momentum)
        decay = self.weight_decay
        _require(_is_number(decay) and decay >= 0, "weight_decay", "at least 0", decay)
        _require(decay <= LARGEST, "weight_decay", "at most 3e38, the largest float32", decay)
        _require(_is_number(self.lr_gamma) and 0 < self.lr_gamma <= 1, "lr_gamma", "in (0, 1]", self.lr_gamma)
        for flag, least in (("lr_step", 1), ("lr_warmup", 0), ("epochs", 1), ("batch_size", 1), ("patience", 0)):
            self._require_int(flag, least)
        for flag, least in (("seed", 0), ("log_every", 0), ("keep", 0)):
            self._require_int(flag, least)
        _require(self.seed < 2**32, "seed", "below 2^32", self.seed)
        val, test = self.val_fraction, self.test_fraction
        _require(_is_number(val) and 0 <= val < 1, "val_fraction", "in [0, 1)", val)
        _require(_is_number(test) and 0 < test < 1, "test_fraction", "in (0, 1)", test)
        _require(
            self.pixel_scale is None or (_is_number(self.pixel_scale) and self.pixel_scale > 0),
            "pixel_scale",
            "above 0",
            self.pixel_scale,
        )
        _require(
            self.patience == 0 or self.val_fraction > 0,
            "patience",
            "used with a `val_fraction` above 0",
            self.patience,
        )
        _require(
            self.delimiter in ("auto", "tab") or (len(self.delimiter) == 1 and self.delimiter not in '"\r\n'),
            "delimiter", "auto, tab or one character", repr(self.delimiter),
        )  # fmt: skip
        _require(
            self.memory == "auto" or re.fullmatch(r"0*[1-9]\d{0,5}[kmg]", str(self.memory).lower()) is not None,
            "memory", "auto, or a size such as 500m or 4g", self.memory,
        )  # fmt: skip
        threads_ok = self.threads in ("auto", "tune") or (
            str(self.threads).isdecimal() and 1 <= int(self.threads) <= 1024
        )
        _require(threads_ok, "threads", "auto, tune or a number from 1 to 1024", self.threads)
        _require(
            re.fullmatch(r"0*[1-9]\d{0,8}[sm]?", str(self.save_every)) is not None,
            "save_every",
            "epochs (a number above 0), or time such as 30s or 5m",
            self.save_every,
        )
        for field in dataclasses.fields(self):
            known = _CHOICES.get(field.name)
            if known:
                _require_name(field.name.replace("_", " "), getattr(self, field.name), known)

    def _require_int(self, field: str, least: int) -> None:
        value = getattr(self, field)
        _require(_is_int(value) and value >= least, field, f"a whole number, at least {least}", value)
        _require(value < 2**63, field, "below 2^63", value)

    @property
    def rate(self) -> float:
        """η, once the data have told what ``auto`` is."""
        assert self.lr != "auto"
        return self.lr

    @property
    def source(self) -> Source:
        """Where the data come from, and what is said of them."""
        choices = TableOptions(
            target=self.target, drop=self.drop, categorical=self.categorical, task=self.task, missing=self.missing,
            delimiter=self.delimiter,
        )  # fmt: skip
        return Source(data=self.data, options=choices, test=self.test, cache=self.room)

    @property
    def room(self) -> CacheConfig:
        """Where the rows of a table may be kept."""
        memory = default_memory()
        if self.memory != "auto":
            memory = int(self.memory[:-1]) * 2 ** {"k": 10, "m": 20, "g": 30}[self.memory[-1].lower()]
        return CacheConfig(memory, self.cache or default_cache())

    @property
    def activations(self) -> list[str]:
        """One activation per hidden layer."""
        return list(self.activation) * len(self.hidden) if len(self.activation) == 1 else list(self.activation)

    def lr_factor(self, epoch: int) -> float:
        """Return what η is multiplied by in an epoch, counted from 0.

        Warm-up over w epochs: (epoch + 1)/w. After it, with e epochs gone since and E in all: 1; γ^⌊e/step⌋; or
        ½ (1 + cos(π e/E)).
        """
        if epoch < self.lr_warmup:
            return (epoch + 1) / self.lr_warmup
        gone, total = epoch - self.lr_warmup, max(self.epochs - self.lr_warmup, 1)
        if self.lr_schedule == "step":
            return float(self.lr_gamma ** (gone // self.lr_step))
        if self.lr_schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * gone / total))
        return 1.0

    @property
    def save_epochs(self) -> int:
        """Epochs between two checkpoints; 0 where it is time that counts."""
        return int(self.save_every) if self.save_every.isdecimal() else 0

    @property
    def save_seconds(self) -> float:
        """Seconds between two checkpoints; infinitely many where it is epochs that count."""
        if self.save_every.isdecimal():
            return math.inf
        return int(self.save_every[:-1]) * (60.0 if self.save_every.endswith("m") else 1.0)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        values = dataclasses.asdict(self)
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


_CHOICES = {
    "val_split": ("random", "tail"),
    "task": ("auto", "classification", "regression"),
    "missing": ("refuse", "mean", "drop"),
    "class_weight": ("none", "balanced"),
    "augment": ("none", "affine", "elastic", "affine-elastic"),
    "scaling": ("auto", "pixel", "standard", "none"),
    "engine": ("autograd", "explicit"),
    "dtype": ("float32", "float64"),
    "precision": ("float32", "tf32", "bf16"),
}


def read_toml(path: Path) -> dict[str, Any]:
    """Return the settings of a TOML file, by field name.

    Raises:
        UserError: If the file cannot be read, is no TOML, or has a key that is no setting.
    """
    where = setting("config", path)
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{where}: {error.strerror}") from error
    except ValueError as error:  # of TOML, of UTF-8, or a name that no file can have
        raise UserError(f"{where}: not TOML: {error}") from error
    fields = _fields()
    result: dict[str, Any] = {}
    for key, value in settings.items():
        name = key.replace("-", "_")
        if name in result:
            raise UserError(f"{where}: {key} is given twice, with - and with _")
        if name not in fields or name == "config":
            near = difflib.get_close_matches(name, set(fields) - {"config"}, n=1)
            hint = (
                f"did you mean {near[0].replace('_', '-')!r}?"
                if near
                else "the settings are those of `deltaprop train`"
            )
            raise UserError(f"{where}: unknown setting {key!r}: {hint}")
        result[name] = _typed(where, key, value, fields[name])
    return result


# What a setting means that a config.json or a checkpoint does not have: the default of version 0.1, whatever it is
# today. These rows never change; a setting added later gets a row with the value that older versions acted by.
WHEN_ABSENT: dict[str, Any] = {
    "data": "digits", "target": (), "drop": (), "categorical": (), "task": "auto", "missing": "refuse",
    "delimiter": "auto", "test": None, "cache": None, "memory": "auto",
    "hidden": (128, 64), "activation": ("relu",), "output_activation": "none", "class_weight": "none",
    "one_logit": False, "loss": "auto", "init": "torch",
    "lr": "auto", "momentum": 0.9, "nesterov": False, "weight_decay": 0.0, "decay_biases": False,
    "lr_schedule": "constant", "lr_step": 10, "lr_gamma": 0.1, "lr_warmup": 0, "epochs": 30, "batch_size": 16,
    "val_fraction": 0.1, "val_split": "random", "test_fraction": 0.2, "scaling": "auto", "pixel_scale": None,
    "augment": "none", "patience": 0, "seed": 42,
    "engine": "autograd", "device": "auto", "dtype": "float32", "precision": "float32", "threads": "auto",
    "run_dir": None, "log_every": 5, "save_every": "1m", "keep": 1, "config": None,
}  # fmt: skip


def from_json(where: str, settings: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration that a run saved with ``to_json``; other keys are ignored.

    A setting that is absent means what it meant in version 0.1 (``WHEN_ABSENT``), not what is today's default.

    Args:
        where: The file, as error messages name it.
        settings: As JSON has them.

    Raises:
        UserError: If a setting has a value of the wrong kind, or one that is not allowed.
    """
    saved: dict[str, Any] = {}
    for name, kind in _fields().items():
        if name in settings:
            value = settings[name]
            saved[name] = None if value is None and kind.endswith("None") else _typed(where, name, value, kind)
    config = TrainConfig(**{**WHEN_ABSENT, **saved})
    try:
        config.validate()
    except UserError as error:
        raise UserError(f"{where}: {as_keys(str(error))}") from error
    return config


def _fields() -> dict[str, str]:
    """Return the annotation of each setting."""
    return {field.name: str(field.type) for field in dataclasses.fields(TrainConfig)}


def _typed(where: str, key: str, value: Any, kind: str) -> Any:
    """Check a value of a file against the annotation of its field; numbers may stand for what is read as text."""
    fits = {
        "bool": isinstance(value, bool),
        "int": _is_int(value),
        "float": _is_number(value),
        "float | None": _is_number(value),
        "float | Literal['auto']": _is_number(value) or value == "auto",
        "tuple[int, ...]": isinstance(value, list) and all(map(_is_int, value)),
        "tuple[str, ...]": isinstance(value, str)
        or (isinstance(value, list) and all(isinstance(v, str) for v in value)),
        "Path | None": isinstance(value, str),
        "str | None": isinstance(value, str),
        "str": isinstance(value, str) or (key in _TEXT_OR_NUMBER and _is_int(value)),
    }.get(kind, isinstance(value, str))
    if not fits:
        raise UserError(f"{where}: {key} must be {_KINDS.get(kind, 'text')}, got {value!r}")
    if kind == "Path | None":
        return Path(value)
    if kind.startswith("float") and not isinstance(value, str):
        return float(value)
    return str(value) if key in _TEXT_OR_NUMBER else value


_TEXT_OR_NUMBER = ("threads", "save-every", "save_every")

_KINDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "float | None": "a number",
    "float | Literal['auto']": "auto or a number",
    "tuple[int, ...]": "a list of whole numbers",
    "tuple[str, ...]": "a name or a list of names",
}


def _require(ok: bool, name: str, right: str, got: object) -> None:
    if not ok:
        raise UserError(f"{setting(name)} must be {right}, got {got}")


def _require_name(kind: str, name: object, known: Any) -> None:
    if name not in known:
        raise unknown_name(kind, name, known)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) < 2**1024 if isinstance(value, int) else math.isfinite(value)
