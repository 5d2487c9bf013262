"""``python train.py``: the train command of the package, ``deltaprop train``."""

import sys

from deltaprop.cli import program

if __name__ == "__main__":
    sys.exit(program(["train", *sys.argv[1:]]))
