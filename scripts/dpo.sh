#!/usr/bin/env bash
# Learn from preferences without a reward model, in two stages: SFT, then DPO from its run directory.
#
#   bash scripts/dpo.sh                                       # seconds: a tiny random model on demo rows
#   bash scripts/dpo.sh NAME MODEL ROWS PAIRS [key=value]...  # yours: a hub id or folder, rows, chosen/rejected pairs
#
# Words after PAIRS (such as train.max_steps=50) go to both stages.
set -euo pipefail
name=${1:-dpo}
if [ $# -eq 0 ]; then
    sft=(config=smoke/sft "name=$name")
    dpo=(config=smoke/dpo "name=$name")
elif [ $# -ge 4 ]; then
    more=("${@:5}")
    sft=("name=$name" "model.name=$2" "data.path=$3" data.eval_fraction=0.05 "${more[@]}")
    dpo=("name=$name" "data.path=$4" data.eval_fraction=0.05 "${more[@]}")
    # What is wrong with the pairs is said before the first stage trains.
    alignkit inspect sft "${sft[@]}" --rows 0 >/dev/null
    alignkit inspect dpo "model.name=$2" template=instruction "${dpo[@]}" --rows 0 >/dev/null
else
    sed -n '2,7s/^# \{0,1\}//p' "$0"
    exit 2
fi

alignkit sft "${sft[@]}"
alignkit dpo "${dpo[@]}" model=run "model.name=runs/sft/$name" template=native
