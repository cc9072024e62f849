#!/usr/bin/env bash
# The whole check: style, types, tests. Installs into .venv first. Arguments go to pytest:
# -m slow runs the longest tests, of up to some minutes each, which are left out otherwise;
# --hypothesis-profile=random draws new examples for property-based tests, which are the same ones in each run otherwise.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
exec .venv/bin/pytest --numprocesses "${TEST_PROCESSES:-2}" "$@"
