#!/usr/bin/env bash
# Train under Slurm:
#     tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of tools/train.py]
# Environment: GPUS, GPUS_PER_NODE, CPUS_PER_TASK, SRUN_ARGS (as in MMSegmentation);
# MAX_RESTARTS and PORT as in tools/dist_train.sh, which then runs once on each node.
set -euo pipefail

if [ "$#" -lt 3 ]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG [arguments of tools/train.py]" >&2
    exit 2
fi
PARTITION=$1
JOB_NAME=$2
CONFIG=$3
GPUS=${GPUS:-4}
GPUS_PER_NODE=${GPUS_PER_NODE:-4}
CPUS_PER_TASK=${CPUS_PER_TASK:-5}
SRUN_ARGS=${SRUN_ARGS:-}
MAX_RESTARTS=${MAX_RESTARTS:-0}
TOOLS=$(cd "$(dirname "$0")" && pwd)

if [ "$MAX_RESTARTS" = 0 ]; then
    export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
    TASKS=$GPUS
    TASKS_PER_NODE=$GPUS_PER_NODE
    COMMAND=("${PYTHON:-python}" -u "$TOOLS/train.py" "$CONFIG" --launcher slurm "${@:4}")
else
    if [ "$((GPUS % GPUS_PER_NODE))" != 0 ] && [ "$GPUS" -gt "$GPUS_PER_NODE" ]; then
        echo "GPUS=$GPUS: with MAX_RESTARTS it must be a multiple of GPUS_PER_NODE=$GPUS_PER_NODE." >&2
        exit 2
    fi
    GPUS_PER_NODE=$((GPUS < GPUS_PER_NODE ? GPUS : GPUS_PER_NODE))
    TASKS=$((GPUS / GPUS_PER_NODE))
    TASKS_PER_NODE=1
    CPUS_PER_TASK=$((CPUS_PER_TASK * GPUS_PER_NODE))
    export MAX_RESTARTS
    # Runs on each node, where Slurm says which one it is.
    # shellcheck disable=SC2016
    COMMAND=(bash -c '
        export NNODES=$SLURM_NNODES NODE_RANK=$SLURM_NODEID RDZV_ID=$SLURM_JOB_ID
        MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
        export MASTER_ADDR
        exec "$@"' slurm_node "$TOOLS/dist_train.sh" "$CONFIG" "$GPUS_PER_NODE" "${@:4}")
fi

# SRUN_ARGS is a list of arguments in one variable, so it is split at spaces on purpose.
# shellcheck disable=SC2086
exec srun -p "$PARTITION" \
    --job-name="$JOB_NAME" \
    --gres="gpu:$GPUS_PER_NODE" \
    --ntasks="$TASKS" \
    --ntasks-per-node="$TASKS_PER_NODE" \
    --cpus-per-task="$CPUS_PER_TASK" \
    --kill-on-bad-exit=1 \
    $SRUN_ARGS \
    "${COMMAND[@]}"
