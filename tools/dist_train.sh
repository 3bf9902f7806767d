#!/usr/bin/env bash
# Train on several GPUs (or CPUs) of one or more machines:
#     tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
# Environment, as in MMSegmentation: NNODES, NODE_RANK, MASTER_ADDR, PORT. Beyond it:
#   MAX_RESTARTS  how often a machine starts its processes again when one is lost (default 0)
#   RDZV_ID       name of the run, the same on all its machines
#   LOCAL_ADDR    address of this machine, where the others cannot resolve its host name
#   RDZV_CONF     more options of torchrun's --rdzv-conf, such as join_timeout=1800
set -euo pipefail

if [ "$#" -lt 2 ]; then
    echo "usage: $0 CONFIG GPUS [arguments of tools/train.py]" >&2
    exit 2
fi
CONFIG=$1
GPUS=$2
NNODES=${NNODES:-1}
PORT=${PORT:-29500}
MASTER_ADDR=${MASTER_ADDR:-127.0.0.1}
MAX_RESTARTS=${MAX_RESTARTS:-0}
TOOLS=$(cd "$(dirname "$0")" && pwd)

if [ "$MAX_RESTARTS" = 0 ]; then
    RENDEZVOUS=(--node_rank="${NODE_RANK:-0}" --master_addr="$MASTER_ADDR" --master_port="$PORT")
else
    # The static rendezvous cannot bring machines together a second time, c10d can.
    RENDEZVOUS=(--rdzv_backend=c10d --rdzv_endpoint="$MASTER_ADDR:$PORT"
        --rdzv_id="${RDZV_ID:-none}" --max_restarts="$MAX_RESTARTS")
    # Who serves it: torchrun guesses from addresses where NODE_RANK is not given.
    CONF=${RDZV_CONF:-}
    if [ -n "${NODE_RANK:-}" ]; then
        CONF="is_host=$([ "$NODE_RANK" = 0 ] && echo true || echo false)${CONF:+,$CONF}"
    fi
    RENDEZVOUS+=(${CONF:+--rdzv_conf="$CONF"} ${LOCAL_ADDR:+--local_addr="$LOCAL_ADDR"})
    # Each start needs a store of its own: in a shared one it may find addresses of the last start
    # (pytorch issue 135712).
    export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
fi

export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="$NNODES" \
    --nproc_per_node="$GPUS" \
    "${RENDEZVOUS[@]}" \
    "$TOOLS/train.py" "$CONFIG" --launcher pytorch "${@:3}"
