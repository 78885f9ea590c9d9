#!/usr/bin/env bash
# One node's part of a step: scratch on the node, a log of its own, and nothing left behind.
#
#   srun --ntasks-per-node=1 node.sh train|evaluate|serve LOG_DIR COMMAND...
#
# SIGUSR1 and SIGTERM ask for an orderly end; Slurm sends them to every process of a step at once.
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

# A folder for each node, since nodes of a test share a machine, and in it one for each step. Others
# may write where it lies, so its name cannot be guessed, and what is found there is looked at first.
scratch_root=${SCRATCH_DIR:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}}
if ! scratch_root=$(realpath -e -- "$scratch_root"); then
  echo "$node: the folder of the node's scratch was not found; name one with SCRATCH_DIR" >&2
  exit 1
fi
scratch_root=${scratch_root%/}
# Steps with the same SCRATCH_TOKEN share the folder.
token=${SCRATCH_TOKEN:-$(od -An -N8 -tx8 /dev/urandom)}
scratch_name=msdata-$SLURM_JOB_ID-$node-${token// /}
node_scratch=$scratch_root/$scratch_name
scratch=$node_scratch/$kind

# enter NAME: goes into a folder below $scratch_root, if it is this user's alone, and no link.
enter() {
  cd -P -- "$scratch_root/$1" 2>/dev/null &&
    [[ $(realpath .) == "$scratch_root/$1" && -O . && $(stat -c %a .) == *700 ]]
}

mkdir -m 700 "$node_scratch" 2>/dev/null
if ! (enter "$scratch_name" && mkdir -p "$kind"); then
  echo "$node: $node_scratch cannot be created, or is not this user's alone; name a folder of the" \
    "node with SCRATCH_DIR" >&2
  exit 1
fi
# Remove what an earlier start of this job left here when it was killed.
if ((${SLURM_RESTART_COUNT:-0})); then
  for found in "$scratch_root/msdata-$SLURM_JOB_ID-$node-"*; do
    [[ $found == "$node_scratch" ]] && continue
    (enter "${found##*/}" && find . -mindepth 1 -delete) && rmdir "$found"
  done
fi
# Compiled kernels and lock files: many small writes, which parallel file systems are bad at. So they
# are kept from one start of a job to the next as one file, which the first node writes.
export TMPDIR=$scratch
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$scratch/compiled/inductor}
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$scratch/compiled/triton}
kernels=''
[[ $kind == train ]] && kernels=${COMPILED_FILE:-}
if [[ $kernels && -e $kernels ]]; then
  tar -C "$scratch" --no-same-owner -xf "$kernels" compiled ||
    echo "$node: $kernels cannot be read: kernels are compiled again"
fi
keep_kernels() {
  if [[ $kernels && ! ${killer:-} && -d $scratch/compiled ]] && ((SLURM_NODEID == 0)); then
    (umask 077 && tar -C "$scratch" -cf "$kernels.new" compiled && mv "$kernels.new" "$kernels") ||
      echo "$node: $kernels cannot be written: the next start compiles its kernels again"
  fi
}
# torchrun would give restarted ranks the store of the earlier ones, with their addresses.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# At these places {scratch} means the node's folder, which all its steps see. Elsewhere it is the
# name of somebody's file; and what is put in is not searched for characters that mean something.
words=()
for word in "$@"; do
  case $word in
    '{scratch}/'*) word=$node_scratch${word#'{scratch}'} ;;
    data.cache_ssd_dir='{scratch}/'* | cache_ssd_dir='{scratch}/'*)
      word=${word%%=*}=$node_scratch${word#*'{scratch}'}
      ;;
    --rdzv-conf=is_host='{is_first}',*)
      word=--rdzv-conf=is_host=$((SLURM_NODEID == 0))${word#*'{is_first}'}
      ;;
  esac
  words+=("$word")
done
set -- "${words[@]}"

child='' asked='' restarts=0

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
    echo "$node: did not end in $grace_s s: killed"
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
  keep_kernels
  if [[ ${killer:-} ]]; then
    { kill -KILL "$killer" && wait "$killer"; } 2>/dev/null
  fi
  # The SSD tier goes with the ranks; a service that is still at it keeps what it has open.
  local left=("./$kind")
  [[ $kind == train ]] && left+=(./ssd ./asked)
  (enter "$scratch_name" && rm -rf "${left[@]}")
  rmdir "$node_scratch" 2>/dev/null
  clean_shm "$SLURM_JOB_ID-"
}

trap clean_up EXIT
trap on_term TERM
trap on_usr1 USR1

printf '%(%F %T)T %s: job %s, start %s: %s\n' -1 "$node" "$SLURM_JOB_ID" \
  "${SLURM_RESTART_COUNT:-0}" "$kind"
clean_shm
while :; do
  (
    trap '' USR1
    [[ $kind == train ]] && trap '' TERM
    exec "$@"
  ) &
  child=$! status=0
  wait_for "$child" || status=$?
  # A service over TCP that died joins the arena of its ranks again; under MPI all have ended.
  [[ $kind == serve && " $* " == *' --peers-dir '* && ! $asked ]] || break
  # Wrong usage stays wrong.
  ((status && status != 2 && restarts++ < 20)) || break
  printf '%(%F %T)T %s: the service ended with code %s and is started again\n' -1 "$node" "$status"
  sleep "${SERVICE_PAUSE_S:-5}" &
  wait "$!"
  if [[ $asked ]]; then
    kill "$!" 2>/dev/null
    break
  fi
done
# A command that was asked to end has ended well, or was killed; neither is a reason to fail the step
# and have Slurm kill the other nodes' tasks, which may be saving.
[[ $asked ]] && status=0
exit "$status"
