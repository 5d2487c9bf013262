"""Data sets: built-in ones, tables, arrays and IDX folders, split and scaled.

`load` takes a name, a file or a folder to a `Dataset`; the rest are its parts.
"""

from typing import TYPE_CHECKING

from deltaprop import _old_names
from deltaprop.data.augment import Augment, Deformation
from deltaprop.data.builtin import BUILTIN, BUILTIN_LR
from deltaprop.data.columns import TableOptions
from deltaprop.data.dataset import Dataset, Part, Split, StreamedSplit
from deltaprop.data.encoding import Encoding
from deltaprop.data.formats.idx import load_idx_folder, read_idx
from deltaprop.data.formats.idx_files import find_idx_files
from deltaprop.data.grouped import GroupedRows
from deltaprop.data.loading import Source, check_source, load
from deltaprop.data.raw_data import RawData
from deltaprop.data.scaling import Scaling
from deltaprop.data.splits import Fold, split_indices
from deltaprop.data.store import CacheConfig

__all__ = [
    "BUILTIN", "BUILTIN_LR", "Augment", "CacheConfig", "Dataset", "Deformation", "Encoding", "Fold", "GroupedRows",
    "Part", "RawData", "Scaling", "Source", "Split", "StreamedSplit", "TableOptions", "check_source", "find_idx_files",
    "load", "load_idx_folder", "read_idx", "split_indices",
]  # fmt: skip

if not TYPE_CHECKING:  # else a misspelt name would pass the type checker
    __getattr__ = _old_names.renamed_in(__name__)
