"""``python -m lightning_compress``: the command line."""

import sys

from lightning_compress.cli import main

sys.exit(main())
