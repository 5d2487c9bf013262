"""`load`: which rows each part gets, which rows the scaling is fitted on, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from deltaprop.data import BUILTIN, RawData, check_source, load
from deltaprop.errors import UserError

# 40 pictures of 1×2 pixels: the first pixel is the row number, the second three times that; classes 0 and 1 in turn.
# So the first pixels of a part tell which rows it has.
IMAGES = np.stack([np.arange(40), 3 * np.arange(40)], axis=1).astype(np.uint8).reshape(40, 1, 2)
LABELS = (np.arange(40) % 2).astype(np.uint8)
TRAIN = {"train-images-idx3-ubyte": IMAGES, "train-labels-idx1-ubyte": LABELS}
TEST = {"t10k-images-idx3-ubyte": IMAGES[:10] + 100, "t10k-labels-idx1-ubyte": LABELS[:10]}


def rows(split) -> list[int]:
    """Return the row numbers of a part that was loaded with scaling="none"."""
    return split.x[:, 0].int().tolist()


def same(one, other) -> bool:
    """Return True if two parts have the same bits."""
    return torch.equal(one.x, other.x) and torch.equal(one.y, other.y)


@pytest.fixture
def own_set(monkeypatch):
    """A function that registers RawData as a built-in data set called ``own``."""

    def register(**fields) -> RawData:
        raw = RawData(name="own", **fields)
        monkeypatch.setitem(BUILTIN, "own", lambda seed: raw)
        return raw

    return register


# Parts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILTIN)
def test_every_built_in_set_loads(name):
    """Shapes and dtypes for a network; 0.2 of the rows for testing, 0.1 of the rest for validation."""
    data = load(name)
    n = len(BUILTIN[name](0).x)
    assert data.name == name
    assert len(data.test) == round(0.2 * n)
    assert len(data.val) == round(0.1 * (n - len(data.test)))
    assert len(data.train) == n - len(data.test) - len(data.val)
    for part in (data.train, data.val, data.test):
        assert part.x.shape == (len(part), data.n_inputs)
        assert part.x.dtype == torch.float32
        if data.task == "classification":
            assert part.y.shape == (len(part),)
            assert part.y.dtype == torch.int64
            assert 0 <= part.y.min() <= part.y.max() < data.n_outputs
        else:
            assert part.y.shape == (len(part), data.n_outputs)
            assert part.y.dtype == torch.float32


def test_digits_have_their_documented_shape_and_range():
    """8×8 pixels in, ten classes out, 0 to 16 scaled to 0 to 1."""
    data = load("digits")
    assert (data.n_inputs, data.n_outputs, data.image_shape) == (64, 10, (8, 8))
    assert data.class_names == tuple("0123456789")
    assert (data.train.x.min(), data.train.x.max()) == (0.0, 1.0)


def test_every_row_is_in_exactly_one_part(idx_folder):
    """40 rows: 8 test, 0.25 · 32 = 8 validation and 24 training rows, each row once."""
    data = load(str(idx_folder(TRAIN)), scaling="none", val_fraction=0.25)
    assert (len(data.train), len(data.val), len(data.test)) == (24, 8, 8)
    assert sorted(rows(data.train) + rows(data.val) + rows(data.test)) == list(range(40))


def test_labels_stay_with_their_rows(idx_folder):
    """In every part the class is the parity of the row number, and the second pixel is three times that number."""
    data = load(str(idx_folder(TRAIN)), scaling="none")
    for part in (data.train, data.val, data.test):
        assert part.y.tolist() == [row % 2 for row in rows(part)]
        assert part.x[:, 1].tolist() == [3 * row for row in rows(part)]


def test_no_row_is_lost_in_several_blocks(own_set):
    """10 000 rows of 40 values, more than the 2¹⁵ values scaled in one block: each row keeps its label."""
    number = np.arange(10000)
    own_set(task="classification", x=np.repeat(number[:, None], 40, axis=1), y=number % 2, class_names=("even", "odd"))
    data = load("own", scaling="none")
    assert len(data.train) == 7200  # 10 000 less 2000, less 800
    assert sorted(rows(data.train) + rows(data.val) + rows(data.test)) == list(range(10000))
    assert data.train.y.tolist() == [row % 2 for row in rows(data.train)]


def test_official_test_set_is_the_test_set(idx_folder):
    """For any test_fraction; all 40 rows are left for training and validation."""
    data = load(str(idx_folder({**TRAIN, **TEST})), scaling="none", test_fraction=0.5)
    assert rows(data.test) == list(range(100, 110))
    assert len(data.train) + len(data.val) == 40


def test_tail_is_the_end_of_the_file(idx_folder):
    """The last quarter of 40 rows, in order."""
    folder = str(idx_folder({**TRAIN, **TEST}))
    data = load(folder, scaling="none", val_split="tail", val_fraction=0.25)
    assert rows(data.train) == list(range(30))
    assert rows(data.val) == list(range(30, 40))


def test_tail_after_a_random_test_split_is_the_end_of_what_is_left(idx_folder):
    """Every validation row comes after every training row."""
    data = load(str(idx_folder(TRAIN)), scaling="none", val_split="tail")
    assert max(rows(data.train)) < min(rows(data.val))


def test_the_validation_part_may_be_empty():
    """Zero rows with the right number of columns."""
    data = load("moons", val_fraction=0.0)
    assert data.val.x.shape == (0, 2)
    assert data.val.y.shape == (0,)
    assert len(data.train) == 800


def test_each_class_has_its_share_in_each_part():
    """Digits: each part has its share of each class, up to the rows that rounding may move."""
    data = load("digits", val_fraction=0.25)
    whole = np.bincount(BUILTIN["digits"](0).y)
    shares = {"test": 0.2, "val": 0.8 * 0.25, "train": 0.8 * 0.75}
    for name, share in shares.items():
        counts = np.bincount(getattr(data, name).y)
        assert np.abs(counts - share * whole).max() <= 2  # one row for each of two splits


# Scaling ------------------------------------------------------------------------------------------------------------


def test_pictures_are_divided_by_their_full_scale(idx_folder):
    """Bytes are divided by 255."""
    data = load(str(idx_folder({**TRAIN, **TEST})))
    assert_close(data.test.x[0], torch.tensor([100.0, 100.0]) / 255)


@pytest.mark.parametrize("scaling", ["auto", "pixel"])
def test_pixel_scale_sets_the_divisor(idx_folder, scaling):
    """The first test picture holds 100, 100; 256 is a power of two, so the quotient is exact."""
    data = load(str(idx_folder({**TRAIN, **TEST})), scaling=scaling, pixel_scale=256)
    assert data.test.x[0].tolist() == [100 / 256, 100 / 256]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_are_rounded_once(idx_folder, dtype):
    """Each byte over 255 is the float nearest to the exact quotient: division in float64, then one rounding."""
    images = np.arange(256, dtype=np.uint8).reshape(8, 1, 32)
    files = {"train-images-idx3-ubyte": images, "train-labels-idx1-ubyte": LABELS[:8]}
    data = load(str(idx_folder(files)), dtype=dtype, val_fraction=0.0, test_fraction=0.25)
    values = torch.cat([data.train.x, data.test.x]).flatten().sort().values
    assert torch.equal(values, (torch.arange(256, dtype=torch.float64) / 255).to(dtype))


def test_standard_scaling_fits_the_training_part():
    """Mean 0 and deviation 1 in the training part, not exactly in the others."""
    data = load("moons", dtype=torch.float64)
    assert_close(data.train.x.mean(0), torch.zeros(2, dtype=torch.float64))
    assert_close(data.train.x.std(0, correction=0), torch.ones(2, dtype=torch.float64))
    assert not torch.allclose(data.test.x.mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-6)


def test_scaling_does_not_depend_on_the_other_parts(own_set):
    """Validation and test rows are multiplied by 1000: the training part has the same bits."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 3))
    x[:, 0] = np.arange(50)
    y = rng.normal(size=(50, 1))
    own_set(task="regression", x=x, y=y)
    plain = load("own", scaling="none", dtype=torch.float64)
    before = load("own", dtype=torch.float64)
    others = rows(plain.val) + rows(plain.test)
    x[others] *= 1000
    y[others] *= 1000
    after = load("own", dtype=torch.float64)
    assert same(before.train, after.train)
    assert torch.equal(before.input_scaling.scale, after.input_scaling.scale)
    assert torch.equal(before.target_scaling.scale, after.target_scaling.scale)
    assert not same(before.val, after.val)
    assert not same(before.test, after.test)


def test_scaling_does_not_depend_on_the_official_test_set(idx_folder):
    """The same for a separate test set."""
    before = load(str(idx_folder({**TRAIN, **TEST}, name="a")), scaling="standard")
    darker = {**TEST, "t10k-images-idx3-ubyte": IMAGES[:10]}
    after = load(str(idx_folder({**TRAIN, **darker}, name="b")), scaling="standard")
    assert same(before.train, after.train)
    assert same(before.val, after.val)
    assert not same(before.test, after.test)


@pytest.mark.parametrize("scaling", ["auto", "standard", "none"])
def test_regression_targets_are_always_standardised(own_set, scaling):
    """Targets around 50, and the scaling that converts predictions back."""
    x = np.linspace(0, 1, 50)[:, None]
    own_set(task="regression", x=x, y=50 + 10 * x)
    data = load("own", scaling=scaling, dtype=torch.float64)
    assert_close(data.train.y.mean(0), torch.zeros(1, dtype=torch.float64))
    assert_close(data.train.y.std(0, correction=0), torch.ones(1, dtype=torch.float64))
    raw_x = data.input_scaling.invert(data.test.x)
    assert_close(data.target_scaling.invert(data.test.y), 50 + 10 * raw_x)


def test_targets_may_have_several_columns(own_set):
    """Two target columns give two outputs."""
    x = np.linspace(0, 1, 50)[:, None]
    own_set(task="regression", x=x, y=np.hstack([x, -x]))
    data = load("own")
    assert data.n_outputs == 2
    assert data.train.y.shape == (36, 2)  # 50 − 10 test rows − 4 validation rows


def test_scaling_none_leaves_the_values(idx_folder):
    """Bytes are unchanged, and the scaling is the identity."""
    data = load(str(idx_folder({**TRAIN, **TEST})), scaling="none")
    assert rows(data.test) == list(range(100, 110))
    assert torch.equal(data.input_scaling.apply(data.test.x), data.test.x)


def test_pixels_of_unknown_scale_are_standardised_unless_pixel_scale_is_given(idx_folder):
    """16-bit pictures: auto cannot know a full scale, pixel_scale can."""
    folder = str(idx_folder({**TRAIN, "train-images-idx3-ubyte": IMAGES.astype(np.int16)}))
    assert_close(load(folder, dtype=torch.float64).train.x.mean(0), torch.zeros(2, dtype=torch.float64))
    assert load(folder, pixel_scale=39).input_scaling.scale.tolist() == [39.0, 39.0]
    with pytest.raises(UserError, match=r"pixels of type int16, whose full scale pixel_scale must say"):
        load(folder, scaling="pixel")


# Reproducibility ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILTIN)
def test_every_part_depends_on_the_seed(name):
    """The same seed gives the same bytes, another seed gives other training rows."""
    first, again, other = load(name, seed=7), load(name, seed=7), load(name, seed=8)
    assert first.digest == again.digest
    assert all(same(getattr(first, part), getattr(again, part)) for part in ("train", "val", "test"))
    assert not same(first.train, other.train)
    assert (first.digest == other.digest) == (name == "digits")  # all others are generated


@pytest.mark.parametrize(("files", "part"), [(TRAIN, "test"), ({**TRAIN, **TEST}, "val")], ids=["test", "val"])
def test_each_random_split_depends_on_the_seed(idx_folder, files, part):
    """For the same data: the test rows, and the validation rows if there is a test set."""
    folder = str(idx_folder(files))
    first, again, other = (rows(getattr(load(folder, scaling="none", seed=seed), part)) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_the_digest_depends_on_the_raw_data_only(idx_folder):
    """It does not depend on the seed, the split, the scaling or the compression."""
    plain = str(idx_folder({**TRAIN, **TEST}, name="a"))
    packed = str(idx_folder({f"{name}.gz": array for name, array in {**TRAIN, **TEST}.items()}, name="b"))
    assert load(plain).digest == load(packed, seed=9, val_fraction=0.5, scaling="standard").digest


def test_digest_by_hand(own_set):
    r"""SHA-256 of dtype, shape and little-endian bytes of each array in turn, computed with sha256sum.

    printf 'int16 (2, 1);\1\0\2\0uint8 (2,);\0\1none;none;' | sha256sum
    """
    raw = own_set(task="classification", x=np.array([[1], [2]], dtype=">i2"), y=np.array([0, 1], dtype=np.uint8))
    assert raw.digest() == "8acc652c3b914bf43561b278b2c9813b2c17cd2bc1d13f717f1aea030f1f7d48"


def change_value(raw: RawData) -> RawData:
    """Return the data set with one pixel changed by one."""
    x = raw.x.copy()
    x[3, 0, 0] += 1
    return dataclasses.replace(raw, x=x)


@pytest.mark.parametrize(
    "change",
    [
        change_value,
        lambda raw: dataclasses.replace(raw, y=raw.y[::-1]),
        lambda raw: dataclasses.replace(raw, x=raw.x.reshape(40, 2, 1)),
        lambda raw: dataclasses.replace(raw, x=raw.x.view(np.int8)),
        lambda raw: dataclasses.replace(raw, x_test=raw.x, y_test=raw.y),
    ],
    ids=["a value", "the labels", "the shape", "the type", "a test set"],
)
def test_digest_changes_with(change):
    """Any change that could affect training."""
    raw = RawData(name="own", task="classification", x=IMAGES, y=LABELS)
    assert change(raw).digest() != raw.digest()


def test_to_moves_everything():
    """Parts and scalings; every machine has the meta device as a second one."""
    data = load("xor").to("meta")
    tensors = [tensor for part in (data.train, data.val, data.test) for tensor in (part.x, part.y)]
    tensors += [data.input_scaling.mean, data.target_scaling.scale]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert (data.name, data.n_inputs, data.n_outputs) == ("xor", 2, 2)


# Sources ------------------------------------------------------------------------------------------------------------


def test_a_built_in_name_has_priority_over_a_folder(idx_folder, monkeypatch):
    """``./name`` is the folder."""
    folder = idx_folder(TRAIN, name="moons")
    monkeypatch.chdir(folder.parent)
    assert load("moons").image_shape is None
    assert load("./moons").image_shape == (1, 2)
    (folder.parent / "circles").mkdir()
    check_source("circles")


def test_check_source_reads_no_data(idx_folder):
    """It accepts files with the right names and any content; load then refuses the content."""
    folder = idx_folder(TRAIN)
    for path in folder.iterdir():
        path.write_bytes(b"not an IDX file")
    check_source(str(folder))
    with pytest.raises(UserError, match="not an IDX file"):
        load(str(folder))


@pytest.mark.parametrize("read", [check_source, load])
@pytest.mark.parametrize("source", ["mons", "", "nowhere/at/all", "x" * 5000, "nul\0byte", "two\nlines"])
def test_unknown_source_is_refused(tmp_path, monkeypatch, read, source):
    """One line names both possibilities: a data set or a folder."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"^unknown data set .*known: digits, moons.*a folder with IDX files$"
    ) as refusal:
        read(source)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("read", [check_source, load])
def test_the_nearest_name_is_suggested(read):
    """For a typing error."""
    with pytest.raises(UserError, match="did you mean 'moons'"):
        read("mons")


@pytest.mark.parametrize("read", [check_source, load])
def test_folder_without_the_files_is_refused(tmp_path, read):
    """The message lists the names looked for."""
    with pytest.raises(UserError, match="looked for train-images-idx3-ubyte"):
        read(str(tmp_path))


# Refused options and data -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed must be an integer from 0 to 4294967295, got -1"),
        ({"seed": 2**32}, "seed must be an integer from 0 to 4294967295, got 4294967296"),
        ({"seed": 1.0}, "seed must be an integer from 0 to 4294967295, got 1.0"),
        ({"seed": True}, "seed must be an integer from 0 to 4294967295, got True"),
        ({"test_fraction": 0.0}, "test_fraction must lie between 0 and 1, both excluded, got 0.0"),
        ({"test_fraction": 1}, "test_fraction must lie between 0 and 1, both excluded, got 1"),
        ({"test_fraction": "0.2"}, "test_fraction must lie between 0 and 1, both excluded, got '0.2'"),
        ({"val_fraction": 1.0}, "val_fraction must be 0 or lie between 0 and 1, 1 excluded, got 1.0"),
        ({"val_fraction": -0.1}, "val_fraction must be 0 or lie between 0 and 1, 1 excluded, got -0.1"),
        ({"val_fraction": float("nan")}, "val_fraction must be 0 or lie between 0 and 1, 1 excluded, got nan"),
        ({"val_split": "tial"}, "unknown val_split 'tial': did you mean 'tail'? (known: random, tail)"),
        ({"scaling": "standrad"}, "unknown scaling 'standrad': did you mean 'standard'?"),
        ({"pixel_scale": 0.0}, "pixel_scale must be a finite number above 0, got 0.0"),
        ({"pixel_scale": float("inf")}, "pixel_scale must be a finite number above 0, got inf"),
        ({"pixel_scale": float("nan")}, "pixel_scale must be a finite number above 0, got nan"),
        ({"pixel_scale": 16.0, "scaling": "standard"}, "pixel_scale=16.0 has no use with scaling='standard'"),
        ({"pixel_scale": 16.0, "scaling": "none"}, "pixel_scale=16.0 has no use with scaling='none'"),
        ({"dtype": torch.int64}, "dtype must be one of torch.float32, torch.float64"),
        # 0.9999 of 1797 rows is 1796.8, rounded to 1797.
        ({"test_fraction": 0.9999}, "test_fraction=0.9999 of 1797 rows holds out 1797: both sides need a row"),
        ({"pixel_scale": 1e-300}, "does not fit in torch.float32 after scaling"),
    ],
)
def test_option_out_of_range_is_refused(options, message):
    """One line with the option's name, its value and the valid values."""
    with pytest.raises(UserError) as refusal:
        load("digits", **options)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("options", [{"scaling": "pixel"}, {"pixel_scale": 255.0}])
def test_pixel_scaling_without_pictures_is_refused(options):
    """Two coordinates are not pixels."""
    with pytest.raises(UserError, match=r"moons holds no pictures to scale by pixel"):
        load("moons", **options)


def test_class_that_only_the_test_set_has_is_refused(idx_folder):
    """Class 5 in the test set, classes 0 and 1 in the training data."""
    labels = TEST["t10k-labels-idx1-ubyte"].copy()
    labels[3] = 5
    with pytest.raises(UserError, match=r"^class 5 is in the test part and in no row of the training part"):
        load(str(idx_folder({**TRAIN, **TEST, "t10k-labels-idx1-ubyte": labels})))


def test_fractions_of_a_few_rows_are_split():
    """0.0001 of 1797 rows is 0.18, rounded up to 1; 0.005 of the remaining 1796 is 9, fewer than the ten classes."""
    data = load("digits", test_fraction=0.0001, val_fraction=0.005)
    assert (len(data.train), len(data.val), len(data.test)) == (1787, 9, 1)


def test_class_that_only_the_tail_has_is_trained_on(idx_folder):
    """Rows sorted by class: the last tenth, 36 to 39, holds all rows of class 1, which keeps them."""
    labels = (np.arange(40) >= 36).astype(np.uint8)
    folder = str(idx_folder({**TRAIN, **TEST, "train-labels-idx1-ubyte": labels}))
    data = load(folder, val_split="tail")
    assert (len(data.train), len(data.val)) == (40, 0)


def test_class_of_a_single_row_is_trained_on(idx_folder):
    """One row of class 7 of IDX files, whose labels are given: it is in the training part, whatever the seed."""
    labels = LABELS.copy()
    labels[5] = 7
    folder = str(idx_folder({**TRAIN, "train-labels-idx1-ubyte": labels}))
    for seed in range(5):
        assert (load(folder, seed=seed).train.y == 7).sum() == 1


def test_a_label_without_rows_is_still_a_class(idx_folder):
    """EMNIST's letters run from 1 to 26: class 0 has a name but no rows."""
    data = load(str(idx_folder({**TRAIN, "train-labels-idx1-ubyte": LABELS + 1})))
    assert data.class_names == ("0", "1", "2")
    assert data.n_outputs == 3


# The real MNIST -----------------------------------------------------------------------------------------------------


def test_mnist_as_nielsens_book_splits_it(mnist):
    """Nielsen's split: the first 50 000 rows train, the last 10 000 validate, pixels are value/256."""
    data = load(str(mnist), val_fraction=1 / 6, val_split="tail", pixel_scale=256)
    assert (len(data.train), len(data.val), len(data.test)) == (50000, 10000, 10000)
    assert (data.n_inputs, data.n_outputs, data.image_shape, data.name) == (784, 10, (28, 28), "mnist")
    assert data.train.x.max() == 255 / 256
    assert data.train.y[:5].tolist() == [5, 0, 4, 1, 9]
