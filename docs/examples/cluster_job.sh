#!/usr/bin/env bash
# A training loop of your own on several nodes.
#
#   sbatch --nodes=2 --gpus-per-node=4 docs/examples/cluster_job.sh \
#     docs/examples/ddp_resume.py DATA STATE.pt
#
# The program, DATA and the state must lie where all nodes see them. Without GPUs give
# RANKS_PER_NODE. srun starts one torchrun per node, torchrun one rank per GPU.
set -euo pipefail

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol --oneliner show node "$head" | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2)
port=$((20000 + SLURM_JOB_ID % 12000))

srun --ntasks-per-node=1 --kill-on-bad-exit=1 \
  torchrun --nnodes="$SLURM_NNODES" --nproc-per-node="${RANKS_PER_NODE:-gpu}" \
  --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$address:$port" "$@"
