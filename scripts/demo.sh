#!/usr/bin/env bash
# The whole job, from bookmarks to findings, on this machine.
#   bash scripts/demo.sh [WORKDIR]                                          the embedded phantom hospital
#   bash scripts/demo.sh WORKDIR --csv DL_info.csv --images Images_png      DeepLesion files
# Kill it whenever you like; the same command goes on after the last finished stage. --help lists the options.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
. "$ROOT/scripts/_venv.sh"
ensure_venv ""
exec "$PYTHON" "$ROOT/scripts/demo.py" "$@"
