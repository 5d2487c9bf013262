"""What defines a training run: one dataclass, every field a flag of ``deltaprop train``.

Everything that can be checked without the data is checked here, before anything is loaded or written.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from deltaprop import core
from deltaprop.data import Augment, CacheConfig, Source, TableOptions
from deltaprop.data.formats.files import ENCODINGS, is_encoding
from deltaprop.data.store import default_memory
from deltaprop.data.table import DELIMITER_WORDS, ReadOptions
from deltaprop.errors import UserError, as_keys, setting, unknown_name
from deltaprop.nn.init import INITS
from deltaprop.nn.modules import MLP
from deltaprop.training.objective import losses
from deltaprop.user_cache import default_cache

LARGEST = 3e38  # that float32 can represent
SCHEDULES = ("auto", "constant", "step", "cosine")
DTYPES = {"float32": torch.float32, "float64": torch.float64}


EngineName = Literal["auto", "autograd", "explicit", "compiled"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a multilayer perceptron with hand-written backpropagation.

    Attributes:
        data: Data set: digits, moons, circles, spirals, xor, sine; your own table (.csv, .tsv, .txt or .jsonl, also
            with .gz; .xlsx, .feather, .arrow; a .parquet file or a folder of such parts) or arrays (.npz with x and y,
            .npy); or a folder of IDX files, such as MNIST.
        target: Target column of a table; several numeric columns for regression with several outputs. For x.npy: the
            file of y.
        drop: Columns of a table to leave out, such as identifiers.
        keep_column: Columns of a table to use although they look like row numbers or identifiers.
        categorical: Numeric columns of a table to treat as categorical; text columns always are.
        na_values: Further words of a table that mean a missing value, such as unknown or -99.
        decimal: Decimal sign of the numbers in a table; auto finds out where the cells show it.
        task: Kind of the targets in a table or arrays: auto treats text, and whole numbers with at most 20 different
            values, as classes.
        missing: Missing inputs of a table: auto fills numbers by the mean of the training rows, with an input that
            tells where more than a few are missing, and treats missing text as a category of its own; mean fills only;
            drop leaves out their rows; refuse stops. Rows without a target are always left out.
        rare_classes: Classes of a single row: drop them, keep them (for training), or merge them into one class.
        columns: How the columns of a table are read: infer leaves out row numbers and identifiers and reads dates,
            units and decimal commas; 0.1 uses every column, as version 0.1 did.
        delimiter: Delimiter of a CSV: one character, tab, or space (any number of blanks); auto detects comma,
            semicolon, tab and bar in the header, and blanks where each row has as many cells.
        encoding: Encoding of a CSV, such as cp1252, which Windows writes; auto is UTF-8, or UTF-16 with its mark.
        header: The first line of a CSV or of a sheet has the names of the columns; without one they are column1,
            column2, ….
        sheet: Sheet of an Excel workbook, by name; the first by default.
        test: Separate table to test on, with the same columns.
        cache: Folder for tables that do not fit in memory.
        memory: Most memory that a table may take, such as 500m or 4g; a larger one is written to `cache` once and
            streamed from there. auto is an eighth of the machine's memory.
        hidden: Neurons of each hidden layer; without a number the model is linear.
        activation: Activation of the hidden layers: one name for all, or one per layer.
        output_activation: Activation of the last layer: none, or a name as for `activation`; one that the loss already
            contains is refused.
        class_weight: Weight of each sample's loss by its class: balanced is N / (classes · samples of the class).
        one_logit: For two classes: one output, whose sigmoid is the probability of the second class, instead of two.
        loss: auto: cross-entropy for classification, mse for regression. binary-cross-entropy uses one-hot targets; it
            is summed over outputs and averaged over samples.
        init: Initial weights.
        lr: Learning rate η, above 0. auto: 0.05 (sine: 0.02); for your own tables and arrays 0.01.
        momentum: Momentum μ, in [0, 1).
        nesterov: Nesterov's form of momentum.
        weight_decay: L2 penalty λ: each step adds λ W to ∂C/∂W. auto: 0; for your own tables and arrays 0.01.
        decay_biases: Apply weight decay to biases too.
        lr_schedule: constant, step (η times `lr_gamma` every `lr_step` epochs) or cosine (η falls to nearly 0 along
            half a period of the cosine). auto: constant; for your own tables and arrays cosine.
        lr_step: Epochs between two steps of the step schedule.
        lr_gamma: Factor of the step schedule, in (0, 1].
        lr_warmup: Epochs in which η first rises linearly, before the schedule.
        epochs: Passes through the training data, at most. auto: 30; for your own tables and arrays at least 30, and as
            many as 1000 steps take.
        batch_size: Samples per step; 1 is the textbook's update per training instance.
        val_fraction: Share of the training data kept for validation, in [0, 1).
        val_split: Validation rows: random (the same share of each class), or the last rows.
        test_fraction: Share of the data kept for the test if it has no separate test set, in (0, 1).
        folds: Cross-validation: divide the data into this many parts, with the same share of each class, and train as
            many models, each tested on one part and trained on the others; 0 for a single model.
        fold: With `folds`: train only the model that is tested on this part, from 1; 0 for all of them.
        scaling: Scaling of the inputs: pixel (divide by the full scale), standard (mean 0, standard deviation 1 on the
            training rows), or none; auto is pixel for images and standard otherwise.
        pixel_scale: Full scale of a pixel: the value that becomes 1.
        augment: Random deformation of training images, another in every epoch: affine (rotation and scaling), elastic,
            which displaces pixels smoothly, or affine-elastic.
        weights: Which weights are the model, for `evaluate`, `predict`, `export` and dp.load: final, or best, those of
            the lowest validation loss; auto: best for your own tables and arrays with classes, if there are validation
            rows, else final.
        patience: Stop when the validation loss has not improved for this many epochs; 0 for never.
        seed: Seed of the split, the initial weights and the order of samples: the same seed gives the same bits.
        engine: autograd (PyTorch calls the hand-written backward of each operation), explicit (the same formulas as one
            loop, without autograd: several times faster for small networks, with the same results up to rounding) or
            compiled (that loop in C++, by the machine's compiler, on a CPU: many times faster for small networks); auto
            is compiled for runs of at least 2^15 steps on a CPU, unless the network is wide, else explicit.
        device: auto (CUDA, else mps, else cpu), cpu, cuda, cuda:N or mps.
        dtype: Data type of weights and data.
        precision: Precision of matrix products in training: tf32 and bf16 round their factors, which is faster on some
            devices; weights and evaluation stay float32.
        threads: CPU threads: a number; auto: 1 for small networks, the physical cores if a layer's product has at least
            2^24 multiply-adds (2^21 with the compiled engine); or tune: time a few steps with 1, 2, 4, … threads and
            take the fastest. One more thread prepares rows from disk and deformed images.
        exchange: How several processes, started by torchrun, add their gradients: the sums of each layer, its factors δ
            and a_prev, or auto, by its sizes. For the explicit engine.
        exchange_dtype: Data type of what the explicit engine's processes send: bfloat16 halves the bytes of float32,
            and rounds.
        parallel: What several processes have of the model with the autograd engine: ddp: each all of it; fsdp: a part
            of every parameter.
        timeout: Seconds after which a process that does not answer is given up.
        run_dir: Folder of this run.
        log_every: Epochs between two sets of histograms, δ norms and images in TensorBoard; 0 for none. auto: a
            sixth of the epochs, a third for a table; at least 5.
        save_every: Interval of checkpoints: epochs (a number), or time such as 30s or 5m; one is also saved at the end
            and when it is stopped.
        keep: Numbered checkpoints to keep besides the last; the newest valid one is used if the last is damaged.
        config: TOML file with any of these settings, the flag names as keys; flags override it.
    """

    data: str = "digits"
    target: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    keep_column: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    na_values: tuple[str, ...] = ()
    decimal: Literal["auto", "point", "comma"] = "auto"
    task: Literal["auto", "classification", "regression"] = "auto"
    missing: Literal["auto", "mean", "drop", "refuse"] = "auto"
    rare_classes: Literal["drop", "keep", "merge"] = "drop"
    columns: Literal["infer", "0.1"] = "infer"
    delimiter: str = "auto"
    encoding: str = "auto"
    header: bool = True
    sheet: str | None = None
    test: str | None = None
    cache: Path | None = None
    memory: str = "auto"
    hidden: tuple[int, ...] = (128, 64)
    activation: tuple[str, ...] = ("relu",)
    output_activation: str = "none"
    class_weight: Literal["none", "balanced"] = "none"
    one_logit: bool = False
    loss: str = "auto"
    init: str = "torch"
    lr: float | Literal["auto"] = "auto"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float | Literal["auto"] = "auto"
    decay_biases: bool = False
    lr_schedule: str = "auto"
    lr_step: int = 10
    lr_gamma: float = 0.1
    lr_warmup: int = 0
    epochs: int | Literal["auto"] = "auto"
    batch_size: int = 16
    val_fraction: float = 0.1
    val_split: Literal["random", "tail"] = "random"
    test_fraction: float = 0.2
    folds: int = 0
    fold: int = 0
    scaling: Literal["auto", "pixel", "standard", "none"] = "auto"
    pixel_scale: float | None = None
    augment: Augment = "none"
    weights: Literal["auto", "best", "final"] = "auto"
    patience: int = 0
    seed: int = 42
    engine: EngineName = "autograd"
    device: str = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    threads: str = "auto"
    exchange: Literal["auto", "sums", "factors"] = "auto"
    exchange_dtype: Literal["same", "bfloat16"] = "same"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    timeout: float = 300.0
    run_dir: Path | None = None
    log_every: int | Literal["auto"] = "auto"
    save_every: str = "1m"
    keep: int = 1
    config: Path | None = None

    def __post_init__(self) -> None:
        """Accept a list or a single name for a tuple, and text for a path; values are checked by `validate`."""
        for name in ("hidden", "activation", "target", "drop", "keep_column", "categorical", "na_values"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        for name in ("run_dir", "cache"):
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, Path(getattr(self, name)))

    def validate(self) -> None:
        """Check everything that can be checked without data.

        This is not part of creation: a wrong setting of a file may still be replaced by a flag.

        Raises:
            UserError: In one line, naming the setting.
        """
        for name, is_valid, right in _RULES:
            for item in self._items(name):
                _require(is_valid(item), name, right, item)
        for name, names in _options().items():
            for item in self._items(name):
                if item not in names:
                    raise unknown_name("initialisation" if name == "init" else name.replace("_", " "), item, names)
        layers, named = len(self.hidden), " ".join(self.activation) or "none"
        one_each = len(self.activation) in (1, layers)
        _require(one_each, "activation", f"one name, or one per hidden layer ({layers})", named)
        _require(not self.nesterov or self.momentum > 0, "nesterov", "used with a `momentum` above 0", self.momentum)
        _require(self.folds != 1, "folds", "0 for none, or 2 and more", self.folds)
        _require(not self.fold or self.folds, "fold", "used with `folds`", self.fold)
        _require(self.fold <= self.folds, "fold", f"0 for all folds, or a fold from 1 to {self.folds}", self.fold)
        if self.folds and self.test is not None:
            raise UserError(f"{setting('folds', self.folds)} tests on a part of the data: leave `test` out")
        validates = self.patience == 0 or self.val_fraction > 0
        _require(validates, "patience", "used with a `val_fraction` above 0", self.patience)
        validates = self.weights != "best" or self.val_fraction > 0
        _require(validates, "weights", "final or auto, or used with a `val_fraction` above 0", self.weights)

    def _items(self, name: str) -> tuple[Any, ...]:
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,)

    @property
    def rate(self) -> float:
        """η, a number: ``auto`` has been replaced once the data are loaded."""
        assert self.lr != "auto"
        return self.lr

    @property
    def decay(self) -> float:
        """λ, a number: ``auto`` has been replaced once the data are loaded."""
        assert self.weight_decay != "auto"
        return self.weight_decay

    @property
    def total_epochs(self) -> int:
        """The number of epochs: ``auto`` has been replaced once the data are loaded."""
        assert self.epochs != "auto"
        return self.epochs

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of weights and data."""
        return DTYPES[self.dtype]

    @property
    def table_options(self) -> TableOptions:
        """The user's choices for a table."""
        return TableOptions(**{field.name: getattr(self, field.name) for field in dataclasses.fields(TableOptions)})

    @property
    def reading(self) -> ReadOptions:
        """How tables are read."""
        return self.table_options.reading

    @property
    def source(self) -> Source:
        """Where the data come from, and how they are read."""
        options = self.table_options
        memory = default_memory()
        if self.memory != "auto":
            memory = int(self.memory[:-1]) * 2 ** {"k": 10, "m": 20, "g": 30}[self.memory[-1].lower()]
        cache = CacheConfig(memory, self.cache or default_cache())
        return Source(data=self.data, options=options, test=self.test, cache=cache)

    def build_model(self, sizes: Any, device: str | None = None) -> MLP:
        """Return a model, initialised from PyTorch's global generator.

        Args:
            sizes: Layer sizes [n_0, …, n_L], the hidden ones as in ``hidden``; also as read from a file.
            device: Device of the parameters; on ``"meta"`` they have names, shapes and dtypes, and take no memory.

        Raises:
            UserError: If the sizes are not those of a model with these hidden layers.
        """
        fits = isinstance(sizes, list) and all(is_int(size) and 1 <= size < 2**31 for size in sizes)
        if not fits or sizes[1:-1] != [*self.hidden]:
            raise UserError(f"the sizes of a model with hidden layers {self.hidden} cannot be {sizes!r:.80}")
        output = None if self.output_activation == "none" else self.output_activation
        return MLP(sizes, self.activations, output, init=self.init, device=device, dtype=self.torch_dtype)

    @property
    def activations(self) -> list[str]:
        """One activation per hidden layer."""
        return list(self.activation) * len(self.hidden) if len(self.activation) == 1 else list(self.activation)

    def lr_factor(self, epoch: int) -> float:
        """Return the factor of η in an epoch, counted from 0.

        During a warm-up of w epochs: (epoch + 1)/w. In epoch e of the E epochs after it: 1; γ^⌊e/step⌋; or
        ½ (1 + cos(π e/E)).
        """
        if epoch < self.lr_warmup:
            return (epoch + 1) / self.lr_warmup
        epoch, total = epoch - self.lr_warmup, max(self.total_epochs - self.lr_warmup, 1)
        if self.lr_schedule == "step":
            return float(self.lr_gamma ** (epoch // self.lr_step))
        if self.lr_schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * epoch / total))
        return 1.0

    @property
    def save_epochs(self) -> int:
        """Epochs between two checkpoints; 0 if the interval is a time."""
        return int(self.save_every) if self.save_every.isdecimal() else 0

    @property
    def save_seconds(self) -> float:
        """Seconds between two checkpoints; infinite if the interval is in epochs."""
        if self.save_every.isdecimal():
            return math.inf
        return int(self.save_every[:-1]) * (60.0 if self.save_every.endswith("m") else 1.0)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        values = dataclasses.asdict(self)
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def is_int(value: object) -> bool:
    """Return whether a value is a whole number, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Return whether a value is a finite number that float64 holds, and not a bool."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) < 2**1024 if isinstance(value, int) else math.isfinite(value)


def _at_least(least: int) -> Callable[[Any], bool]:
    return lambda value: is_int(value) and value >= least


_LEAST = {
    "lr_step": 1, "lr_warmup": 0, "batch_size": 1, "patience": 0, "seed": 0, "keep": 0, "folds": 0, "fold": 0,
}  # fmt: skip

# A setting, whether a value is valid (for a tuple, each of its items), and what is valid in words.
_RULES: list[tuple[str, Callable[[Any], object], str]] = [
    ("hidden", _at_least(1), "positive whole numbers"),
    ("hidden", lambda v: v < 2**31, "below 2^31"),
    ("lr", lambda v: v == "auto" or (is_number(v) and v > 0), "auto or a number above 0"),
    ("lr", lambda v: v == "auto" or v <= LARGEST, "at most 3e38, the largest float32"),
    ("momentum", lambda v: is_number(v) and 0 <= v < 1, "in [0, 1)"),
    ("weight_decay", lambda v: v == "auto" or (is_number(v) and v >= 0), "auto or at least 0"),
    ("weight_decay", lambda v: v == "auto" or v <= LARGEST, "at most 3e38, the largest float32"),
    ("epochs", lambda v: v == "auto" or (is_int(v) and v >= 1), "auto or a whole number, at least 1"),
    ("log_every", lambda v: v == "auto" or (is_int(v) and v >= 0), "auto or a whole number, at least 0"),
    *[(name, lambda v: v == "auto" or v < 2**63, "below 2^63") for name in ("epochs", "log_every")],
    ("lr_gamma", lambda v: is_number(v) and 0 < v <= 1, "in (0, 1]"),
    *[(name, _at_least(least), f"a whole number, at least {least}") for name, least in _LEAST.items()],
    *[(name, lambda v: v < 2**63, "below 2^63") for name in _LEAST],
    ("seed", lambda v: v < 2**32, "below 2^32"),
    ("val_fraction", lambda v: is_number(v) and 0 <= v < 1, "in [0, 1)"),
    ("test_fraction", lambda v: is_number(v) and 0 < v < 1, "in (0, 1)"),
    ("pixel_scale", lambda v: v is None or (is_number(v) and v > 0), "above 0"),
    ("delimiter", lambda v: v in DELIMITER_WORDS or (len(v) == 1 and v not in '"\r\n'),
     "auto, tab, space or one character"),
    ("encoding", is_encoding, ENCODINGS),
    ("memory", lambda v: re.fullmatch(r"auto|0*[1-9]\d{0,5}[kmgKMG]", str(v)), "auto, or a size such as 500m or 4g"),
    ("threads", lambda v: v in ("auto", "tune") or (str(v).isdecimal() and 1 <= int(v) <= 1024),
     "auto, tune or a number from 1 to 1024"),
    ("timeout", lambda v: is_number(v) and 0 < v < 1e6, "seconds, above 0"),
    ("save_every", lambda v: re.fullmatch(r"0*[1-9]\d{0,8}[sm]?", str(v)),
     "epochs (a number above 0), or time such as 30s or 5m"),
]  # fmt: skip


def _options() -> dict[str, Collection[str]]:
    """Return the allowed names of each setting that is a name."""
    kinds = typing.get_type_hints(TrainConfig)
    options = {name: typing.get_args(kind) for name, kind in kinds.items() if typing.get_origin(kind) is Literal}
    tables = {"activation": core.ACTIVATIONS, "output_activation": ["none", *core.ACTIVATIONS], "init": INITS}
    return {**options, **tables, "loss": ["auto", *losses()], "lr_schedule": SCHEDULES}


def read_toml(path: Path) -> dict[str, Any]:
    """Return the settings of a TOML file, by field name.

    Raises:
        UserError: If the file cannot be read, is not TOML, or has an unknown key.
    """
    where = setting("config", path)
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise UserError(f"{where}: there is no such file") from error
    except OSError as error:
        raise UserError(f"{where}: {error.strerror}") from error
    except ValueError as error:  # invalid TOML, UTF-8 or file name
        raise UserError(f"{where}: not TOML: {error}") from error
    fields = _fields()
    result: dict[str, Any] = {}
    for key, value in settings.items():
        name = key.replace("-", "_")
        if name in result:
            raise UserError(f"{where}: {key} is given twice, with - and with _")
        if name not in fields or name == "config":
            near = difflib.get_close_matches(name, set(fields) - {"config"}, n=1)
            hint = f"did you mean {near[0].replace('_', '-')!r}?" if near else "they are the flags of `train`"
            raise UserError(f"{where}: unknown setting {key!r}: {hint}")
        result[name] = _typed(where, key, value, fields[name])
    return result


# The value of a setting that a config.json or a checkpoint does not have: the default of version 0.1, whatever it is
# today. These rows never change; a setting added later gets a row with the value that older versions used.
WHEN_ABSENT: dict[str, Any] = {
    "data": "digits", "target": (), "drop": (), "keep_column": (), "categorical": (), "na_values": (),
    "decimal": "auto", "task": "auto", "missing": "refuse", "rare_classes": "drop", "columns": "0.1",
    "delimiter": "auto", "encoding": "auto", "header": True, "sheet": None, "test": None, "cache": None,
    "memory": "auto",
    "hidden": (128, 64), "activation": ("relu",), "output_activation": "none", "class_weight": "none",
    "one_logit": False, "loss": "auto", "init": "torch",
    "lr": "auto", "momentum": 0.9, "nesterov": False, "weight_decay": 0.0, "decay_biases": False,
    "lr_schedule": "constant", "lr_step": 10, "lr_gamma": 0.1, "lr_warmup": 0, "epochs": 30, "batch_size": 16,
    "val_fraction": 0.1, "val_split": "random", "test_fraction": 0.2, "scaling": "auto", "pixel_scale": None,
    "folds": 0, "fold": 0, "augment": "none", "weights": "final", "patience": 0, "seed": 42,
    "engine": "autograd", "device": "auto", "dtype": "float32", "precision": "float32", "threads": "auto",
    "exchange": "auto", "exchange_dtype": "same", "parallel": "ddp", "timeout": 300.0,
    "run_dir": None, "log_every": 5, "save_every": "1m", "keep": 1, "config": None,
}  # fmt: skip


def from_json(where: str, settings: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration that a run saved with ``to_json``; other keys are ignored.

    A setting that is absent has its value of version 0.1 (``WHEN_ABSENT``), not today's default.

    Args:
        where: The file, as error messages name it.
        settings: The settings as JSON values.

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


# By the annotation of a setting: what its value in a file must be, and whether it is that; others are text.
_FILE_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "bool": ("true or false", lambda v: isinstance(v, bool)),
    "int": ("a whole number", is_int),
    "float": ("a number", is_number),
    "float | None": ("a number", is_number),
    "float | Literal['auto']": ("auto or a number", lambda v: v == "auto" or is_number(v)),
    "int | Literal['auto']": ("auto or a whole number", lambda v: v == "auto" or is_int(v)),
    "tuple[int, ...]": ("a list of whole numbers", lambda v: isinstance(v, list) and all(map(is_int, v))),
    "tuple[str, ...]": (
        "a name or a list of names",
        lambda v: isinstance(v, str) or (isinstance(v, list) and all(isinstance(name, str) for name in v)),
    ),
}


def _typed(where: str, key: str, value: Any, kind: str) -> Any:
    """Check a value of a file against the annotation of its setting; numbers are accepted for some texts."""
    if key.replace("-", "_") in ("threads", "save_every") and is_int(value):
        return str(value)
    right, fits = _FILE_TYPES.get(kind, ("text", lambda v: isinstance(v, str)))
    if not fits(value):
        raise UserError(f"{where}: {key} must be {right}, got {value!r}")
    if kind == "Path | None":
        return Path(value)
    return float(value) if kind.startswith("float") and value != "auto" else value


def _require(ok: object, name: str, right: str, got: object) -> None:
    if not ok:
        raise UserError(f"{setting(name)} must be {right}, got {repr(got) if name == 'delimiter' else got}")
