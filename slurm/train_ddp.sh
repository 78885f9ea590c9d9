#!/usr/bin/env bash
# Trains under DistributedDataParallel on the nodes of a job, with the node cache's service beside.
#
#   sbatch [options of sbatch] slurm/train_ddp.sh RECIPE DATA RUN [key=value ...]
#
#   sbatch --nodes=4 --gpus-per-node=4 --cpus-per-task=64 --mem=480G --time=12:00:00 \
#     slurm/train_ddp.sh resnet50_early_gpus /project/DATA /project/runs/first
#   sbatch --nodes=2 --ntasks-per-node=8 --cpus-per-task=8 --mem=200G slurm/train_ddp.sh ...
#   sbatch --nodes=2 --gpus-per-node=4 slurm/train_ddp.sh
#
# Without RECIPE, DATA and RUN it is the smoke test of the cluster: mock objects are made, packed, trained
# on and evaluated in a folder of their own, mstrain-smoke-JOB where the job was submitted, and one page
# says what ran where. The page, the run and the logs stay; objects and shards stay if a step failed.
#
# Runs one rank per GPU; without GPUs one per task of --ntasks-per-node. The job requeues itself before
# its time is over and when it is preempted, and resumes at the same step. Logs: RUN/logs/JOB/.
#
#SBATCH --job-name=mstrain
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@180

# --- Variables, by the environment: CACHE_GIB=300 sbatch slurm/train_ddp.sh ... -----------------
# MSDATA_SITE       file with the site's modules; the one file to edit     (slurm/site.sh)
# PYTHON            interpreter                                            (python in PATH)
# RANKS_PER_NODE    ranks on each node                                     (GPUs, else tasks per node)
# OMP_NUM_THREADS   threads of a rank's CPU work                           (CPUs / ranks)
# COMPILED_FILE     keeps compiled kernels for the next start; empty: none (RUN/compiled.tar)
# CACHE_GIB         memory of each node for the cache; 0: none             (auto: 3/4 of what is free)
# CACHE_SSD_GIB     of the node's SCRATCH_DIR for the cache's second tier  (0)
# CACHE_TRANSPORT   between nodes: a flavor of srun's --mpi (pmi2 for mpich, pmix for Open MPI);
#                   zmq, where nodes may die or MPI is missing; none       (pmi2)
# CACHE_ENCRYPT     of zmq; 0: others cannot listen to the nodes' network  (1)
# CACHE_WARMUP      blocking: the first epoch waits until it is full       (background)
# CACHE_WAIT_S      how long the cache's services may take to start        (60)
# SCRATCH_DIR       on a disk of the node                                  (SLURM_TMPDIR, TMPDIR, /tmp)
# DOCTOR            warn; strict: no training on nodes with faults; off    (warn)
# MAX_RESTARTS      times that torchrun starts the ranks again             (3)
# RDZV_PORT         of the rendezvous on the first node                    (from the job's number)
# STOP_GRACE_S      seconds to save after a cancellation; below KillWait   (20)
# EVALUATE          split that the network is tried on after training; none  (test, if there is one)
# SMOKE_DIR         folder of the smoke test, which all nodes see          (mstrain-smoke-JOB)
# SMOKE_OBJECTS     mock objects of it, 0.6 MB each     (16 per rank, 128 on GPUs; 64 to 4096 in all)
# TRAIN_MODULE      what ranks run: python -m ... RECIPE DATA --out RUN    (mstrain.train)
# ------------------------------------------------------------------------------------------------
# Set traps first: a signal would end this script, and the job would not be requeued. Modules and
# imports from a parallel file system are slow.
requeues_itself=1 asked='' interrupted='' serve_pid='' train_pid='' told=''
trap 'asked=USR1 interrupted=1' USR1
trap 'asked=TERM interrupted=1' TERM

source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ ! -e $source_dir/job.sh && ${SLURM_JOB_ID:-} ]]; then
  # sbatch runs a copy; Slurm knows where it came from.
  source_dir=$(squeue --noheader --job "$SLURM_JOB_ID" --format %o)
  source_dir=${source_dir%%/train_ddp.sh*}
fi
# shellcheck source=slurm/job.sh
source "$source_dir/job.sh"
# Also where a signal has ended what this script was waiting for, and `set -e` the script.
trap stop_if_asked EXIT
stop_if_asked

gpus_per_node=${SLURM_GPUS_ON_NODE:-0}
ranks_per_node=${RANKS_PER_NODE:-$((gpus_per_node > 0 ? gpus_per_node : tasks_per_node))}
[[ $ranks_per_node =~ ^[1-9][0-9]*$ ]] ||
  die "RANKS_PER_NODE must be an integer of at least 1, got $ranks_per_node"
num_ranks=$((ranks_per_node * SLURM_JOB_NUM_NODES))
smoke=''
if (($# == 0)); then
  # shellcheck source=slurm/smoke.sh
  source "$source_dir/smoke.sh"
  begin_smoke mstrain
  per_rank=$((gpus_per_node ? 128 : 16)) objects=$((num_ranks * (gpus_per_node ? 128 : 16)))
  smoke_data "${SMOKE_OBJECTS:-$((objects < 64 ? 64 : objects > 4096 ? 4096 : objects))}"
  set -- demo "$smoke/data" "$smoke/run" epochs=3 "batch_per_gpu=$((per_rank / 4))" \
    log.tensorboard=no log.every_steps=1
  ((gpus_per_node == 0)) || has_dali || set -- "$@" data.backend=torch
  CACHE_GIB=${CACHE_GIB:-$(cache_of_half "$SLURM_JOB_NUM_NODES")}
  CACHE_WARMUP=${CACHE_WARMUP:-blocking}
fi
(($# >= 3)) || die "usage: sbatch slurm/train_ddp.sh RECIPE DATA RUN [key=value ...]"
recipe=$1 data=$2 run=$3
shift 3
[[ -e $data/dataset.json ]] ||
  die "$data is not an msdata dataset: dataset.json not found; see msdata pack"
data=$(realpath "$data")
mkdir -p "$run" || die "$run cannot be created; name a folder that all nodes see and you may write to"
run=$(realpath "$run")

# A wrong setting is refused here, not by every rank on every node, three times.
[[ ${TRAIN_MODULE:-} ]] ||
  check_settings "$num_ranks" "$recipe" "$@" ||
  { stop_if_asked && exit 2; }
backend=auto
for setting in "$@"; do
  [[ $setting =~ ^(data\.)?backend=(.*)$ ]] && backend=${BASH_REMATCH[2]}
  [[ $setting =~ ^(compute\.)?device=cpu$ ]] && gpus_per_node=0 backend=reference
done
((gpus_per_node == 0)) || check_gpus "$ranks_per_node" "$backend"
stop_if_asked

# Files that this job's nodes exchange, removed with the job. The service keeps a key in it.
job_dir=$run/.job-$SLURM_JOB_ID
log_dir=$run/logs/$SLURM_JOB_ID${SLURM_RESTART_COUNT:+.$SLURM_RESTART_COUNT}
requeue_file=$job_dir/requeue
rm -rf "$job_dir"
mkdir -m 700 "$job_dir"
# Also makes the names of the nodes' scratch, where others may write, unpredictable.
SCRATCH_TOKEN=$(od -An -N8 -tx8 /dev/urandom)
export SCRATCH_TOKEN COMPILED_FILE=${COMPILED_FILE-$run/compiled.tar}
mkdir -p "$log_dir"

on_signal() {
  interrupted=1 asked=$1
  say "SIG$1: ${train_pid:+the ranks save and }the job ends"
  tell_ranks
}
# Once: a second signal might meet a rank that has saved and does not expect one any more.
tell_ranks() {
  if [[ $train_pid && ! $told ]]; then
    told=1
    tell_step "$train_pid"
  fi
}
end_service() {
  if [[ $serve_pid ]]; then
    tell_step "$serve_pid"
    wait_for "$serve_pid" || true
    serve_pid=''
  fi
}
end_job() {
  trap '' USR1 TERM
  end_service
  rm -rf "$job_dir"
}
trap 'on_signal USR1' USR1
trap 'on_signal TERM' TERM
trap 'end_job; stop_if_asked' EXIT

threads=$((cpus_per_node / ranks_per_node))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
cache_gib=${CACHE_GIB:-auto}
transport=${CACHE_TRANSPORT:-pmi2}
[[ $cache_gib =~ ^(auto|[0-9]*\.?[0-9]+)$ ]] ||
  die "CACHE_GIB must be auto, GiB, or 0 for no cache, got $cache_gib"
if [[ $cache_gib =~ ^[0.]+$ ]]; then
  cache_gib=0
elif [[ $cache_gib == auto && $SLURM_JOB_NUM_NODES != 1 && $transport == none ]]; then
  # Without services that agree on it, all nodes must use the same size.
  cache_gib=$(smallest_cache_gib)
fi

say "job $SLURM_JOB_ID: $SLURM_JOB_NUM_NODES nodes ($SLURM_JOB_NODELIST) x $ranks_per_node ranks," \
  "cache of $cache_gib GiB per node; start ${SLURM_RESTART_COUNT:-0}; logs in $log_dir"

if [[ ${DOCTOR:-warn} != off ]]; then
  planned=()
  [[ $cache_gib == auto ]] || planned+=(--memory-gib "$cache_gib")
  "$PYTHON" -m msdata doctor "$data" --ranks-per-node "$ranks_per_node" \
    --threads "$OMP_NUM_THREADS" --backend "$backend" "${planned[@]}" | tee "$log_dir/doctor.txt" ||
    [[ ${DOCTOR:-warn} == warn ]] || die "not trained: msdata doctor found faults and DOCTOR=$DOCTOR"
fi

stop_if_asked

# The caller's own settings take precedence: a setting may be given once.
settings=("$@")
set_default() {
  local setting
  for setting in "${settings[@]}"; do
    [[ ${setting%%=*} == "${1%%=*}" || data.${setting%%=*} == "${1%%=*}" ]] && return
  done
  settings+=("$1")
}

# start_service FLAVOR OPTIONS...: a service per node, which keeps the node's memory while ranks restart.
start_service() {
  local flavor=$1
  shift
  "${without_gpus[@]}" "${per_node[@]}" --gres=none --mpi="$flavor" --kill-on-bad-exit=0 \
    --job-name=cache "$source_dir/node.sh" serve "$log_dir" \
    "$PYTHON" -m msdata cache serve "$data" "$@" &
  serve_pid=$!
}

# Whether all services have started.
await_service() {
  local deadline=$((SECONDS + ${CACHE_WAIT_S:-60}))
  until grep -qs '^serving' "$log_dir"/*.serve.log; do
    kill -0 "$serve_pid" 2>/dev/null && ((SECONDS < deadline)) && [[ ! $asked ]] || return 1
    sleep 0.5
  done
}

ssd=()
if [[ $cache_gib != 0 && ${CACHE_SSD_GIB:-0} != 0 ]]; then
  ssd=('{scratch}/ssd' "$CACHE_SSD_GIB")
fi
if [[ $cache_gib != 0 && $SLURM_JOB_NUM_NODES != 1 ]]; then
  set_default data.policy=locality
fi
case $cache_gib,$transport in
  0,*) ;;
  *,none)
    set_default "data.cache_gib=$cache_gib"
    if ((${#ssd[@]})); then
      set_default "data.cache_ssd_dir=${ssd[0]}"
      set_default "data.cache_ssd_gib=${ssd[1]}"
    fi
    ;;
  *)
    between=()
    if ((SLURM_JOB_NUM_NODES == 1)); then
      transport=none
    elif [[ $transport == zmq ]]; then
      transport=none between=(--peers-dir "$job_dir/peers" --encrypt)
      [[ ${CACHE_ENCRYPT:-1} == 0 ]] && between[2]=--no-encrypt
    fi
    case ${CACHE_FILL:-} in # the former name and values of CACHE_WARMUP
      stage) warmup=blocking ;;
      *) warmup=${CACHE_WARMUP:-background} ;;
    esac
    # Twice: on a busy node Slurm's pmi2 (22.05) at times loses part of a message, and MPI hangs.
    for attempt in 1 2; do
      start_service "$transport" --memory-gib "$cache_gib" --warmup "$warmup" "${between[@]}" \
        ${ssd:+--ssd-dir "${ssd[0]}" --ssd-gib "${ssd[1]}"}
      await_service && break
      stop_if_asked
      [[ $attempt == 1 ]] && say "the cache's services have not started: trying again" >&2
      end_service
    done
    if [[ ! $serve_pid ]]; then
      [[ $cache_gib != auto ]] || cache_gib=$(smallest_cache_gib)
      say "no cache between nodes: its services have not started, see $log_dir/*.serve.log;" \
        "each node uses its own memory, $cache_gib GiB" >&2
      set_default "data.cache_gib=$cache_gib"
    elif ((${#between[@]})); then
      # A rank that starts while its service is gone needs it.
      set_default "data.cache_peers_dir=${between[1]}"
    fi
    set_default data.cache_gib=auto
    ;;
esac

# torchrun_step KIND MAX_RESTARTS WORDS...: WORDS end with what each rank runs.
torchrun_step() {
  local kind=$1 restarts=$2 started=$SECONDS
  step=$kind
  shift 2
  # Whose store it is must not be guessed from names. Imports from a parallel file system take time.
  "${per_node[@]}" --kill-on-bad-exit=1 --job-name="$kind" "$source_dir/node.sh" "$kind" "$log_dir" \
    "$PYTHON" -m torch.distributed.run --nnodes="$SLURM_JOB_NUM_NODES" \
    --nproc-per-node="$ranks_per_node" --max-restarts="$restarts" \
    --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}.$kind" \
    --rdzv-endpoint="$(head_address):${RDZV_PORT:-$((20000 + SLURM_JOB_ID % 12000))}" \
    --rdzv-conf='is_host={is_first},read_timeout=600' "$@" &
  train_pid=$! told=''
  # Pass on a signal that came while the step was starting.
  [[ ! $asked ]] || tell_ranks
  status=0
  wait_for "$train_pid" || status=$?
  train_pid=''
  # torchrun ends with 1 whatever its ranks ended with.
  ((status == 0)) || [[ ! -e $job_dir/wrong-usage ]] || status=2
  [[ ! $smoke ]] || smoke_time "$kind" $((SECONDS - started))
}

# The page of the smoke test.
end_with_page() {
  local own=resnet18_early
  ((gpus_per_node == 0)) || own=resnet50_early_gpus
  {
    smoke_head
    printf '%-10s %s\n' logs "$log_dir"
    smoke_doctor "$log_dir/doctor.txt"
    "$PYTHON" -m mstrain.training.smoke_page "$run" --ranks "$num_ranks" "${asked_gpus[@]}" \
      "${split[@]}" || return
    smoke_command train_ddp.sh "$own" DATA RUN
  } | tee "$smoke/page.txt"
}

mapfile -t bound < <(numa_binding "$gpus_per_node")
# Ranks answer signals themselves. Older torchruns stop them at once, or after 30 s, by SIGKILL.
handled=()
if grep -q signals-to-handle "$(module_dir torch)/distributed/run.py"; then
  handled=("--signals-to-handle=SIGINT,SIGHUP,SIGQUIT")
fi
status=0
stop_if_asked
torchrun_step train "${MAX_RESTARTS:-3}" "${handled[@]}" "${bound[@]}" --no-python \
  "$source_dir/rank.sh" "$requeue_file" '{scratch}/asked' \
  "$PYTHON" -m "${TRAIN_MODULE:-mstrain.train}" "$recipe" "$data" --out "$run" "${settings[@]}"

evaluated=${EVALUATE:-test}
if [[ $status == 0 && ! $asked && $evaluated != none ]] && has_split "$data" "$evaluated"; then
  torchrun_step evaluate 0 -m mstrain.evaluate "$run" "$data" --split "$evaluated"
  if [[ $asked ]]; then
    # After the restart the training is complete already, and the evaluation starts again.
    touch "$requeue_file"
  fi
fi

# A job that was asked to end is requeued whatever the step's exit code: the signal may have killed the
# step before it started (138), bash may have lost the code (0, 255), and a job that had just finished
# repeats only its evaluation. Wrong usage would fail again.
if [[ (-e $requeue_file && $status == 0) || ($asked && $status != 2) ]]; then
  requeue_job saved
elif ((status)); then
  asked=''
  say "${smoke:+smoke test: }step $step failed with exit code $status; the last lines of $log_dir:" >&2
  shopt -s nullglob
  tail -n 15 "$log_dir"/*.train.log "$log_dir"/*.evaluate.log >&2
  exit "$status"
elif [[ $smoke ]]; then
  split=()
  [[ $evaluated == none ]] || split=(--split "$evaluated")
  asked_gpus=()
  ((gpus_per_node == 0)) || asked_gpus=(--gpus)
  smoke_step page end_with_page
  end_smoke
  say "done: $smoke/page.txt"
else
  say "done: $run"
fi
