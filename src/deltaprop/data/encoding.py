"""From the columns of a table to the inputs of a network: fitted on the training rows and saved with the model.

Numbers come first, in the order of the table, each standardised by the data set's `Scaling`; then, for each column of
categories, one input per category: 1 where the cell has it, else 0. A category that no training row has, and a missing
one, is 0 everywhere. A missing number is the mean of the training rows. ``encoder.py`` applies it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from deltaprop.data.columns import ABSENT, Column, Kind, Numbers
from deltaprop.data.scaling import Scaling
from deltaprop.data.splits import Rows
from deltaprop.errors import UserError

UNKNOWN = -1  # the index of a category that no training row has


@dataclass(frozen=True)
class Input:
    """A column of inputs, as the training rows have it.

    Attributes:
        name: In the header.
        kind: ``"numbers"`` or ``"categories"``.
        categories: Their names, sorted.
        fill: The value of a missing number; None if none may be missing.
    """

    name: str
    kind: Kind
    categories: tuple[str, ...] = ()
    fill: float | None = None


@dataclass(frozen=True)
class Encoding:
    """The inputs that the columns of a table become.

    Attributes:
        inputs: The columns, in the order of the table.
        targets: The names of what is predicted.
    """

    inputs: tuple[Input, ...]
    targets: tuple[str, ...]

    @cached_property
    def numbers(self) -> list[int]:
        """The indices of the columns of numbers."""
        return [at for at, column in enumerate(self.inputs) if column.kind == "numbers"]

    @cached_property
    def categories(self) -> list[int]:
        """The indices of the columns of categories."""
        return [at for at, column in enumerate(self.inputs) if column.kind == "categories"]

    @property
    def names(self) -> list[str]:
        """The names of the encoded inputs, such as ``["age", "city=Paris", "city=Rome"]``."""
        one_hot = [f"{self.inputs[at].name}={name}" for at in self.categories for name in self.inputs[at].categories]
        return [self.inputs[at].name for at in self.numbers] + one_hot

    def __len__(self) -> int:
        """Return n, the number of encoded inputs."""
        return len(self.numbers) + sum(len(self.inputs[at].categories) for at in self.categories)

    def columns(self) -> list[Column]:
        """Return the columns of inputs, to be read from another table."""
        return [
            Column(c.name, c.kind, forced=True, verbatim=any(name.lower() in ABSENT for name in c.categories))
            for c in self.inputs
        ]

    def indices(self, at: int, names: Iterable[str]) -> Rows:
        """Return the index of each of these names among the categories of a column, and `UNKNOWN` for a missing one."""
        known = {name: index for index, name in enumerate(self.inputs[at].categories)}
        return np.array([*(known.get(name, UNKNOWN) for name in names), UNKNOWN], dtype=np.intp)

    def to_json(self) -> dict[str, Any]:
        """Return the encoding as config.json has it."""
        inputs = [
            {"name": c.name, "kind": c.kind, **({"categories": [*c.categories]} if c.kind == "categories" else {}),
             **({"fill": c.fill} if c.fill is not None else {})}
            for c in self.inputs
        ]  # fmt: skip
        return {"inputs": inputs, "targets": [*self.targets]}

    @classmethod
    def from_json(cls, found: Any) -> Encoding:
        """Return the encoding that :meth:`to_json` gave.

        Raises:
            UserError: If it is damaged.
        """
        try:
            inputs = tuple(_input(entry) for entry in found["inputs"])
            targets = tuple(found["targets"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"damaged: its columns ({type(error).__name__}: {error})") from error
        names = [c.name for c in inputs]
        if len({*names, *targets}) != len(names) + len(targets) or not all(isinstance(t, str) for t in targets):
            raise UserError("damaged: a column occurs twice in it")
        return cls(inputs, targets)


def _input(entry: Mapping[str, Any]) -> Input:
    """Return a column from its JSON, after checking it."""
    name, kind, fill, names = entry["name"], entry["kind"], entry.get("fill"), entry.get("categories", [])
    if not isinstance(name, str) or kind not in ("numbers", "categories"):
        raise ValueError(f"{name!r:.40} of {kind!r:.40}")
    are_names = isinstance(names, list) and all(isinstance(n, str) for n in names) and len({*names}) == len(names)
    if not are_names or (kind == "categories" and not names):
        raise ValueError(f"the categories of {name!r:.40}")
    if fill is not None and not (isinstance(fill, int | float) and math.isfinite(fill)):
        raise ValueError(f"the fill of {name!r:.40}")
    return Input(name, kind, tuple(names), None if fill is None else float(fill))


def fit_encoding(
    columns: Sequence[Column], targets: Sequence[str], blocks: Iterable[Numbers], *, fills: bool, where: str
) -> tuple[Encoding, Scaling]:
    """Return the encoding of the training rows, and the scaling of the encoded inputs to mean 0 and deviation 1.

    The mean and the deviation are those of the present numbers (scikit-learn's ``StandardScaler``, block by block).
    One-hot inputs are not scaled.

    Args:
        columns: The columns of inputs, after all rows were read.
        targets: The names of what is predicted.
        blocks: The training rows [N, p], as they were read.
        fills: Whether numbers may be missing.
        where: The table, in messages.

    Raises:
        UserError: If a column has no value in any training row, or its deviation is not finite.
    """
    from sklearn.preprocessing import StandardScaler

    numbers = [at for at, column in enumerate(columns) if column.kind != "categories"]
    scaler = StandardScaler()
    seen: list[set[float]] = [set() for _ in columns]
    present = np.zeros(len(columns), dtype=np.int64)
    for block in blocks:
        present += (~np.isnan(block)).sum(axis=0)
        if numbers:
            with np.errstate(over="ignore", invalid="ignore"):  # reported below, with the column's name
                scaler.partial_fit(block[:, numbers])
        for at, column in enumerate(columns):
            if column.kind == "categories":
                seen[at].update(np.unique(block[:, at]).tolist())
    mean, scale = (scaler.mean_, scaler.scale_) if numbers else (np.empty(0), np.empty(0))
    inputs: list[Input] = []
    for at, column in enumerate(columns):
        if not present[at]:
            raise UserError(f"{where}: column {column.name!r} has no value in any training row: leave it out by `drop`")
        if column.kind == "categories":
            names = sorted(name for name, number in column.names.items() if number in seen[at])
            inputs.append(Input(column.name, "categories", tuple(names)))
            continue
        middle, spread = (float(values[numbers.index(at)]) for values in (mean, scale))
        if not math.isfinite(middle) or not math.isfinite(spread):
            raise UserError(
                f"{where}: column {column.name!r} cannot be standardised: its mean is {middle} and its deviation "
                f"{spread}: leave it out by `drop`, or write it in another unit"
            )
        inputs.append(Input(column.name, "numbers", fill=middle if fills else None))
    encoding = Encoding(tuple(inputs), tuple(targets))
    scaling = Scaling.identity(len(encoding))
    scaling.mean[: len(numbers)] = torch.from_numpy(mean)
    scaling.scale[: len(numbers)] = torch.from_numpy(scale)
    return encoding, scaling


def unseen_categories(encoding: Encoding, columns: Sequence[Column], where: str) -> list[str]:
    """Return a warning for each column with categories that no training row has.

    Args:
        encoding: Fitted on the training rows.
        columns: As they were read from other rows.
        where: The table of those rows.
    """
    lines = []
    for own, column in zip(encoding.inputs, columns, strict=True):
        unseen = [name for name in column.names if name not in own.categories] if own.kind == "categories" else []
        if unseen:
            names = "a name" if len(unseen) == 1 else f"{len(unseen)} names"
            lines.append(f"{where}: column {own.name!r} has {names} that no training row has, such as {unseen[0]!r}")
    return lines
