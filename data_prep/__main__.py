"""``python -m data_prep`` and the console command ``lesion-bookmarks``."""

from __future__ import annotations

import sys

from data_prep.cli import app
from data_prep.errors import DataPrepError


def main() -> None:
    """Run the command line: 0 when the work is done, 2 with one line on what the user can put right, 130 on Ctrl-C."""
    try:
        app(standalone_mode=True)
    except DataPrepError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
