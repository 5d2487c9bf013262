"""Data sets: built-in ones and IDX folders, split and scaled.

`load` takes a name or a folder to a `Dataset`; the rest are its parts.
"""

from deltaprop.data.builtin import BUILTIN
from deltaprop.data.dataset import Dataset, RawData, Split
from deltaprop.data.idx import find_idx_files, load_idx_folder, read_idx
from deltaprop.data.loading import check_source, load
from deltaprop.data.scaling import Scaling
from deltaprop.data.splits import split_indices

__all__ = [
    "BUILTIN",
    "Dataset",
    "RawData",
    "Scaling",
    "Split",
    "check_source",
    "find_idx_files",
    "load",
    "load_idx_folder",
    "read_idx",
    "split_indices",
]
