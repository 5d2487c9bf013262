"""``python -m deltaprop``: the command line."""

import sys

from deltaprop.cli import main

sys.exit(main())
