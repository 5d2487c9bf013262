"""From the columns of a table to the inputs of a network: fitted on the training rows and saved with the model.

Numbers come first, in the order of the table, each standardised by the data set's `Scaling`, a missing one being the
mean of the training rows. Then come inputs of 0 and 1 (scikit-learn's ``OneHotEncoder``, which is slower: a network
that trains from the disk waits for this): for each column of numbers of which more than a few are missing, whether it
is; for each column of categories one input per category, one for all others if there are very many, and one for a
missing cell if training has any. A category that no training row has is 0 everywhere where the others have no input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltaprop.data.cells import ABSENT, PLAIN, Form, canonical
from deltaprop.data.columns import Column, DatePart, Kind, Missing, Numbers, quoted_cell
from deltaprop.data.scaling import LEAST_STEPS, SQUARABLE, Moments, Scaling
from deltaprop.data.splits import Rows
from deltaprop.data.store import InMemory, OnDisk, Store
from deltaprop.errors import UserError, listed, setting

UNKNOWN = -1  # the index of a category that no training row has
MISSING_SHARE = 0.05  # of the training rows: a column of numbers with more missing cells has an input that tells


@dataclass(frozen=True)
class Input:
    """A column of inputs, as the training rows have it.

    Attributes:
        name: In the header.
        kind: ``"numbers"`` or ``"categories"``.
        categories: Their names, sorted.
        fill: The value of a missing number; None if none may be missing.
        absent: Whether a missing cell has an input of its own.
        others: Whether all other categories have an input of their own, one together.
        source: The name in the header, where the input has another: a part of a date.
        part: Which part of a date it is.
        form: How its numbers are written.
        present: Usual words for a missing value, in lower case, that are names here, besides those in ``categories``.
    """

    name: str
    kind: Kind
    categories: tuple[str, ...] = ()
    fill: float | None = None
    absent: bool = False
    others: bool = False
    source: str = ""
    part: DatePart = ""
    form: Form = PLAIN
    present: tuple[str, ...] = ()

    @property
    def flags(self) -> list[str]:
        """The names of its inputs of 0 and 1."""
        names = [*self.categories] if self.kind == "categories" else []
        return [*names, *(["(others)"] if self.others else []), *(["(missing)"] if self.absent else [])]

    def column(self, absent: tuple[str, ...] = ()) -> Column:
        """Return the column, to be read from another table; ``absent`` are further words for a missing value."""
        lower = {*self.present, *(name.lower() for name in self.categories)}
        return Column(
            self.name, self.kind, self.source, self.part, self.form, absent,
            present=tuple(word for word in ABSENT if word in lower),
            one_spelling=all(canonical(name) == name for name in self.categories),
        )  # fmt: skip


@dataclass(frozen=True)
class Encoding:
    """The inputs that the columns of a table become.

    Attributes:
        inputs: The columns, in the order of the table.
        targets: The names of what is predicted.
        target_forms: How the numbers of each target are written; empty for plain numbers.
    """

    inputs: tuple[Input, ...]
    targets: tuple[str, ...]
    target_forms: tuple[Form, ...] = ()

    @cached_property
    def numbers(self) -> list[int]:
        """The indices of the columns of numbers."""
        return [at for at, column in enumerate(self.inputs) if column.kind == "numbers"]

    @cached_property
    def categories(self) -> list[int]:
        """The indices of the columns of categories."""
        return [at for at, column in enumerate(self.inputs) if column.kind == "categories"]

    @cached_property
    def flagged(self) -> list[int]:
        """The indices of the columns with inputs of 0 and 1: first those of numbers, then those of categories."""
        return [*(at for at in self.numbers if self.inputs[at].absent), *self.categories]

    @property
    def names(self) -> list[str]:
        """The names of the encoded inputs, such as ``["age", "age=(missing)", "city=Paris", "city=Rome"]``."""
        flags = [f"{self.inputs[at].name}={name}" for at in self.flagged for name in self.inputs[at].flags]
        return [self.inputs[at].name for at in self.numbers] + flags

    def __len__(self) -> int:
        """Return n, the number of encoded inputs."""
        return len(self.numbers) + sum(len(self.inputs[at].flags) for at in self.flagged)

    def columns(self, absent: tuple[str, ...] = ()) -> list[Column]:
        """Return the columns of inputs, to be read from another table."""
        return [column.column(absent) for column in self.inputs]

    def indices(self, at: int, names: Iterable[str]) -> Rows:
        """Return the index among the flags of a column for each of these names, for an unknown and for a missing one.

        It is `UNKNOWN` where there is none.
        """
        column = self.inputs[at]
        known = {canonical(name): index for index, name in enumerate(column.categories)}
        known |= {name: index for index, name in enumerate(column.categories)}
        other = len(column.categories) if column.others else UNKNOWN
        missing = len(column.flags) - 1 if column.absent else UNKNOWN
        return np.array(
            [*(known.get(name, known.get(canonical(name), other)) for name in names), other, missing], dtype=np.intp
        )

    def encode(self, raw: Numbers) -> Numbers:
        """Return the inputs, [N, n], before scaling.

        Args:
            raw: [N, p], a category by its index, `UNKNOWN` for another one, NaN for a missing cell.
        """
        columns = [Column(c.name, names={name: at for at, name in enumerate(c.categories)}) for c in self.inputs]
        x = torch.empty(len(raw), len(self), dtype=torch.float64)
        encode = Encoder(self, columns, Scaling.identity(len(self)), x.dtype, "the rows")
        encode(InMemory(raw), np.arange(len(raw)), x)
        return x.numpy()

    def to_json(self) -> dict[str, Any]:
        """Return the encoding as config.json has it."""
        inputs = []
        for c in self.inputs:
            entry: dict[str, Any] = {"name": c.name, "kind": c.kind}
            entry |= {"categories": [*c.categories]} if c.kind == "categories" else {}
            entry |= {"fill": c.fill} if c.fill is not None else {}
            entry |= {name: getattr(c, name) for name in ("absent", "others", "source", "part") if getattr(c, name)}
            entry |= {} if c.form == PLAIN else {"form": c.form.to_json()}
            inputs.append(entry | ({"present": [*c.present]} if c.present else {}))
        forms = {"target_forms": [form.to_json() for form in self.target_forms]}
        return {"inputs": inputs, "targets": [*self.targets], **(forms if self.target_forms else {})}

    @classmethod
    def from_json(cls, found: Any) -> Encoding:
        """Return the encoding that :meth:`to_json` gave.

        Raises:
            UserError: If it is damaged.
        """
        try:
            inputs = tuple(_input(entry) for entry in found["inputs"])
            targets = tuple(found["targets"])
            forms = tuple(Form.from_json(form) for form in found.get("target_forms", ()))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"damaged: its columns ({type(error).__name__}: {error})") from error
        names = [c.name for c in inputs]
        if len({*names, *targets}) != len(names) + len(targets) or not all(isinstance(t, str) for t in targets):
            raise UserError("damaged: a column occurs twice in it")
        if len(forms) not in (0, len(targets)):
            raise UserError("damaged: the forms of its targets")
        return cls(inputs, targets, forms)


def _input(entry: Mapping[str, Any]) -> Input:
    """Return a column from its JSON, after checking it."""
    name, kind, fill, names = entry["name"], entry["kind"], entry.get("fill"), entry.get("categories", [])
    if not isinstance(name, str) or kind not in ("numbers", "categories"):
        raise ValueError(f"{name!r:.40} of {kind!r:.40}")
    are_names = isinstance(names, list) and all(isinstance(n, str) for n in names) and len({*names}) == len(names)
    if not are_names or (kind == "categories" and not names and not entry.get("absent")):
        raise ValueError(f"the categories of {name!r:.40}")
    if fill is not None and not (isinstance(fill, int | float) and math.isfinite(fill)):
        raise ValueError(f"the fill of {name!r:.40}")
    absent, others, part = entry.get("absent", False), entry.get("others", False), entry.get("part", "")
    source, form = entry.get("source", ""), Form.from_json(entry.get("form", {}))
    if not isinstance(absent, bool) or not isinstance(others, bool) or not isinstance(source, str):
        raise ValueError(f"the inputs of {name!r:.40}")
    if part not in get_args(DatePart):
        raise ValueError(f"the part {part!r:.40}")
    present = entry.get("present", [])
    if not isinstance(present, list) or not {*present} <= {*ABSENT}:
        raise ValueError(f"the words {present!r:.40}")
    fill = None if fill is None else float(fill)
    return Input(name, kind, tuple(names), fill, absent, others, source, part, form, tuple(present))


class Encoder:
    """Writes inputs of a network from rows of a store, when it trains and when it predicts.

    For a column of numbers x = (raw − m)/d. Rows on disk are float32 less a shift s and in a unit u per column, so that
    x = (s + u r − m)/d is one product and one sum in float32: x = r (u/d) + (s − m)/d, the factors in float64.

    Args:
        encoding: The inputs that the columns become.
        columns: The columns as they were read from this table: their categories may have other indices.
        scaling: The scaling of the encoded inputs, which is the identity for one-hot ones.
        dtype: The dtype of the inputs.
        place: Returns the file and number of a row for error messages; or the name of the table, where rows of the
            store have no numbers.
    """

    def __init__(
        self,
        encoding: Encoding,
        columns: list[Column],
        scaling: Scaling,
        dtype: torch.dtype,
        place: str | Callable[[int], str],
    ) -> None:
        self.encoding, self.scaling, self.dtype, self.place = encoding, scaling, dtype, place
        numbers = encoding.numbers
        side_by_side = bool(numbers) and numbers == list(range(numbers[0], numbers[-1] + 1))
        # A slice costs no copy.
        self._numbers: slice | list[int] = slice(numbers[0], numbers[-1] + 1) if side_by_side else numbers
        self._mean, self._scale = (values[: len(numbers)] for values in (scaling.mean, scaling.scale))
        self._indices = {at: encoding.indices(at, columns[at].names) for at in encoding.flagged}
        fills = [encoding.inputs[at].fill for at in numbers]
        self._fills: Tensor | None = None  # the scaled values of missing numbers
        if any(fill is not None for fill in fills):
            self._fills = (torch.tensor(fills, dtype=torch.float64) - self._mean) / self._scale
        self._lines: tuple[OnDisk, Tensor, Tensor] | None = None

    def __call__(self, store: Store, rows: Rows, x: Tensor) -> None:
        """Write the inputs of some rows, in the order given, into x, [M, n]; refuse a value too large for its dtype."""
        count = len(self.encoding.numbers)
        numbers, one_hot = x[:, :count], x[:, count:]
        raw: NDArray[Any]
        shift: Numbers | None = None
        if isinstance(store, OnDisk) and self.dtype == torch.float32:
            raw, shift, unit = store.take_stored(rows), store.shift, store.unit
            factor, offset = self._line(store)
            torch.mul(torch.from_numpy(raw)[:, self._numbers], factor, out=numbers)
            numbers += offset
        else:
            raw = store.take(rows)
            numbers.copy_((torch.from_numpy(raw)[:, self._numbers] - self._mean) / self._scale)
        if self._fills is not None:
            torch.where(numbers.isnan(), self._fills.to(self.dtype), numbers, out=numbers)
        if not numbers.sum().isfinite() and not numbers.isfinite().all():  # the sum is quick, and nearly always enough
            raise self._too_large(numbers, store, rows)
        one_hot.zero_()
        first = 0
        for at, indices in self._indices.items():
            cells = raw[:, at] if shift is None else raw[:, at] * np.float64(unit[at]) + float(shift[at])
            unknown, missing = len(indices) - 2, len(indices) - 1
            if self.encoding.inputs[at].kind == "numbers":
                cells = np.where(np.isnan(cells), missing, unknown)
            cells = np.nan_to_num(np.where(cells < 0, unknown, cells), nan=missing)
            category = indices[cells.astype(np.intp)]
            known = np.flatnonzero(category >= 0)
            one_hot[torch.from_numpy(known), torch.from_numpy(category[known] + first)] = 1.0
            first += len(self.encoding.inputs[at].flags)

    def _line(self, store: OnDisk) -> tuple[Tensor, Tensor]:
        """Return u/d and (s − m)/d of the columns of numbers, computed in float64."""
        if self._lines is None or self._lines[0] is not store:
            of = self.encoding.numbers
            factor = torch.from_numpy(store.unit[of]) / self._scale
            offset = (torch.from_numpy(store.shift[of]) - self._mean) / self._scale
            self._lines = store, factor.float(), offset.float()
        return self._lines[1:]

    def _too_large(self, x: Tensor, store: Store, rows: Rows) -> UserError:
        """Return the error for a column with values that are not finite after scaling: the largest of them."""
        column = int((~x.isfinite()).nonzero()[0, 1])
        values = store.take(rows)[:, self.encoding.numbers[column]]
        at = int(np.nanargmax(np.abs(values)))
        value = values[at]
        name = self.encoding.names[column]
        problem = f"column {name!r}: {value:g} does not fit in {self.dtype} after scaling"
        if isinstance(self.place, str):
            return UserError(f"{self.place}: {problem}: correct it, or {setting('drop', name)}")
        return UserError(f"{self.place(int(rows[at]))}, {problem}")


class InputStatistics:
    """What rows have in each of p columns of inputs; statistics of parts of the rows can be merged.

    Args:
        columns: The columns, whose names of categories grow while rows are read.

    Attributes:
        numbers: The indices of the columns of numbers.
        rows: The number of rows.
        present: The cells that are not missing, [p].
        least: The smallest value, [p].
        most: The largest value, [p].
        moments: Mean and variance of the columns of numbers.
        seen: The names of categories in each column.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns, self.rows = columns, 0
        self.numbers = [at for at, column in enumerate(columns) if column.kind == "numbers"]
        self.moments = Moments(len(self.numbers))
        self.present = np.zeros(len(columns), dtype=np.int64)
        self.least, self.most = np.full(len(columns), np.inf), np.full(len(columns), -np.inf)
        self.seen: list[set[str]] = [set() for _ in columns]
        self._known: list[set[float]] = [set() for _ in columns]  # the indices of these names

    def add(self, block: Numbers) -> None:
        """Add rows, [N, p]; the mean or variance of a column whose sums overflow is not finite."""
        if not len(block):
            return
        self.present += (~np.isnan(block)).sum(axis=0)
        self.rows += len(block)
        self._extend(np.fmin.reduce(block), np.fmax.reduce(block))
        self.moments.add(block[:, self.numbers])
        for at, column in enumerate(self.columns):
            if column.kind == "categories":
                found = np.unique(block[:, at])
                if new := {*found[~np.isnan(found)].tolist()} - self._known[at]:
                    names = [*column.names]  # by index
                    self._known[at] |= new
                    self.seen[at] |= {names[int(index)] for index in new}

    def merge(self, other: InputStatistics) -> None:
        """Add the rows that others are of, with the same columns."""
        self.present += other.present
        self.rows += other.rows
        self._extend(other.least, other.most)
        self.moments.merge(other.moments)
        for names, more in zip(self.seen, other.seen, strict=True):
            names |= more

    def _extend(self, least: Numbers, most: Numbers) -> None:
        self.least, self.most = np.fmin(self.least, least), np.fmax(self.most, most)

    def to_json(self) -> dict[str, Any]:
        """Return them without the columns."""
        arrays = {name: getattr(self, name).tolist() for name in ("present", "least", "most")}
        seen = [  # of very many names the frequent ones alone have inputs
            sorted(names if column.frequent is None else names & {*column.frequent})
            for names, column in zip(self.seen, self.columns, strict=True)
        ]
        return {"rows": self.rows, **arrays, "moments": self.moments.to_json(), "seen": seen}

    @classmethod
    def from_json(cls, columns: Sequence[Column], found: dict[str, Any]) -> InputStatistics:
        """Return what :meth:`to_json` gave."""
        statistics = cls(columns)
        statistics.rows, statistics.moments = found["rows"], Moments.from_json(found["moments"])
        statistics.present = np.array(found["present"], dtype=np.int64)
        statistics.least, statistics.most = np.array(found["least"]), np.array(found["most"])
        statistics.seen = [*map(set, found["seen"])]
        return statistics


def fit_encoding(
    columns: Sequence[Column],
    targets: Sequence[Column],
    blocks: Iterable[Numbers],
    *,
    missing: Missing,
    where: str,
) -> tuple[Encoding, Scaling, list[str]]:
    """Return the encoding of the training rows, the scaling of the inputs, and the columns without a value in them.

    The scaling is to mean 0 and deviation 1, those of the present numbers; inputs of 0 and 1 are not scaled. A column
    without a value has no effect. ``where`` names the table.

    Raises:
        UserError: If the deviation of a column is not finite.
    """
    statistics = InputStatistics(columns)
    for block in blocks:
        statistics.add(block)
    return encoding_of(statistics, targets, missing=missing, where=where)


def encoding_of(
    statistics: InputStatistics, targets: Sequence[Column], *, missing: Missing, where: str
) -> tuple[Encoding, Scaling, list[str]]:
    """Return what :func:`fit_encoding` returns, from the statistics of the training rows."""
    columns, numbers, moments = statistics.columns, statistics.numbers, statistics.moments
    least, most = statistics.least, statistics.most
    varies = (most > least)[numbers]
    mean, scale = moments.mean, np.where(varies, np.sqrt(moments.variance), 1.0)
    inputs: list[Input] = []
    for at, column in enumerate(columns):
        gaps = statistics.rows - int(statistics.present[at])
        about: dict[str, Any] = {"form": column.form, "part": column.part}
        about |= {"source": column.source} if column.source != column.name else {}
        if column.kind == "categories":
            names = statistics.seen[at]
            kept = names if column.frequent is None else names & {*column.frequent}
            about["absent"] = (missing == "auto" and gaps > 0) or not kept
            about["others"] = column.frequent is not None
            inputs.append(Input(column.name, "categories", tuple(sorted(kept)), present=column.present, **about))
            continue
        number = numbers.index(at)
        if most[at] > least[at]:
            _check_spread(float(mean[number]), float(moments.variance[number]), column, where)
        middle = float(mean[number])
        about["absent"] = missing == "auto" and column.part in ("", "day") and gaps > MISSING_SHARE * statistics.rows
        inputs.append(Input(column.name, "numbers", fill=None if missing == "refuse" else middle, **about))
    forms = tuple(column.form for column in targets)
    encoding = Encoding(
        tuple(inputs),
        tuple(column.name for column in targets),
        () if all(form == PLAIN for form in forms) else forms,
    )
    scaling = Scaling.identity(len(encoding))
    scaling.mean[: len(numbers)] = torch.from_numpy(mean)
    scaling.scale[: len(numbers)] = torch.from_numpy(scale)
    empty = [column.name for column, count in zip(columns, statistics.present, strict=True) if not count]
    return encoding, scaling, empty


def _check_spread(mean: float, variance: float, column: Column, where: str) -> None:
    """Refuse a column of different numbers whose variance float64 cannot hold, or cannot tell beside their mean."""
    deviation = math.sqrt(variance) if variance >= 0 else math.nan
    is_far = deviation < LEAST_STEPS * np.spacing(abs(mean))
    if math.isfinite(mean) and SQUARABLE[0] <= deviation <= SQUARABLE[1] and not is_far:
        return
    drop = setting("drop", column.source)
    what = "too far from 0 for their differences" if is_far and deviation >= SQUARABLE[0] else "too small or too large"
    raise UserError(
        f"{where}: column {column.source!r} has numbers {what} to be standardised in float64 (their mean is {mean:g}): "
        f"write it in another unit, or leave it out by {drop}",
        {"drop": (column.source,)},
    )


def unseen_categories(encoding: Encoding, columns: Sequence[Column], where: str, rows: int) -> list[str]:
    """Return a warning for each column of the table ``where`` with categories that no training row has.

    Raises:
        UserError: If all of a column's names are unseen, in two rows or more: it is written in another way.
    """
    lines = []
    for own, column in zip(encoding.inputs, columns, strict=True):
        if own.kind != "categories" or not column.names:
            continue
        known = {*own.categories, *map(canonical, own.categories)}
        unseen = [name for name in column.names if name not in known and canonical(name) not in known]
        example = quoted_cell(next(iter(unseen), ""))
        if len(unseen) == len(column.names) and rows > 1 and not own.others:
            raise UserError(
                f"{where}: column {column.source!r}: no training row has any of its names, such as {example}: "
                f"names in training are {listed(map(quoted_cell, own.categories), 4)}"
            )
        if len(unseen) == len(column.names) and rows > 1 and own.others:
            lines.append(
                f"{where}: column {own.name!r}: no training row has any of its names, such as {unseen[0]!r:.80}"
            )
        if unseen and not own.others:
            names = "a name" if len(unseen) == 1 else f"{len(unseen)} names"
            lines.append(f"{where}: column {column.source!r} has {names} not seen in training, such as {example}")
    return lines
