"""The folder for what may be made again at any time: tables on disk, built libraries."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache() -> Path:
    """Return ~/.cache/deltaprop, or that folder in XDG_CACHE_HOME."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))  # to be ignored unless it is absolute, by its specification
    return (base if base.is_absolute() else Path.home() / ".cache") / "deltaprop"
