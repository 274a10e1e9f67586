#!/usr/bin/env bash
# Train on the GPUs of one or several machines: tools/dist_train.sh CONFIG GPUS [ARGS OF train.py]
# Several machines: run it on each with NNODES, NODE_RANK, MASTER_ADDR (and PORT) set.
set -e
CONFIG=${1:?usage: $0 CONFIG GPUS [ARGS]}
GPUS=${2:?usage: $0 CONFIG GPUS [ARGS]}
HERE=$(cd "$(dirname "$0")" && pwd)

# torchrun tells of this in a long traceback.
if [ "${NODE_RANK:-0}" = 0 ] && (exec 3<>"/dev/tcp/127.0.0.1/${PORT:-29500}") 2>/dev/null; then
    echo "$0: port ${PORT:-29500} is in use, by another run or one that did not end;" \
        "set another one: PORT=29501 $0 ..." >&2
    exit 1
fi

PYTHONPATH="$HERE/..:$PYTHONPATH" exec torchrun \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$GPUS" \
    "$HERE/train.py" "$CONFIG" --launcher pytorch "${@:3}"
