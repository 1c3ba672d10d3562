#!/usr/bin/env bash
# Everything a change must pass: ruff, mypy, pytest. Installs what it needs into .venv.
#   bash scripts/test.sh [--slow] [--judges]
#     --slow     also the tests that take minutes
#     --judges   install the independent DICOM judges (dcmtk, dicom3tools, Orthanc) from Debian's packages; needs root.
#                Debian starts its Orthanc as a service; the tests start one of their own, on loopback.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$ROOT"
. scripts/_venv.sh

slow="not slow"
for argument in "$@"; do
    case "$argument" in
    --slow) slow="" ;;
    --judges)
        apt-get update -q
        DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
            dcmtk dicom3tools orthanc orthanc-dicomweb
        ;;
    *)
        echo "usage: bash scripts/test.sh [--slow] [--judges]" >&2
        exit 2
        ;;
    esac
done
ensure_venv "[test]"
export OMP_NUM_THREADS=1 MPLBACKEND=Agg
BUNDLE=bundles/universal_lesion_ct_detection
# The same default for both runs below, which start in different folders.
export LESION_SHARED_DATA="${LESION_SHARED_DATA:-$(dirname "$ROOT")/shared/data}"

echo "== ruff"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
echo "== mypy"
"$PYTHON" -m mypy data_prep
(cd "$BUNDLE" && "$PYTHON" -m mypy --config-file "$ROOT/pyproject.toml" scripts)
echo "== pytest: data_prep"
"$PYTHON" -m pytest tests/data_prep -q -n 2 --dist loadscope -m "$slow"
# The bundle's modules import as `scripts` from its root only, so its tests have a process of their own.
echo "== pytest: bundle"
(cd "$BUNDLE" && "$PYTHON" -m pytest "$ROOT/tests/bundle" -c "$ROOT/pyproject.toml" --rootdir "$ROOT" -q -n 2 --dist loadscope -m "$slow")
