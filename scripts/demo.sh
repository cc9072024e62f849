#!/usr/bin/env bash
# From a bare clone to a trained model in front of your eyes: installs into .venv, then runs `alignkit demo`.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh tensorboard
exec .venv/bin/alignkit demo "$@"
