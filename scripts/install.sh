#!/usr/bin/env bash
# Make .venv with the versions of constraints.txt: bash scripts/install.sh [EXTRA,...]
# Needs python3 >= 3.11 (or PYTHON=…), nothing else. Running it again only installs what changed.
set -euo pipefail
cd "$(dirname "$0")/.."
extras=${1:-}
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "alignkit needs Python 3.11 or newer; '$python' is $("$python" --version 2>&1). Set PYTHON=…" >&2
    exit 2
}
[ -x .venv/bin/python ] || "$python" -m venv .venv || {
    echo "python3 -m venv failed; on Debian and Ubuntu: apt install python3-venv" >&2
    exit 2
}
wanted="$(cat pyproject.toml constraints.txt; echo "$extras")"
stamp=.venv/installed
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then exit 0; fi

pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
torch=$(grep '^torch==' constraints.txt)
if ! command -v nvidia-smi >/dev/null && [ "$(uname)" = Linux ]; then
    # Without a GPU the CUDA build is gigabytes of nothing; where the CPU index is out of reach, take what pip finds.
    pip install --quiet --retries 0 --timeout 10 --index-url https://download.pytorch.org/whl/cpu "$torch" 2>/dev/null \
        || pip install --quiet "$torch"
fi
pip install --quiet --constraint constraints.txt --editable ".${extras:+[$extras]}"
echo "$wanted" >"$stamp"
