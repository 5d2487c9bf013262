"""IDX files: valid ones are read bit for bit, damaged ones are refused in one line that names the file."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaprop.data import find_idx_files, load_idx_folder, read_idx
from deltaprop.errors import UserError

# Two zero bytes, 0x08 for unsigned bytes, rank 2, sizes 2 and 3, the six elements.
SMALL = bytes([0, 0, 0x08, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 255])
SMALL_GZ = gzip.compress(SMALL, mtime=0)

# Sizes 2³¹ and 2³² − 1: 8 exbibytes, with six bytes behind the header.
HUGE = bytes([0, 0, 0x08, 2, 0x80, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 1, 2, 3, 4, 5, 6])

IMAGES = np.arange(4 * 2 * 3, dtype=np.uint8).reshape(4, 2, 3)
LABELS = np.array([0, 1, 2, 1], dtype=np.uint8)
TRAIN = {"train-images-idx3-ubyte": IMAGES, "train-labels-idx1-ubyte": LABELS}


def refused(read, path) -> str:
    """Return the one-line message of the UserError that ``read(path)`` raises."""
    with pytest.raises(UserError) as refusal:
        read(path)
    message = str(refusal.value)
    assert "\n" not in message
    return message


# Reading ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [SMALL, SMALL_GZ], ids=["plain", "gz"])
@pytest.mark.parametrize("name", ["data", "data.gz"])
def test_compression_is_detected_from_the_content(tmp_path, data, name):
    """Whatever the file's suffix."""
    path = tmp_path / name
    path.write_bytes(data)
    assert read_idx(path).tolist() == [[1, 2, 3], [4, 5, 255]]
    assert read_idx(str(path)).dtype == np.uint8


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "float32", "float64"])
def test_every_element_type_is_read_back(tmp_path, idx_bytes, dtype, compress):
    """Including the extreme values, in native byte order and writable."""
    info = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else np.finfo(dtype)
    array = np.array([[info.min, info.max, 0], [1, 2, 100]], dtype=dtype)
    path = tmp_path / "array"
    path.write_bytes(compress(idx_bytes(array)))
    back = read_idx(path)
    assert back.dtype == np.dtype(dtype)
    assert back.dtype.isnative
    assert back.flags.writeable
    assert np.array_equal(back, array)


@pytest.mark.parametrize("shape", [(5,), (1, 1), (2, 3, 4), (2, 1, 3, 2)])
def test_every_rank_is_read_back(tmp_path, idx_bytes, shape):
    """In row-major order."""
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    path = tmp_path / "array"
    path.write_bytes(idx_bytes(array))
    assert np.array_equal(read_idx(path), array)


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gz"])
def test_more_than_one_chunk_is_read_back(tmp_path, idx_bytes, compress):
    """3 MiB and a byte, read 1 MiB at a time."""
    array = (np.arange(3 * 2**20 + 1) % 251).astype(np.uint8)  # 251 is prime, so a lost or repeated chunk shows
    path = tmp_path / "array"
    path.write_bytes(compress(idx_bytes(array)))
    assert np.array_equal(read_idx(path), array)


# Damaged files ------------------------------------------------------------------------------------------------------

DAMAGED = {
    "empty": (b"", "truncated IDX header: 0 bytes"),
    "wrong magic": (b"\x89PNG" + SMALL[4:], "begins with the bytes 89 50, not 00 00"),
    "second byte": (b"\x00\x01" + SMALL[2:], "begins with the bytes 00 01, not 00 00"),
    "unknown type": (b"\x00\x00\x0a\x02" + SMALL[4:], "unknown IDX element type 0x0a"),
    "rank 0": (b"\x00\x00\x08\x00", "0 dimensions"),
    "rank 33": (b"\x00\x00\x08\x21" + b"\x00\x00\x00\x01" * 33 + b"\x07", "33 dimensions"),
    "no rows": (SMALL[:4] + bytes(4) + SMALL[8:12], "holds no elements: its header says 0x3"),
    "header cut": (SMALL[:10], "truncated IDX header: 10 bytes, 12 expected"),
    "data cut": (SMALL[:-1], "the header declares 2x3 uint8, 6 bytes, the file holds 5"),
    "left over": (SMALL + b"\x00", "bytes left over after the data that the header declares (2x3 uint8, 6 bytes)"),
    # 2⁶⁴ bytes, 2³¹ · 2³¹ · 4: in 64-bit integers that is 0.
    "overflowing": (
        bytes([0, 0, 0x08, 3, 0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 4]),
        "the header declares 2147483648x2147483648x4 uint8, 18446744073709551616 bytes, the file holds 0",
    ),
    "huge": (HUGE, "the header declares 2147483648x4294967295 uint8, 9223372034707292160 bytes, the file holds 6"),
}


@pytest.mark.parametrize(("data", "problem"), DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gz"])
def test_damaged_file_is_refused(tmp_path, data, problem, compress):
    """One line with the file's name and the problem, compressed or not."""
    path = tmp_path / "some-file"
    path.write_bytes(compress(data))
    message = refused(read_idx, path)
    assert message.startswith(f"{path}: ")
    assert problem in message


@pytest.mark.parametrize("whole", [SMALL, SMALL_GZ], ids=["plain", "gz"])
def test_truncation_at_every_length_is_refused(tmp_path, whole):
    """From 0 bytes to all but the last, including the gzip checksum at the end."""
    path = tmp_path / "some-file"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert "some-file" in refused(read_idx, path)


def test_a_flipped_bit_of_a_gzip_body_never_changes_the_data(tmp_path):
    """Its checksum covers the content; only padding bits at the end of the stream may flip without an error."""
    path = tmp_path / "some-file"
    for bit in range(8 * 10, 8 * len(SMALL_GZ)):  # after gzip's own ten bytes of header
        data = bytearray(SMALL_GZ)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            array = read_idx(path)
        except UserError:
            continue
        assert array.tobytes() == SMALL[12:]


@pytest.mark.parametrize("after", [b"garbage", SMALL_GZ], ids=["garbage", "a second member"])
def test_data_after_a_gzip_stream_is_refused(tmp_path, after):
    """A second member decompresses to more data than the header declares."""
    path = tmp_path / "some-file"
    path.write_bytes(SMALL_GZ + after)
    assert "some-file" in refused(read_idx, path)


@settings(deadline=None, database=None, max_examples=200)
@given(
    start=st.sampled_from([b"", b"\x00\x00", b"\x00\x00\x08", SMALL[:12], SMALL_GZ[:10]]), rest=st.binary(max_size=40)
)
def test_any_bytes_are_read_or_refused(tmp_path_factory, start, rest):
    """Whatever bytes a file holds, it is read or refused with a UserError."""
    path = tmp_path_factory.getbasetemp() / "any-bytes"
    path.write_bytes(start + rest)
    try:
        array = read_idx(path)
    except UserError:
        return
    assert array.size > 0


def peak_while_refusing(path: Path) -> int:
    """Return the peak number of allocated bytes while a file is refused."""
    tracemalloc.start()
    try:
        refused(read_idx, path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_short_plain_file_is_refused_by_its_size(tmp_path):
    """The header declares 1 GiB, the (sparse) file has 64 MiB: none of it is read."""
    path = tmp_path / "some-file"
    path.write_bytes(bytes([0, 0, 0x08, 1, 0x40, 0, 0, 0]))
    os.truncate(path, 64 * 2**20)
    assert peak_while_refusing(path) < 8 * 2**20


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gz"])
def test_no_memory_is_allocated_for_data_that_only_the_header_promises(tmp_path, compress):
    """The header declares 1 GiB, the file has 6 bytes: at most a few chunks of 1 MiB are allocated."""
    path = tmp_path / "some-file"
    path.write_bytes(compress(bytes([0, 0, 0x08, 1, 0x40, 0, 0, 0, 1, 2, 3, 4, 5, 6])))
    assert peak_while_refusing(path) < 8 * 2**20


def test_no_memory_is_allocated_for_surplus_gzip_data(tmp_path):
    """64 MiB of zeros after a header that promises 6 bytes: reading stops after the seventh byte."""
    path = tmp_path / "some-file"
    path.write_bytes(gzip.compress(SMALL + bytes(64 * 2**20), compresslevel=1))
    assert peak_while_refusing(path) < 8 * 2**20


def test_missing_file_is_refused(tmp_path):
    """With the operating system's reason."""
    assert "nowhere: cannot be read: No such file" in refused(read_idx, tmp_path / "nowhere")


def test_folder_in_place_of_a_file_is_refused(tmp_path):
    """The message says that it is a folder."""
    assert "a folder, an IDX file expected" in refused(read_idx, tmp_path)


def test_pipe_is_refused_without_blocking(tmp_path):
    """Opening a pipe without a writer would block forever."""
    os.mkfifo(tmp_path / "pipe")
    assert "pipe: a device, an IDX file expected" in refused(read_idx, tmp_path / "pipe")


def test_unreadable_file_is_refused(tmp_path, monkeypatch):
    """With the system's reason; PermissionError is simulated, because root may read everything."""
    path = tmp_path / "some-file"
    path.write_bytes(SMALL)

    def deny(self, mode):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "open", deny)
    assert "some-file: cannot be read: Permission denied" in refused(read_idx, path)


# Folders ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
        ("train-images.idx3-ubyte", "train-labels.idx1-ubyte"),
        ("train-images-idx3-ubyte.gz", "train-labels.idx1-ubyte"),
        ("emnist-balanced-train-images-idx3-ubyte", "emnist-balanced-train-labels-idx1-ubyte"),
    ],
)
def test_common_file_names_are_found(idx_folder, images, labels):
    """The names of MNIST, of its gzip files, of Kaggle, a mixture, and of EMNIST."""
    folder = idx_folder({images: IMAGES, labels: LABELS})
    assert find_idx_files(folder) == {"train-images": folder / images, "train-labels": folder / labels}


@pytest.mark.parametrize("test", ["t10k", "test"])
def test_test_set_is_found_under_both_names(idx_folder, test):
    """MNIST says t10k, EMNIST says test."""
    folder = idx_folder(
        {**TRAIN, f"{test}-images-idx3-ubyte": IMAGES[:2] + 1, f"{test}-labels-idx1-ubyte.gz": LABELS[:2]}
    )
    raw = load_idx_folder(folder)
    assert np.array_equal(raw.x_test, IMAGES[:2] + 1)
    assert np.array_equal(raw.y_test, LABELS[:2])


def test_every_file_of_a_folder_is_read(idx_folder):
    """Labels 0 to 2 give three classes; without test files there is no test set."""
    raw = load_idx_folder(idx_folder(TRAIN, name="my-set"))
    assert raw.name == "my-set"
    assert np.array_equal(raw.x, IMAGES)
    assert np.array_equal(raw.y, LABELS)
    assert raw.x_test is None
    assert raw.y_test is None
    assert raw.class_names == ("0", "1", "2")
    assert raw.full_scale == 255.0
    assert raw.image_shape == (2, 3)


@pytest.mark.parametrize(("shape", "image_shape"), [((4, 6), None), ((4, 2, 3), (2, 3)), ((4, 2, 1, 3), None)])
def test_images_may_have_any_rank_from_2(idx_folder, shape, image_shape):
    """Only rank 3 tells the rows from the columns of a picture."""
    raw = load_idx_folder(idx_folder({**TRAIN, "train-images-idx3-ubyte": IMAGES.reshape(shape)}))
    assert raw.x.shape == shape
    assert raw.image_shape == image_shape


def test_full_scale_of_other_types_is_unknown(idx_folder):
    """The largest value of a 16-bit pixel is not known."""
    raw = load_idx_folder(idx_folder({**TRAIN, "train-images-idx3-ubyte": IMAGES.astype(np.int16)}))
    assert raw.pictures
    assert raw.full_scale is None


def test_compressed_copy_beside_a_file_is_ignored(idx_folder):
    """Torchvision leaves both; the uncompressed one is read."""
    packed = dict.fromkeys([f"{name}.gz" for name in TRAIN], LABELS)  # refused as images if they were read
    raw = load_idx_folder(idx_folder({**TRAIN, **packed}))
    assert np.array_equal(raw.x, IMAGES)


def test_hidden_files_and_folders_are_ignored(idx_folder):
    """A ._NAME of macOS beside NAME; and folders with the files' names, as one archive of MNIST has."""
    folder = idx_folder({**TRAIN, "._train-images-idx3-ubyte": LABELS})
    (folder / "train-images.idx3-ubyte").mkdir()
    assert np.array_equal(load_idx_folder(folder).x, IMAGES)


@pytest.mark.parametrize(
    "extra",
    [
        {"train-images.idx3-ubyte": IMAGES},
        {"emnist-letters-train-images-idx3-ubyte": IMAGES},
        {"emnist-test-images-idx3-ubyte": IMAGES},
    ],
    ids=["two spellings", "two sets", "test set of another"],
)
def test_several_candidates_are_named(idx_folder, extra):
    """The first one is not picked silently."""
    message = refused(load_idx_folder, idx_folder({**TRAIN, **extra}))
    assert "more than one data set: " in message
    assert "train-images-idx3-ubyte" in message
    assert next(iter(extra)) in message


def without(name: str) -> dict[str, np.ndarray]:
    """Return the files of a complete folder without the named one."""
    whole = {**TRAIN, "t10k-images-idx3-ubyte": IMAGES, "t10k-labels-idx1-ubyte": LABELS}
    return {key: array for key, array in whole.items() if key != name}


@pytest.mark.parametrize(
    ("missing", "role"),
    [
        ("train-images-idx3-ubyte", "train-images"),
        ("train-labels-idx1-ubyte", "train-labels"),
        ("t10k-images-idx3-ubyte", "test-images"),
        ("t10k-labels-idx1-ubyte", "test-labels"),
    ],
)
def test_images_without_labels_or_the_reverse_are_refused(idx_folder, missing, role):
    """The message says what is missing, what exists, and which names were looked for."""
    message = refused(load_idx_folder, idx_folder(without(missing)))
    assert f"no {role} beside " in message
    assert "looked for train-images-idx3-ubyte" in message


def test_folder_without_idx_files_is_refused(tmp_path):
    """The message lists the names looked for."""
    (tmp_path / "train.csv").write_text("1,2\n")
    message = refused(find_idx_files, tmp_path)
    assert "no IDX files there; looked for train-images-idx3-ubyte and train-labels-idx1-ubyte" in message
    assert "t10k" in message


def test_missing_folder_is_refused(tmp_path):
    """The message says that the folder does not exist."""
    assert "nowhere: no such folder" in refused(find_idx_files, tmp_path / "nowhere")


def test_file_in_place_of_a_folder_is_refused(tmp_path):
    """Also if it is a valid IDX file."""
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(SMALL)
    assert "a file, a folder with IDX files expected" in refused(find_idx_files, path)


def test_unreadable_folder_is_refused(tmp_path, monkeypatch):
    """With the system's reason; PermissionError is simulated, because root may read everything."""

    def deny(folder):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    monkeypatch.setattr(os, "scandir", deny)
    assert refused(find_idx_files, tmp_path) == f"{tmp_path}: cannot be read: Permission denied"


MISMATCHED = {
    # problem: (files that replace the valid ones, the file that the message names, the rest of the message)
    "labels as images": ({"train-images-idx3-ubyte": LABELS}, "train-images-idx3-ubyte", "4 numbers, images expected"),
    "images as labels": (
        {"train-labels-idx1-ubyte": IMAGES},
        "train-labels-idx1-ubyte",
        "2x3 numbers, labels expected: one dimension",
    ),
    "unlike counts": ({"train-images-idx3-ubyte": IMAGES[:3]}, "train-images-idx3-ubyte", "3 images, but 4 labels in"),
    "negative label": (
        {"train-labels-idx1-ubyte": np.array([0, 1, -1, 1], dtype=np.int8)},
        "train-labels-idx1-ubyte",
        "label -1, labels run from 0",
    ),
    "label beyond reason": (
        {"train-labels-idx1-ubyte": np.array([0, 1, 2**31 - 1, 1], dtype=np.int32)},
        "train-labels-idx1-ubyte",
        "label 2147483647, labels run from 0 to at most 65535",
    ),
    "label no integer": (
        {"train-labels-idx1-ubyte": LABELS.astype(np.float32)},
        "train-labels-idx1-ubyte",
        "labels of type float32, integers expected",
    ),
    "pixel no number": (
        {"train-images-idx3-ubyte": np.where(IMAGES == 7, np.nan, IMAGES).astype(np.float32)},
        "train-images-idx3-ubyte",
        "image 1 has a value that is not a finite number",  # the second picture holds 6 to 11, so 7 too
    ),
    "other test size": (
        {"t10k-images-idx3-ubyte": IMAGES.reshape(4, 3, 2)},
        "t10k-images-idx3-ubyte",
        "images of 3x2 uint8, those to train on are 2x3 uint8",
    ),
    "other test type": (
        {"t10k-images-idx3-ubyte": IMAGES.astype(np.float32)},
        "t10k-images-idx3-ubyte",
        "images of 2x3 float32, those to train on are 2x3 uint8",
    ),
    "unlike test counts": (
        {"t10k-labels-idx1-ubyte": LABELS[:3]},
        "t10k-images-idx3-ubyte",
        "4 images, but 3 labels in",
    ),
}


@pytest.mark.parametrize(("files", "named", "problem"), MISMATCHED.values(), ids=MISMATCHED)
def test_files_that_do_not_belong_together_are_refused(idx_folder, files, named, problem):
    """One line with the file's name and the problem."""
    folder = idx_folder({**without(""), **files})
    message = refused(load_idx_folder, folder)
    assert message.startswith(f"{folder / named}: ")
    assert problem in message


# The real MNIST -----------------------------------------------------------------------------------------------------


def test_mnist_is_the_published_one(mnist):
    """The four decompressed files have the MD5 sums published with MNIST, and hold the bytes that are read."""
    published = {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    }
    for name, md5 in published.items():
        with gzip.open(mnist / f"{name}.gz") as file:
            raw = file.read()
        assert hashlib.md5(raw).hexdigest() == md5
        array = read_idx(mnist / f"{name}.gz")
        assert raw.endswith(array.tobytes())
        assert len(raw) == 4 + 4 * array.ndim + array.size


def test_mnist_folder_has_its_published_shape(mnist):
    """60 000 and 10 000 pictures of 28×28 in ten classes; the first five labels are 5, 0, 4, 1, 9."""
    raw = load_idx_folder(mnist)
    assert raw.x.shape == (60000, 28, 28)
    assert raw.x_test.shape == (10000, 28, 28)
    assert raw.y[:5].tolist() == [5, 0, 4, 1, 9]
    assert raw.class_names == tuple("0123456789")
