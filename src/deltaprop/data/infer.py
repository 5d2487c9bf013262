"""Which columns of a table are used, and how each is read: decided from their profiles, and told.

Row numbers, identifiers and columns without a value are left out. A column has numbers, categories or dates; text among
numbers is refused, and then all problems of the table are reported at once, with settings that solve them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from deltaprop.data.cells import ABSENT, CURRENCIES, PLAIN, Form, are_numbers, shape_of
from deltaprop.data.columns import LONGEST_QUOTE, Column, DatePart, TableOptions, quoted_cell
from deltaprop.data.dates import MONTHS, in_order, matches
from deltaprop.data.profile import DATE_PARTS, MOST_COUNTED, MOST_VALUES, Profile
from deltaprop.data.table import NUMBER, Table, unlisted
from deltaprop.errors import UserError, counted, listed, setting

MANY_NAMES = 100  # of a column: with more, the frequent ones alone have an input of their own
MOST_NAMES = 300  # that have an input of their own
ENOUGH = 5, 10  # rows of a frequent name: at least, and at most that are asked for
FEW = 0.1  # of the cells: text among so many numbers is an error of a few cells
FREQUENT = 0.05  # of the rows: None is a name if it is in so many
TYPED = 5  # words that a hint asks to be typed


@dataclass(frozen=True)
class TablePlan:
    """How a table is read.

    Attributes:
        inputs: The columns of inputs, in the order of the table.
        targets: The columns of targets.
        left_out: Columns that are not used, each with the reason.
        notes: What else the user is told.
    """

    inputs: list[Column]
    targets: list[Column]
    left_out: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class _Reading:
    """How a column is read: its columns, or why it is left out (or both, if it may be used after all), or a problem."""

    columns: list[Column] = field(default_factory=list)
    reason: str = ""
    problem: str = ""
    remedy: tuple[str, tuple[str, ...]] = ("drop", ())
    further: tuple[str, tuple[str, ...]] = ("drop", ())  # what solves the problem that it has as an input
    notes: list[str] = field(default_factory=list)


def choose_columns(
    table: Table, options: TableOptions, others: Collection[str] = ()
) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """Return the names of inputs, those of targets, and columns that are left out, each with the reason.

    ``others`` are columns of the table to test on, which may be dropped too.

    Raises:
        UserError: If a chosen column does not exist, or no input is left.
    """
    names = table.names
    for flag in ("target", "drop", "categorical", "keep_column"):
        for name in getattr(options, flag):
            if name not in names and not (flag == "drop" and name in others):
                raise UserError(f"{table.path}: {setting(flag, name)}: {unlisted(name, [n for n in names if n])}")
    last = next((name for name in reversed(names) if name and name not in options.drop), names[-1])
    targets = [*dict.fromkeys(options.target)] or [last]
    for name in options.drop:
        if name in targets:
            raise UserError(f"{setting('drop', name)}: it is the target, which cannot be left out")
        for flag in ("categorical", "keep_column"):
            if name in getattr(options, flag):
                raise UserError(f"{setting(flag, name)}: it is left out by `drop`; choose one of them")
    left_out = [(name, "") for name in names if name in options.drop]
    inputs = [name for name in names if name not in targets and name not in options.drop]
    if not inputs:
        raise UserError(f"{table.path}: no column is left as an input beside the target {targets[0]!r}")
    return inputs, targets, left_out


def infer(
    table: Table, options: TableOptions, profiles: Mapping[str, Profile], others: Collection[str] = ()
) -> TablePlan:
    """Return how a table is read.

    Args:
        table: The table.
        options: The user's choices.
        profiles: The profiles of all columns that are not dropped.
        others: The columns of the table to test on.

    Raises:
        UserError: If a column cannot be read; its ``remedy`` has settings that solve all problems of the table.
    """
    names, target_names, left_out = choose_columns(table, options, others)
    if not profiles[target_names[0]].rows:
        raise UserError(f"{table.path}: there is a header, and no row below it")
    if options.columns == "0.1":
        inputs, targets = ([_as_in_0_1(profiles[name], options) for name in part] for part in (names, target_names))
        return TablePlan(inputs, targets, tuple(left_out))
    grouped = [name for name, found in profiles.items() if 0 < found.points == found.grouped]
    has_commas = bool(grouped) and options.decimal == "auto" and _has_decimal_commas(profiles.values(), options)
    by_name = dict.fromkeys(profiles, options)
    by_name |= dict.fromkeys(grouped, replace(options, decimal="comma")) if has_commas else {}
    readings = {name: _input(profiles[name], by_name[name]) for name in names}
    used = {name for name, reading in readings.items() if reading.columns and not reading.reason}
    problems = any(reading.problem for reading in readings.values())
    if not used and not problems:  # the only inputs are used, whatever they look like
        used = {name for name, reading in readings.items() if reading.columns}
    of_targets = {name: _target(profiles[name], by_name[name]) for name in target_names}
    if not options.target:
        last = target_names[0]
        _suggest_target(of_targets[last], profiles[last], readings, profiles, by_name[last])
    _refuse_problems(table, {**readings, **of_targets}, of_targets)
    if not used:
        reasons = listed([f"{name or 'the first'} ({reading.reason})" for name, reading in readings.items()], 4)
        hint = "; write a name for it into the header to use it" if "" in readings else ""
        left = f"no column is left as an input beside the target {target_names[0]!r}"
        raise UserError(f"{table.path}: {left}: {reasons}{hint}")
    notes = [note for reading in of_targets.values() for note in reading.notes]
    for name, reading in readings.items():
        if name in used:
            notes += reading.notes
        else:
            left_out.append((name, reading.reason))
    order = {name: at for at, name in enumerate(table.names)}
    return TablePlan(
        [_unique(column, table) for name in names if name in used for column in readings[name].columns],
        [column for reading in of_targets.values() for column in reading.columns],
        tuple(sorted(left_out, key=lambda entry: order.get(entry[0], -1))),
        tuple(notes),
    )


def _unique(column: Column, table: Table) -> Column:
    """Return a part of a date with a name that no column of the table has."""
    while column.part and column.name != column.source and column.name in table.names:
        column = replace(column, name=f"{column.name}_")
    return column


def _refuse_problems(table: Table, readings: Mapping[str, _Reading], targets: Collection[str]) -> None:
    """Raise one error with all problems, and the settings that solve them."""
    wrong = {name: reading for name, reading in readings.items() if reading.problem}
    if not wrong:
        return
    texts = [f"{'target' if name in targets else 'column'} {name!r}: {r.problem}" for name, r in wrong.items()]
    remedy: dict[str, list[str]] = {}
    solved = all(reading.remedy[1] for reading in wrong.values())
    for flag, values in (remedy for reading in wrong.values() for remedy in (reading.remedy, reading.further)):
        if not values:
            continue
        remedy.setdefault(flag, []).extend(value for value in values if value not in remedy.get(flag, []))
    many = f"{counted(len(wrong), 'column')} cannot be read as they are: " if len(wrong) > 1 else ""
    hints = " ".join(setting(flag, *values) for flag, values in remedy.items() if values)
    asks = f": correct the file, or take {hints}" if solved and hints else ""
    raise UserError(f"{table.path}: {many}{'; '.join(texts)}{asks}", remedy if solved else {})


def _as_in_0_1(profile: Profile, options: TableOptions) -> Column:
    """Return a column as version 0.1 read it, whose runs have only columns that are numbers or text throughout."""
    is_named = profile.name in options.categorical
    is_text = is_named or profile.numbers < profile.present
    return Column(
        profile.name, "categories" if is_text else "numbers", present=ABSENT[1:] if is_named else (), one_spelling=False
    )


def _input(profile: Profile, options: TableOptions) -> _Reading:
    """Return how a column of inputs is read."""
    name, is_wanted = profile.name, profile.name in (*options.keep_column, *options.categorical)
    reading = _read(profile, options)
    if (not name or re.fullmatch(r"Unnamed: \d+", name)) and name not in options.keep_column:  # as pandas calls it
        reading.reason, reading.problem = "row names", ""
        reading.columns = []
        return reading
    if is_wanted or not reading.columns or name in options.categorical:
        if reading.columns and reading.columns[0].kind == "categories" and name not in options.categorical:
            _limit_names(reading, profile, is_wanted)
        return reading
    column = reading.columns[0]
    if profile.is_constant and not profile.missing and not column.part:
        reading.reason = "the same in every row"
    elif column.kind == "numbers" and not column.part and profile.starts is not None and profile.rows > 2:
        reading.reason = f"row numbers, {profile.starts} to {profile.rows - 1 + profile.starts}"
    elif column.kind == "categories":
        _limit_names(reading, profile, is_wanted)
    return reading


def _limit_names(reading: _Reading, profile: Profile, is_wanted: bool) -> None:
    """Leave out an identifier; keep the frequent ones of very many names."""
    names, rows = profile.names, profile.names.total()
    several = len(names) > MANY_NAMES or profile.overflow or len(names) > rows / 2
    if not several or len(names) < 3:
        return
    column = reading.columns[0]
    least = min(max(ENOUGH[0], rows // 200), ENOUGH[1])
    frequent = [name for name, count in names.most_common(MOST_NAMES) if count >= least]
    total = f"more than {MOST_COUNTED}" if profile.overflow else str(len(names))
    if names.most_common(1)[0][1] == 1:
        reading.reason = "" if is_wanted else f"{total} names, all different"
    elif not frequent or profile.other_dates > profile.present / 2:
        reading.reason = "" if is_wanted else f"{total} names, none of them frequent"
    if reading.reason and profile.other_dates > profile.present / 2 and not profile.are_seasons:
        reading.reason += f"; {_hint_at_dates(profile)}"
    if reading.reason or not frequent:
        if len(names) > MOST_NAMES or profile.overflow:
            frequent = [name for name, _ in names.most_common(MOST_NAMES)]
        else:
            return
    column.frequent = tuple(sorted(frequent))
    others = len(names) - len(frequent)
    if others:
        have = f"the {len(frequent)} most frequent have inputs of their own"
        if len(frequent) == 1:
            have = "the most frequent has an input of its own"
        reading.notes.append(f"column {profile.name!r} has {total} names: {have}, the others share one")
    else:
        column.frequent = None


def _target(profile: Profile, options: TableOptions) -> _Reading:
    """Return how a column of targets is read."""
    reading = _read(profile, options)
    if not reading.problem and not reading.columns:
        reading.problem = "it has no value: name another column by `target`"
    elif reading.columns and reading.columns[0].part:
        reading.problem = "it has dates, which cannot be predicted: name another column by `target`"
    if reading.problem and reading.remedy[0] in ("drop", "categorical"):
        reading.remedy = ("drop", ())
    return reading


def _suggest_target(
    reading: _Reading,
    profile: Profile,
    readings: Mapping[str, _Reading],
    profiles: Mapping[str, Profile],
    options: TableOptions,
) -> None:
    """Name the nearest column that could be a target where the last one, which is the default, cannot."""
    if reading.columns and not reading.problem:
        names, single = len(profile.names), sum(count == 1 for count in profile.names.values())
        is_text = reading.columns[0].kind == "categories" and names > 1
        if is_text and single == names:
            reading.problem = f"its {names} names are all different"
        elif is_text and 2 * single > profile.names.total() and options.rare_classes == "drop":
            reading.problem = f"{single} of its {names} names have one row"
        elif reading.columns[0].kind == "numbers" and len(profile.values) == 1 and profile.numbers == profile.present:
            reading.problem = f"it is {next(iter(profile.values)):g} in every row"
    able = [
        name for name, r in readings.items()
        if name and r.columns and not (r.reason or r.problem or r.columns[0].part or profiles[name].is_constant)
    ]  # fmt: skip
    if reading.problem and not reading.remedy[1] and able:
        reading.problem = reading.problem.partition(":")[0]
        reading.remedy = ("target", (able[-1],))
        as_input = _input(profile, options)
        if as_input.problem:
            reading.further = as_input.remedy


def _read(profile: Profile, options: TableOptions) -> _Reading:
    """Return how a column is read, whatever it is for."""
    name = profile.name
    absent = tuple(word.lower() for word in options.na_values)
    if name in options.categorical:
        return _Reading([Column(name, "categories", absent=absent, present=ABSENT[1:])])
    odd = profile.families - {"numbers", "text", "dates"}
    if odd:
        return _Reading(problem=f"it is of type {min(odd)}: neither numbers, text nor dates", remedy=("drop", (name,)))
    if profile.infinite is not None:
        return _Reading(
            problem=f"row {profile.infinite} is infinite, or too large for a number", remedy=("drop", (name,))
        )
    if profile.present == profile.signs.total():
        return _Reading(reason="no value")
    if profile.large and not profile.dates:
        note = f"column {name!r} has integers beyond 2^53, which are read as names"
        return _names(profile, absent, note)
    if profile.families == {"numbers"}:
        return _Reading([Column(name, absent=absent)])
    if profile.families == {"dates"} or profile.dates == profile.present - profile.signs.total() or profile.order:
        return _dates(profile, absent)
    return _text(profile, options, absent)


def _text(profile: Profile, options: TableOptions, absent: tuple[str, ...]) -> _Reading:
    """Return how a column of text is read: as numbers, or as names; refuse a few texts among numbers or dates."""
    name, present = profile.name, profile.present - profile.signs.total()
    if profile.codes and not profile.points and profile.numbers == present:
        code = next((text for text in profile.cells if text[:1] == "0" and len(text) > 1), "007")
        return _names(profile, absent, f"column {name!r} has codes such as {code}, which are read as names")
    form, read, ambiguous = _form(profile, options)
    if ambiguous:
        return _Reading(
            problem=f"{ambiguous!r} may be {ambiguous.replace(',', '')} (`decimal='point'`) or "
            f"{ambiguous.replace(',', '.')} (`decimal='comma'`)",
            remedy=("decimal", ("point",)),
        )
    if read == present:
        notes = [f"column {name!r} is read as numbers written with {form.describe()}"] if form != PLAIN else []
        brackets = next((text for text in profile.cells if text.startswith("(")), None)
        if brackets:
            notes.append(f"column {name!r} has numbers in brackets such as {brackets}: they are negative")
        return _Reading([Column(name, form=form, absent=absent)], notes=[*notes, *_note_of_signs(profile)])
    texts = present - read - profile.dates
    few = max(1, FEW * present)
    orders = profile.likely_orders
    if len(orders) == 1 and 0 < present - profile.in_orders[orders[0]] <= few and not profile.are_seasons:
        return _few_texts(profile, Form(date=orders[0]), "dates")
    if 0 < texts + read <= few and profile.dates > present / 2:
        return _few_texts(profile, form, "dates")
    if 0 < texts <= few and read > present / 2:
        return _few_texts(profile, form, "numbers")
    note, marks = "", _marks(profile)
    have_units = any(mark[:1].isalpha() and mark not in CURRENCIES for mark in marks)
    if len(marks) > 1 and not have_units and texts == present - read:
        odd = " and ".join(repr(text) for text in [*marks.values()][:2])
        return _Reading(problem=f"its numbers are written in different ways, such as {odd}", remedy=("drop", (name,)))
    if read:
        note = f"column {name!r} is read as names, and {read} of {present} cells look like numbers"
    elif profile.other_dates > present / 2 and not profile.are_seasons:
        note = f"column {name!r} is read as names: {_hint_at_dates(profile)}"
    elif len(marks) == 1:
        note = f"column {name!r} is read as names, such as {next(iter(marks.values()))!r}"
    return _names(profile, absent, note)


def _few_texts(profile: Profile, form: Form, others: str) -> _Reading:
    """Return the problem of a few texts among numbers or dates."""
    import pyarrow

    name = profile.name
    texts = [*profile.first]
    fits = are_numbers(pyarrow.array(texts, pyarrow.string()), form)
    if form.date:
        fits = np.array([in_order(text, form.date) is not None for text in texts], dtype=bool)
    wrong = {text: profile.first[text] for text, is_right in zip(texts, fits, strict=True) if not is_right}
    if not wrong:
        return _Reading(problem=f"it has numbers among {others}", remedy=("categorical", (name,)))
    cells = [f"row {row} is {quoted_cell(text)}" for text, row in [*wrong.items()][:3]]
    more = ", …" if len(wrong) > len(cells) else ""
    problem = f"{', '.join(cells)}{more}, and the other cells are {others}"
    if all(re.fullmatch(r"\d+[A-Za-z]", text) for text in wrong):  # 136A among 136 and 137 is a code
        return _Reading(problem=problem, remedy=("categorical", (name,)))
    typed = len(wrong) <= TYPED and all(map(_can_be_typed, wrong))
    remedy = ("na_values", tuple(wrong)) if typed else ("drop", (name,))
    return _Reading(problem=problem, remedy=remedy)


def _note_of_signs(profile: Profile) -> list[str]:
    """Return what is told of signs such as - among numbers or dates, if there are some."""
    if not profile.signs:
        return []
    signs, cells = listed([repr(sign) for sign in profile.signs]), counted(profile.signs.total(), "cell")
    return [f"column {profile.name!r} has {cells} {signs} among its numbers: missing values"]


def _can_be_typed(text: str) -> bool:
    """Return whether a hint can ask to type a word: a short one, which is not taken for a flag."""
    return text.isprintable() and len(text) <= LONGEST_QUOTE and not text.startswith("-")


def _names(profile: Profile, absent: tuple[str, ...], note: str = "") -> _Reading:
    """Return a column of categories; None is one of them where it is frequent, or the only word for a missing value."""
    column, notes = Column(profile.name, "categories", absent=absent), [note] if note else []
    if len(profile.names) <= MANY_NAMES and (alike := _alike(profile.names)):
        notes.append(
            f"column {profile.name!r} has names that differ in capitals alone, such as {alike}: each is another"
        )
    nones = profile.absent["none"]
    if nones and (nones == profile.missing or nones >= FREQUENT * profile.rows):
        column.present = ("none",)
        notes.append(f"column {profile.name!r}: None is a name ({counted(nones, 'row')}), not a missing value")
    return _Reading([column], notes=notes)


def _alike(names: Iterable[str]) -> str:
    """Return names that differ in capitals alone; nothing if there are none, or one letter each as of genes."""
    by_lower: dict[str, list[str]] = {}
    for name in names:
        by_lower.setdefault(name.casefold(), []).append(name)
    found = next((same for lower, same in by_lower.items() if len(same) > 1 and len(lower) > 1), [])
    return " and ".join(map(quoted_cell, sorted(found)))


def _dates(profile: Profile, absent: tuple[str, ...]) -> _Reading:
    """Return a date as the number of its day, and its month, weekday and hour where they vary."""
    name, order = profile.name, profile.order
    form, found = Form(date=order), profile.orders[order] if order else profile.parts
    columns, signs = [Column(name, part="day", form=form, absent=absent)], _note_of_signs(profile)
    if profile.times == profile.dates and not order:
        return _Reading(columns, notes=[f"column {name!r} has times of day, which are numbers", *signs])
    told = [part for part in DATE_PARTS if part != "weekday" or order not in MONTHS]
    varying: list[DatePart] = [part for part in told if len(found[part]) > 1]
    columns += [Column(f"{name} ({part})", source=name, part=part, form=form, absent=absent) for part in varying]
    parts = " and ".join(filter(None, [", ".join(["day", *varying[:-1]]), *varying[-1:]]))
    has = f"column {name!r} has dates{f', written {order}' if order else ''}"
    note = f"{has}: {parts} are numbers" if varying else f"{has}: the day is a number"
    return _Reading(columns, notes=[note, *signs])


def _hint_at_dates(profile: Profile) -> str:
    """Return what would make dates of texts that look like them."""
    if {"month/day/year", "day/month/year"} <= {*profile.likely_orders}:
        return "day and month of its dates cannot be told apart: write them as 2020-12-31"
    return "dates are read if written as 2020-12-31"


def _form(profile: Profile, options: TableOptions) -> tuple[Form, int, str]:
    """Return how the numbers of a column are written, the number of cells that are such, and an ambiguous one, if any.

    A comma before three digits is a decimal sign or separates thousands: the other cells must show which.
    """
    import pyarrow

    if options.decimal == "comma" and 0 < profile.points == profile.grouped and profile.numbers == profile.present:
        return Form(",", "."), profile.numbers, ""  # 2.392 beside 1,5 in another column
    if not profile.cells:
        return PLAIN, profile.numbers, ""
    names = pyarrow.array([*profile.cells], pyarrow.string())
    counts = [*profile.cells.values()]
    plain = matches(names, NUMBER).tolist()
    found = [None if is_plain else shape_of(text) for text, is_plain in zip(profile.cells, plain, strict=True)]
    shapes: Counter[tuple[str, str]] = Counter()
    for shape, count in zip(found, counts, strict=True):
        if shape is not None:
            shapes[shape] += count
    mark = _mark(shapes, len(found), profile.numbers)
    decimal, thousands, is_ambiguous = _separators(shapes, mark, profile.points, options.decimal)
    form = Form(decimal, thousands, mark)
    read = sum(count for count, fits in zip(counts, are_numbers(names, form).tolist(), strict=True) if fits)
    if profile.overflow and read == profile.cells.total():  # the names that were counted stand for all
        read = profile.present
    else:  # plain numbers in blocks without text were not counted by name
        read += profile.numbers - sum(count for count, is_plain in zip(counts, plain, strict=True) if is_plain)
    if not is_ambiguous or read <= profile.present / 2:
        return form, read, ""
    return form, read, next(t for t, shape in zip(profile.cells, found, strict=True) if shape == (mark, "ambiguous"))


def _has_decimal_commas(profiles: Iterable[Profile], options: TableOptions) -> bool:
    """Return whether commas are the decimal signs, so that the point in a number such as 2.392 separates thousands.

    Some column has decimal commas then, and none has decimal points.
    """
    profiles = [*profiles]
    if any(profile.points > profile.grouped and profile.numbers == profile.present for profile in profiles):
        return False
    for profile in profiles:
        form, read, ambiguous = _form(profile, options)
        if form.decimal == "," and read == profile.present - profile.signs.total() and not ambiguous:
            return True
    return False


def _separators(
    shapes: Counter[tuple[str, str]], mark: str, points: int, decimal: Literal["auto", "point", "comma"]
) -> tuple[str, str, bool]:
    """Return the decimal sign, what separates thousands, and whether a comma may be either.

    ``points`` is the number of plain numbers with a decimal point.
    """
    fitting: Counter[str] = Counter()
    for (own, shape), count in shapes.items():
        if own in (mark, ""):
            fitting[shape] += count
    commas = sum(count for shape, count in fitting.items() if shape == "comma" or shape[11:] == " ,")
    points += sum(count for shape, count in fitting.items() if shape in ("point", "thousands ,") or shape[11:] == " .")
    told = decimal != "auto"
    if not told or not any("," in shape or shape in ("comma", "ambiguous") for shape in fitting):
        decimal = "comma" if fitting["thousands ."] or commas > points else "point"
    sign = "," if decimal == "comma" else "."
    separators = {shape[10]: count for shape, count in fitting.items() if shape.startswith("thousands ")}
    separators.pop(sign, None)
    if fitting["ambiguous"] and sign == ".":  # 1,234
        return sign, ",", not separators.get(",") and not points and not told
    return sign, max(separators, key=separators.__getitem__, default=""), False


def _marks(profile: Profile) -> dict[str, str]:
    """Return the marks of a column's cells, each with a cell that has it, if all are numbers with such marks."""
    examples: dict[str, str] = {}
    for text in profile.cells:
        shape = shape_of(text)
        if shape is None:
            return {}
        examples.setdefault(shape[0], text)
    return examples


def _mark(shapes: Counter[tuple[str, str]], different: int, plain: int) -> str:
    """Return the mark of a column's numbers: a currency, or a percent sign or a unit that each of many has."""
    marks: Counter[str] = Counter()
    for (mark, _), count in shapes.items():
        marks[mark] += count
    bare = marks.pop("", 0) + plain
    if not marks:
        return ""
    mark = marks.most_common(1)[0][0]
    if not mark[0].isalpha() and mark not in ("%", "‰", "°", "°C", "°F"):
        return mark  # a currency, which some cells may lack
    if mark in CURRENCIES:
        return mark
    is_unit = mark not in ("%", "‰")
    alone = len(marks) == 1 and not bare
    return mark if alone and (not is_unit or different > MOST_VALUES) else ""
