"""``python -m tfq``: the same as the ``tfq`` command."""

import sys

from tfq_cli import main

if __name__ == "__main__":
    sys.exit(main())
