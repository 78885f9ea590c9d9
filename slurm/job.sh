# shellcheck shell=bash
# What the batch scripts share: the site's modules, steps of one task per node, waiting for a step
# while signals arrive, requeueing. Sourced on the job's first node, never run.
# shellcheck disable=SC2034  # used where this is sourced
set -euo pipefail

slurm_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=slurm/wait.sh
source "$slurm_dir/wait.sh"

say() { printf '%(%F %T)T %s\n' -1 "$*"; }

# Whether the job is running, and not being canceled, preempted or requeued by somebody else.
is_running() {
  [[ $(squeue --noheader --job "$SLURM_JOB_ID" --format %T 2>/dev/null) == RUNNING ]]
}

# requeue_job DONE: ends the script, after its `end_job` if it has one, and has the job started again
# unless Slurm is ending it anyway.
requeue_job() {
  trap '' USR1 TERM
  asked=''
  if declare -F end_job >/dev/null; then
    end_job
  fi
  if ! is_running; then
    say "$1; Slurm is ending this job, which resumes at the same step when it is started again"
  elif scontrol requeue "$SLURM_JOB_ID"; then
    say "$1; requeued, to resume at the same step"
  else
    say "$1, but not requeued; submit the same command to resume at the same step" >&2
    exit 1
  fi
  exit 0
}

# Requeues a script with `requeues_itself` that was asked to end before it began; its traps set `asked`.
stop_if_asked() {
  [[ ! ${asked:-} || ! ${requeues_itself:-} ]] || requeue_job "SIG$asked came before any work started"
}

# Wrong usage and missing software end with exit code 2, as in the msdata command.
die() {
  # What a signal to the whole job has ended is not the user's mistake.
  stop_if_asked
  say "${SLURM_JOB_NAME:-job}: $*" >&2
  exit 2
}

[[ ${SLURM_JOB_ID:-} && ${SLURM_JOB_NUM_NODES:-} ]] ||
  die "this must run in a Slurm job; submit it: sbatch ${0##*/} ..."

# The modules' own scripts expect a shell without these options.
set +eu
# shellcheck source=slurm/site.sh
source "${MSDATA_SITE:-$slurm_dir/site.sh}" || die "${MSDATA_SITE:-$slurm_dir/site.sh} failed"
set -eu

PYTHON=${PYTHON:-$(command -v python || command -v python3 || true)}
[[ $PYTHON ]] || die "python was not found; activate an environment in ${MSDATA_SITE:-$slurm_dir/site.sh}"
export PYTHON
"$PYTHON" -c 'import msdata' 2>/dev/null ||
  die "$PYTHON cannot import msdata; activate its environment in ${MSDATA_SITE:-$slurm_dir/site.sh}"

# Steps take the environment from here, also of a job that was submitted with --export=NONE; and
# they ask for CPUs and tasks themselves: what sbatch was given for tasks would shrink them.
export SLURM_EXPORT_ENV=ALL
cpus_per_node=${SLURM_CPUS_ON_NODE:-1}
# --ntasks alone suffices if the nodes can share it evenly.
tasks=${SLURM_NTASKS:-$SLURM_JOB_NUM_NODES}
[[ ${SLURM_NTASKS_PER_NODE:-} ]] || ((tasks % SLURM_JOB_NUM_NODES == 0)) ||
  die "$tasks tasks cannot be shared evenly by $SLURM_JOB_NUM_NODES nodes; give --ntasks-per-node"
tasks_per_node=${SLURM_NTASKS_PER_NODE:-$((tasks / SLURM_JOB_NUM_NODES))}
unset SLURM_CPUS_PER_TASK SRUN_CPUS_PER_TASK SLURM_TRES_PER_TASK
unset SLURM_NTASKS SLURM_NPROCS SLURM_NTASKS_PER_NODE SLURM_DISTRIBUTION
# Of --gpus-per-task a step of one task per node would get one GPU.
if [[ ${SLURM_GPUS_PER_TASK:-}${SLURM_NTASKS_PER_GPU:-} ]]; then
  unset SLURM_GPUS_PER_TASK SLURM_NTASKS_PER_GPU SLURM_GPU_BIND SLURM_GPU_BIND_TYPE
  export SLURM_GPUS_PER_NODE=${SLURM_GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-}}
fi

# One task on every node beside the other steps, free to use all the CPUs that the job has there.
# Slurm would otherwise bind the one task, and all its children, to one core.
per_node=(
  srun --overlap --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES"
  --ntasks-per-node=1 --wait=0
)
if scontrol show config | grep -q '^TaskPlugin .*affinity'; then
  per_node+=(--cpu-bind=none)
fi
# For steps without use for GPUs: releases of Slurm before 21.08 do not share them between steps.
without_gpus=(env -u SLURM_GPUS -u SLURM_GPUS_PER_NODE -u SLURM_GPUS_PER_TASK)

# The address at which Slurm itself reaches the job's first node: names of nodes need not resolve.
head_address() {
  local head address
  head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  address=$(scontrol --oneliner show node "$head" | grep -o ' NodeAddr=[^ ]*' || true)
  printf '%s\n' "${address#*=}" | grep . || printf '%s\n' "$head"
}

# tell_step PID: asks a step to end in good order. srun forwards SIGUSR1 to every process of the step,
# but turns SIGTERM into SIGKILL.
tell_step() { kill -USR1 "$1" 2>/dev/null || true; }

# GiB that every node can give to its cache.
smallest_cache_gib() {
  "${without_gpus[@]}" "${per_node[@]}" "$PYTHON" -m msdata cache size | sort -g | head -n 1
}

# module_dir NAME: where a Python package lies, without importing it.
module_dir() {
  "$PYTHON" -c 'import importlib.util as u, sys
print(u.find_spec(sys.argv[1]).submodule_search_locations[0])' "$1"
}

# numa_binding GPUS: torchrun's option that keeps each rank on the cores and memory next to its GPU;
# nothing without GPUs, without numactl, or if this torch has no CUDA or does not know it.
numa_binding() {
  local torch
  torch=$(module_dir torch)
  if (($1)) && command -v numactl >/dev/null && grep -q "^cuda.*= *['\"]" "$torch/version.py" &&
    grep -q -- --numa-binding "$torch/distributed/run.py"; then
    echo --numa-binding=node
  fi
}

# has_split DATA NAME: whether a data set has samples in a split.
has_split() {
  "$PYTHON" -c 'import sys, msdata
data = msdata.open(sys.argv[1])
sys.exit(sys.argv[2] not in data.splits or not len(data.split(sys.argv[2])))' "$1" "$2"
}

# gpus_of_nodes: the numbers of GPUs that nodes of the job have, each once, in order.
gpus_of_nodes() {
  "${per_node[@]}" "$PYTHON" -c 'import os; print(os.environ.get("SLURM_GPUS_ON_NODE", 0))' |
    sort -nu || true
}

# check_gpus RANKS_PER_NODE BACKEND: refuses what would end or idle the ranks of a job with GPUs.
check_gpus() {
  local ranks=$1 backend=$2 counts instances
  mapfile -t counts < <(gpus_of_nodes)
  ((${#counts[@]})) || { say "note: srun did not say how many GPUs the nodes have" >&2 && return; }
  if ((counts[0] < ranks)); then
    die "a node has ${counts[0]} GPU(s) for $ranks ranks; ask for them per node (--gpus-per-node=$ranks)," \
      "or give RANKS_PER_NODE=${counts[0]}"
  elif ((counts[-1] > ranks)); then
    say "note: up to $((counts[-1] - ranks)) GPU(s) of a node stay idle beside $ranks ranks" >&2
  fi
  instances=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^ *MIG ' || true)
  ((instances == 0 || ranks * SLURM_JOB_NUM_NODES == 1)) ||
    die "the GPUs are instances of MIG, of which a process can use one, and NCCL joins none; ask for" \
      "whole GPUs, or give --nodes=1 RANKS_PER_NODE=1"
  [[ $backend != auto && $backend != dali ]] || has_dali ||
    die "data.backend=$backend takes DALI on a GPU, which $PYTHON cannot import; pip install" \
      "'msdata[dali]' (CUDA 13: 'msdata[dali-cuda13]'), or give data.backend=torch"
}

has_dali() { "$PYTHON" -c 'import nvidia.dali.pipeline, nvidia.dali.fn' 2>/dev/null; }

# check_settings RANKS RECIPE key=value...: whether mstrain accepts them, and RANKS ranks can share
# the batch; prints the fault if not.
check_settings() {
  "$PYTHON" -c 'import sys
from msdata.errors import UsageError
from mstrain.config import batch_per_rank
from mstrain.overrides import apply_overrides
from mstrain.recipes import find_recipe
try:
    config = apply_overrides(find_recipe(sys.argv[2]), sys.argv[3:])
    batch_per_rank(config, int(sys.argv[1]))
except UsageError as error:
    sys.exit(f"mstrain train: {error}")' "$@"
}
