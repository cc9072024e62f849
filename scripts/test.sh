#!/usr/bin/env bash
# The whole check: style, types, tests. Installs into .venv first. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
exec .venv/bin/pytest --numprocesses "${TEST_PROCESSES:-2}" "$@"
