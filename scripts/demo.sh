#!/usr/bin/env bash
# From a fresh clone to trained models in minutes: installs into .venv, then runs `alignkit demo`.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh tensorboard
exec .venv/bin/alignkit demo "$@"
