"""``python -m deltaprop``: the command line."""

import sys

from deltaprop.cli import program

sys.exit(program())
