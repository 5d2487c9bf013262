"""The folder for what may be made again at any time: tables on disk, built libraries."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache() -> Path:
    """Return ~/.cache/deltaprop, or that folder in XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deltaprop"
