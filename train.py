"""``python train.py``: the train command of the package, ``deltaprop train``."""

import sys

from deltaprop.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
