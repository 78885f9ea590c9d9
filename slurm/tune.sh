#!/usr/bin/env bash
# Searches settings of a recipe: every job of an array starts workers of one study on its node.
#
#   sbatch [options of sbatch] slurm/tune.sh RECIPE DATA STUDY [options of mstrain tune]
#
#   sbatch --array=0-15 --gpus-per-node=4 --cpus-per-task=64 --mem=480G --time=12:00:00 \
#     slurm/tune.sh resnet18_early /project/DATA /project/STUDY --trials 60 epochs=27 \
#     --objective crps --search 'optim.learning_rate=log:1e-5..3e-3' 'batch_size=64,128,256'
#
# Runs one worker per GPU; without GPUs one per task of --ntasks-per-node. Workers need no server: they
# share STUDY, which all nodes see, and --trials counts those of the whole study. All trials of a node
# read one cache. A job requeues itself before its time is over and when it is preempted; its trials
# resume at the same step, in whichever job is first. Logs: STUDY/logs/JOB/.
#
#SBATCH --job-name=mstrain-tune
#SBATCH --output=%x-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --requeue
#SBATCH --signal=B:USR1@180

# --- Variables, by the environment: WORKERS_PER_NODE=2 sbatch slurm/tune.sh ... ------------------
# MSDATA_SITE       file with the site's modules; the one file to edit     (slurm/site.sh)
# PYTHON            interpreter                                            (python in PATH)
# WORKERS_PER_NODE  workers on each node                                   (GPUs, else tasks per node)
# OMP_NUM_THREADS   threads of a worker's CPU work                         (CPUs / workers)
# ------------------------------------------------------------------------------------------------
# Set traps first: a signal would end this script, and the job would not be requeued.
requeues_itself=1 asked='' interrupted='' workers_pid='' told=''
trap 'asked=USR1 interrupted=1' USR1
trap 'asked=TERM interrupted=1' TERM

source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ ! -e $source_dir/job.sh && ${SLURM_JOB_ID:-} ]]; then
  # sbatch runs a copy; Slurm knows where it came from.
  source_dir=$(squeue --noheader --job "$SLURM_JOB_ID" --format %o)
  source_dir=${source_dir%%/tune.sh*}
fi
# shellcheck source=slurm/job.sh
source "$source_dir/job.sh"
trap stop_if_asked EXIT
stop_if_asked

(($# >= 3)) || die "usage: sbatch --array=0-15 slurm/tune.sh RECIPE DATA STUDY --search NAME=SPACE ..."
recipe=$1 data=$2 study=$3
shift 3
[[ -e $data/dataset.json ]] ||
  die "$data is not an msdata dataset: dataset.json not found; see msdata pack"
data=$(realpath "$data")
gpus_per_node=${SLURM_GPUS_ON_NODE:-0}
workers=${WORKERS_PER_NODE:-$((gpus_per_node > 0 ? gpus_per_node : tasks_per_node))}
[[ $workers =~ ^[1-9][0-9]*$ ]] ||
  die "WORKERS_PER_NODE must be an integer of at least 1, got $workers"
log_dir=$study/logs/$SLURM_JOB_ID${SLURM_RESTART_COUNT:+.$SLURM_RESTART_COUNT}
mkdir -p "$log_dir" ||
  die "$log_dir cannot be created; name a STUDY that all nodes see and you may write to"
threads=$((cpus_per_node / workers))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}

# Once: a second signal might meet a worker that has saved and does not expect one any more.
tell_workers() {
  if [[ $workers_pid && ! $told ]]; then
    told=1
    tell_step "$workers_pid"
  fi
}
on_signal() {
  interrupted=1 asked=$1
  say "SIG$1: ${workers_pid:+the workers save and }the job ends"
  tell_workers
}
trap 'on_signal USR1' USR1
trap 'on_signal TERM' TERM

say "job $SLURM_JOB_ID: $SLURM_JOB_NUM_NODES nodes ($SLURM_JOB_NODELIST) x $workers workers of" \
  "$study; start ${SLURM_RESTART_COUNT:-0}; logs in $log_dir"
# A worker that ends, however it does, leaves its trial to the others.
"${per_node[@]}" --ntasks="$((SLURM_JOB_NUM_NODES * workers))" --ntasks-per-node="$workers" \
  --kill-on-bad-exit=0 --job-name=tune --output="$log_dir/%t.log" \
  "$PYTHON" -m mstrain tune "$recipe" "$data" --out "$study" "$@" &
workers_pid=$!
# Pass on a signal that came while the step was starting.
[[ ! $asked ]] || tell_workers
status=0
wait_for "$workers_pid" || status=$?
workers_pid=''

# Wrong usage would fail again.
if ((status == 85)) || [[ $asked && $status != 2 ]]; then
  asked=''
  requeue_job "saved"
elif ((status)); then
  asked=''
  say "a worker failed with exit code $status; the last lines of $log_dir:" >&2
  tail -n 5 "$log_dir"/*.log >&2
  exit "$status"
fi
# Each worker ends with the results so far.
tail -n 12 "$log_dir/0.log"
say "done: $study"
