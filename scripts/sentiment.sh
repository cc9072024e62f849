#!/usr/bin/env bash
# The sentiment example without a download: a tiny model learns to write film reviews, then to write positive ones.
#
#   bash scripts/sentiment.sh   # about two minutes on two cores
#
# configs/ppo/sentiment.yaml is the same with GPT-2, real reviews and a classifier from the hub.
set -euo pipefail

alignkit sft config=reviews/sft
alignkit reward config=reviews/reward
alignkit ppo config=reviews/ppo
