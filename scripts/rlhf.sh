#!/usr/bin/env bash
# RLHF in three stages: SFT, a reward model, PPO. Each stage takes the run directory of the one before as its model.
#
#   bash scripts/rlhf.sh                                       # seconds: a tiny random model on demo rows
#   bash scripts/rlhf.sh NAME MODEL ROWS PAIRS [key=value]...  # yours: a hub id or folder, rows, chosen/rejected pairs
#
# Words after PAIRS go to every stage; a word that begins with a stage and a colon goes to that stage: seed=1
# sft:template=chatml sft:train.max_steps=50 ppo:ppo.num_updates=20. Later stages use the template of the SFT run.
set -euo pipefail
name=${1:-rlhf}
if [ $# -eq 0 ]; then
    sft=(config=smoke/sft "name=$name")
    reward=(config=smoke/reward "name=$name")
    ppo=(config=smoke/ppo "name=$name")
elif [ $# -ge 4 ]; then
    sft=("name=$name" "model.name=$2" "data.path=$3" data.eval_fraction=0.05)
    reward=("name=$name" "data.path=$4" data.eval_fraction=0.05)
    ppo=("name=$name" "data.path=$3" data.eval_fraction=0.05)
    base=("model.name=$2" template=instruction)
    for word in "${@:5}"; do
        case $word in
            sft:template*) sft+=("${word#*:}") base+=("${word#*:}") ;;
            sft:*) sft+=("${word#*:}") ;;
            reward:*) reward+=("${word#*:}") ;;
            ppo:*) ppo+=("${word#*:}") ;;
            *) sft+=("$word") reward+=("$word") ppo+=("$word") ;;
        esac
    done
    # What is wrong with the rows of a later stage is said before the first one trains. Any reward does to read prompts.
    alignkit inspect sft "${sft[@]}" --rows 0 >/dev/null
    alignkit inspect reward "${reward[@]}" "${base[@]}" --rows 0 >/dev/null
    alignkit inspect ppo "${ppo[@]}" "${base[@]}" "reward=[{function: alignkit.demo.rewards:count_a}]" --rows 0 >/dev/null
else
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    exit 2
fi

alignkit sft "${sft[@]}"
alignkit reward "${reward[@]}" model=run "model.name=runs/sft/$name" template=native
alignkit ppo "${ppo[@]}" model=run "model.name=runs/sft/$name" template=native "reward=[{model: runs/reward/$name}]"
