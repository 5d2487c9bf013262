"""Train/validation/test splits: each row in one part, the requested fraction, stratified, the same for one seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from deltaprop.data import Fold, load, split_indices
from deltaprop.errors import UserError


@settings(deadline=None, database=None, max_examples=50)
@given(
    n=st.integers(2, 60),
    fraction=st.floats(0.0, 0.99),
    seed=st.integers(0, 2**32 - 1),
    how=st.sampled_from(["random", "tail"]),
)
def test_every_row_goes_to_one_side(n, fraction, seed, how):
    """round(fraction · n) rows are held out, at least one, in rising order; or the split is refused: none is kept."""
    n_held = max(1, round(fraction * n)) if fraction else 0
    if n_held == n:
        with pytest.raises(UserError):
            split_indices(n, None, fraction, seed, how)
        return
    kept, held = split_indices(n, None, fraction, seed, how)
    assert len(held) == n_held
    assert sorted([*kept, *held]) == list(range(n))
    assert list(kept) == sorted(kept)
    assert list(held) == sorted(held)


def test_tail_is_the_last_rows():
    """0.3 of 10 rows: 7, 8, 9."""
    kept, held = split_indices(10, None, 0.3, 0, "tail")
    assert list(kept) == [0, 1, 2, 3, 4, 5, 6]
    assert list(held) == [7, 8, 9]


def test_tail_rounds_to_the_nearest_row():
    """1/6 of 60 000 is 10 000, also where 1/6 is written as 0.16667 (10 000.2 rows)."""
    for sixth in (1 / 6, 0.16667):
        assert len(split_indices(60000, None, sixth, 0, "tail")[1]) == 10000


@pytest.mark.parametrize(
    ("labels", "held"),
    [([0, 1, 0, 0, 1], [3, 4]), ([0, 0, 0, 1, 0], [4]), ([0, 0, 0, 1, 1], []), ([0, 0, 1, 1, 1], [3, 4])],
)
def test_a_class_that_only_the_tail_has_is_kept_for_training(labels, held):
    """0.4 of 5 rows is the last two, less those of classes that no other row has."""
    assert list(split_indices(5, np.array(labels), 0.4, 0, "tail")[1]) == held


def test_random_is_not_the_tail():
    """With seed 0, 100 of 1000 rows are not the last 100 (probability by chance: 1 in 10^139)."""
    assert split_indices(1000, None, 0.1, 0, "random")[1].min() < 900


def test_a_random_split_is_stratified():
    """70, 20 and 10 rows of 100, a tenth held out: 7, 2 and 1."""
    labels = np.repeat([0, 1, 2], [70, 20, 10])
    for seed in range(5):
        _, held = split_indices(100, labels, 0.1, seed, "random")
        assert list(np.bincount(labels[held])) == [7, 2, 1]


def test_without_labels_the_split_is_not_stratified():
    """Over 20 seeds the number of held-out rows among the first 10 varies."""
    counts = {int((split_indices(100, None, 0.1, seed, "random")[1] < 10).sum()) for seed in range(20)}
    assert len(counts) > 1


def test_rows_depend_on_the_seed():
    """The same seed gives the same rows, another seed different ones."""
    first, again, other = (split_indices(100, None, 0.2, seed, "random")[1] for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("how", ["random", "tail"])
def test_fraction_0_holds_out_nothing(how):
    """Also if stratifying is impossible."""
    kept, held = split_indices(3, np.array([0, 1, 2]), 0.0, 0, how)
    assert list(kept) == [0, 1, 2]
    assert len(held) == 0


def test_a_fraction_that_keeps_no_row_is_refused():
    """0.96 of 10 is 9.6, rounded 10."""
    with pytest.raises(UserError, match=r"^val_fraction=0\.96 of 10 rows holds out 10: both sides need a row"):
        split_indices(10, None, 0.96, 0, "random", name="val_fraction")


@settings(deadline=None, database=None, max_examples=100)
@given(
    labels=st.lists(st.integers(0, 6), min_size=2, max_size=40),
    fraction=st.floats(0.01, 0.9),
    seed=st.integers(0, 2**32 - 1),
    how=st.sampled_from(["random", "tail"]),
)
def test_every_class_keeps_a_row_however_few_rows_there_are(labels, fraction, seed, how):
    """The share that is held out, less what the classes must keep; a class of a single row holds out none."""
    y = np.array(labels)
    n_held = max(1, round(fraction * len(y)))
    assume(n_held < len(y))
    kept, held = split_indices(len(y), y, fraction, seed, how)
    assert sorted([*kept, *held]) == list(range(len(y)))
    assert {*y[kept]} == {*y}
    assert len(held) <= n_held
    counts = np.bincount(y)
    if how == "random":
        several = counts[counts > 1]
        assert len(held) == max(0, min(n_held, several.sum() - len(several)))


@pytest.mark.parametrize(
    ("counts", "fraction", "held"),
    [
        ([5, 5], 0.1, 1),  # one row for two classes: one of them has it
        ([5, 5], 0.9, 8),  # 9 would leave one row to train on for two classes
        ([10], 0.04, 1),  # 0.4 of a row
        ([20, 15, 12, 10, 6, 2], 0.2, 13),  # 65 rows of 6 classes: a fifth
        ([2, 6], 0.75, 6),  # a quarter of two rows may be none, and the class keeps one
    ],
)
def test_a_small_table_is_split_as_far_as_its_classes_allow(counts, fraction, held):
    labels = np.repeat(np.arange(len(counts)), counts)
    for seed in range(5):
        kept, held_out = split_indices(len(labels), labels, fraction, seed, "random")
        assert len(held_out) == held
        assert {*labels[kept]} == {*labels}


def test_unknown_split_is_refused():
    """The message suggests the nearest name."""
    with pytest.raises(UserError, match=r"did you mean 'tail'"):
        split_indices(10, None, 0.1, 0, "tial")  # type: ignore[arg-type]


@settings(deadline=None, database=None, max_examples=150)
@given(
    counts=st.lists(st.integers(2, 40), min_size=1, max_size=12),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**32 - 1),
    stratify=st.booleans(),
)
def test_the_random_split_is_scikit_learns(counts: list[int], fraction: float, seed: int, stratify: bool):
    """Row for row, for many class counts, including ties."""
    labels = np.random.RandomState(0).permutation(np.repeat(np.arange(len(counts)), counts))
    n, n_held = len(labels), round(fraction * len(labels))
    assume(len(counts) <= n_held <= n - len(counts))
    kept, held = train_test_split(
        np.arange(n), test_size=n_held, random_state=seed, stratify=labels if stratify else None
    )
    assume(not stratify or len({*labels[kept]}) == len(counts))  # it may leave a small class no row to train on
    actual = split_indices(n, labels if stratify else None, fraction, seed, "random")
    assert [part.tolist() for part in actual] == [sorted(kept.tolist()), sorted(held.tolist())]


def test_the_only_row_of_a_class_is_kept_for_training():
    """Class 2 has one row, the last; the other rows are split as if it did not exist."""
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2])
    kept, held = split_indices(9, labels, 0.25, 0, "random")
    assert 8 in kept
    assert np.bincount(labels[held]).tolist() == [1, 1]
    assert held.tolist() == split_indices(8, labels[:8], 0.25, 0, "random")[1].tolist()
    assert len(split_indices(2, np.array([0, 1]), 0.5, 0, "random")[1]) == 0


class TestFold:
    """K disjoint parts with the same share of each class."""

    @settings(deadline=None, database=None, max_examples=50)
    @given(labels=st.lists(st.integers(0, 4), min_size=4, max_size=60), of=st.integers(2, 8), seed=st.integers(0, 99))
    def test_each_row_is_held_out_once_and_classes_are_shared_equally(self, labels, of, seed):
        """Sizes and shares differ by at most one row; the only row of a class stays in training."""
        y = np.array(labels)
        counts = np.bincount(y)
        assume(len(y) >= of and counts[counts > 1].sum() >= of)
        parts = [Fold(number, of).split(len(y), y, seed) for number in range(1, of + 1)]
        held = [part[1] for part in parts]
        assert sorted(np.concatenate(held)) == [row for row in range(len(y)) if counts[y[row]] > 1]
        assert np.ptp([len(rows) for rows in held]) <= 1
        shares = np.array([np.bincount(y[rows], minlength=5) for rows in held])
        assert np.ptp(shares, axis=0).max() <= 1
        for kept, rows in parts:
            assert sorted([*kept, *rows]) == list(range(len(y)))
            assert {*y[rows]} <= {*y[kept]}  # every class to test on has rows to train on

    def test_the_seed_determines_the_parts(self):
        first, again, other = (Fold(2, 3).split(30, None, seed)[1].tolist() for seed in (0, 0, 1))
        assert first == again
        assert first != other

    def test_fewer_rows_than_folds_are_refused(self):
        with pytest.raises(UserError, match=r"`folds=5`: there are 4 rows, and each fold needs one: take at most 4"):
            Fold(1, 5).split(4, None, 0)
        with pytest.raises(UserError, match=r"`folds=5`: 4 rows are of a class with two .*: take at most 4"):
            Fold(5, 5).split(5, np.array([0, 0, 1, 1, 2]), 0)

    def test_a_data_set_is_tested_on_a_fold(self):
        """Moons has 1000 rows, 500 of each class."""
        data = [load("moons", test_fraction=Fold(number, 4), scaling="none") for number in (1, 2, 3, 4)]
        assert [(len(d.test), int(d.test.y.sum())) for d in data] == [(250, 125)] * 4
        rows = np.concatenate([d.test.x.numpy() for d in data])
        assert len(np.unique(rows, axis=0)) == 1000

    @pytest.mark.parametrize("fold", [Fold(0, 3), Fold(4, 3), Fold(1, 1)])
    def test_a_fold_that_does_not_exist_is_refused(self, fold):
        with pytest.raises(UserError, match="a fold must be one of 2 or more, numbered from 1"):
            load("moons", test_fraction=fold)
