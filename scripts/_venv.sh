# Sourced by demo.sh and test.sh: make .venv beside the checkout's files and install the pinned project into it.
# Usage: ensure_venv EXTRAS, e.g. ensure_venv "" or ensure_venv "[test]". Sets PYTHON.

find_python() {
    local candidate
    for candidate in "${LESION_PYTHON:-}" python3 python3.11 python3.12 python3.13; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "No Python 3.11, 3.12 or 3.13 found; install one (Debian: apt-get install python3 python3-venv)." >&2
    return 1
}

ensure_venv() {
    local extras="$1" python stamp
    PYTHON="$ROOT/.venv/bin/python"
    # The stamp names what was installed, so a second start installs nothing and a changed pin installs again.
    stamp="$(cat "$ROOT/pyproject.toml" "$ROOT/constraints.txt" | cksum)"
    if [ -x "$PYTHON" ] && grep -qxF "$stamp $extras" "$ROOT/.venv/installed" 2>/dev/null; then
        return
    fi
    if [ ! -x "$PYTHON" ]; then
        python="$(find_python)"
        echo "Making .venv with $("$python" --version)"
        "$python" -m venv "$ROOT/.venv" || {
            echo "venv failed; on Debian: apt-get install python3-venv" >&2
            return 1
        }
    fi
    echo "Installing lesion-bookmarks$extras (about 8 GB on disk with PyTorch; this takes several minutes)"
    "$PYTHON" -m pip install --disable-pip-version-check --quiet -c "$ROOT/constraints.txt" -e "$ROOT$extras"
    # Extras come with everything the plain install has.
    printf '%s \n%s\n' "$stamp" "$stamp $extras" >>"$ROOT/.venv/installed"
}
