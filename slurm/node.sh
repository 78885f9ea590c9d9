#!/usr/bin/env bash
# One node's part of a step: scratch on the node, a log of its own, and nothing left behind.
#
#   srun --ntasks-per-node=1 node.sh train|evaluate|serve LOG_DIR COMMAND...
#
# SIGUSR1 and SIGTERM ask for a good end; Slurm hands them to every process of a step at once.
#   train  COMMAND is torchrun. It is made to ignore both, so that it does not stop its ranks while
#          they save; they answer themselves, and torchrun ends when they have.
#   evaluate, serve  COMMAND ends by SIGTERM, and gets one also for a SIGUSR1.
# What has not ended after STOP_GRACE_S is killed, so that there is time to clean up before Slurm
# kills everything: KillWait after a cancellation, 30 s unless the site has changed it.
# shellcheck disable=SC2317  # traps call what looks unreachable
set -uo pipefail

# shellcheck source=slurm/wait.sh
source "${BASH_SOURCE[0]%/*}/wait.sh"
kind=$1 log_dir=$2
shift 2
node=${SLURMD_NODENAME:-$(hostname -s)}
grace_s=${STOP_GRACE_S:-20}
exec >>"$log_dir/$node.$kind.log" 2>&1 </dev/null

# A folder for each node, since nodes of a test share a machine, and in it one for each step.
node_scratch=${SCRATCH_DIR:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}}/msdata-$SLURM_JOB_ID-$node
scratch=$node_scratch/$kind
mkdir -m 700 "$node_scratch" 2>/dev/null
if [[ ! -O $node_scratch ]] || ! mkdir -p "$scratch"; then
  echo "$node: $node_scratch cannot be made; name a folder of the node with SCRATCH_DIR" >&2
  exit 1
fi
# Compiled kernels and lock files: many small writes, which parallel file systems are bad at.
export TMPDIR=$scratch TORCHINDUCTOR_CACHE_DIR=$scratch/inductor TRITON_CACHE_DIR=$scratch/triton
# torchrun would hand ranks that it starts again the store of those before, with their addresses.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# {scratch} in an argument means the node's folder, which all its steps see.
set -- "${@//\{scratch\}/$node_scratch}"
set -- "${@//\{is_first\}/$((SLURM_NODEID == 0))}"

child='' asked=''

# torchrun makes each rank the leader of a process group.
kill_ranks() {
  local rank
  for rank in $(pgrep -P "$child"); do
    kill -KILL -- "-$rank" 2>/dev/null
  done
}

ask_to_end() {
  [[ $child ]] || exit 0
  # Slurm has signalled the ranks too.
  [[ $kind == train ]] || kill -TERM "$child" 2>/dev/null
}

kill_later() {
  [[ ${killer:-} ]] && return
  {
    trap '' TERM USR1
    # A sleep without a process of its own, which would outlive this one.
    read -r -t "$grace_s" <><(:)
    echo "$node: not ended in $grace_s s: killed"
    [[ $kind == train ]] && kill_ranks
    kill -KILL "$child" 2>/dev/null
  } &
  killer=$!
}

on_term() {
  asked=1 interrupted=1
  ask_to_end
  kill_later
}

# Only a cancellation is short of time: the ranks may take as long to save as they need.
on_usr1() {
  # For ranks that torchrun is about to start again.
  if [[ $kind == train ]]; then
    touch "$node_scratch/asked"
  else
    kill_later
  fi
  asked=1 interrupted=1
  ask_to_end
}

# What killed processes left in shared memory; what others use stays. Starting Python takes longer
# than looking whether there is anything.
clean_shm() {
  if [[ $kind == serve ]] || compgen -G "/dev/shm/msdata-$EUID-${1:-}*" >/dev/null; then
    "$PYTHON" -m msdata cache clean
  fi
}

clean_up() {
  trap '' TERM USR1
  if [[ ${killer:-} ]]; then
    { kill -KILL "$killer" && wait "$killer"; } 2>/dev/null
  fi
  rm -rf "$scratch"
  # The SSD tier goes with the ranks; a service that is still at it keeps what it has open.
  [[ $kind == train ]] && rm -rf "$node_scratch/ssd" "$node_scratch/asked"
  rmdir "$node_scratch" 2>/dev/null
  clean_shm "$SLURM_JOB_ID-"
}

trap clean_up EXIT
trap on_term TERM
trap on_usr1 USR1

printf '%(%F %T)T %s: job %s, start %s: %s\n' -1 "$node" "$SLURM_JOB_ID" \
  "${SLURM_RESTART_COUNT:-0}" "$kind"
clean_shm
(
  trap '' USR1
  [[ $kind == train ]] && trap '' TERM
  exec "$@"
) &
child=$!

status=0
wait_for "$child" || status=$?
# Whoever was asked to end has ended well, or was killed; neither is a reason to fail the step and
# have Slurm kill the other nodes' tasks, which may be saving.
[[ $asked ]] && status=0
exit "$status"
