# shellcheck shell=bash
# What a batch script does when it is submitted without arguments: a smoke test of the cluster on mock
# objects, in a folder of its own. Sourced after job.sh, never run.
# shellcheck disable=SC2034,SC2154  # used where this is sourced, set by job.sh

# begin_smoke NAME: the folder, which must be seen by all nodes: where the job was submitted.
begin_smoke() {
  smoke=${SMOKE_DIR:-${SLURM_SUBMIT_DIR:-$PWD}/$1-smoke-$SLURM_JOB_ID}
  smoke_times=''
  mkdir -p "$smoke" ||
    die "smoke test: $smoke cannot be created; name a folder that all nodes see with SMOKE_DIR"
  smoke=$(realpath "$smoke")
  say "smoke test of job $SLURM_JOB_ID in $smoke"
}

# smoke_step NAME COMMAND...: its exit code ends the job, unless the job was asked to end.
smoke_step() {
  local name=$1 started=$SECONDS status=0
  shift
  say "smoke test: $name"
  "$@" || status=$?
  [[ ! ${requeues_itself:-} ]] || stop_if_asked
  if ((status)); then
    say "smoke test: step $name failed with exit code $status; $smoke is kept" >&2
    exit "$status"
  fi
  smoke_time "$name" $((SECONDS - started))
}

smoke_time() { smoke_times+="${smoke_times:+, }$1 $2 s"; }

# smoke_pack: how the objects are packed: by MPI ranks of all nodes if the cache uses MPI, too.
smoke_pack() {
  local mpi=${CACHE_TRANSPORT:-pmi2} words
  words=("$PYTHON" -m msdata pack "$smoke/objects" "$smoke/data" --catalog "$smoke/objects/catalog.csv"
    --shard-size 4MiB --quiet --resume)
  if [[ $mpi == zmq || $mpi == none ]]; then
    "${words[@]}" --jobs "$cpus_per_node"
  else
    srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
      --mpi="$mpi" "${words[@]}"
  fi
}

# smoke_data OBJECTS: mock objects, packed; a job that was requeued finds them.
smoke_data() {
  [[ ! -e $smoke/data/statistics.json ]] || return 0
  if [[ ! -e $smoke/objects.made ]]; then
    rm -rf "$smoke/objects"
    smoke_step mock "$PYTHON" -m msdata mock "$smoke/objects" --n "$1" --jobs "$cpus_per_node"
    touch "$smoke/objects.made"
  fi
  smoke_step pack smoke_pack
  smoke_step stats "$PYTHON" -m msdata stats "$smoke/data"
}

# cache_of_half NODES: GiB of each node that together hold about half of the training data, so that
# all tiers of the cache have work.
cache_of_half() {
  du -cb "$smoke"/data/train/shard-* | awk -v nodes="$1" 'END {printf "%.6f", 0.6 * $1 / nodes / 2^30}'
}

# smoke_head: the page's first lines.
smoke_head() {
  printf 'smoke test of job %s on %s node(s), %s\n%-10s %s\n' \
    "$SLURM_JOB_ID" "$SLURM_JOB_NUM_NODES" "$SLURM_JOB_NODELIST" times "$smoke_times"
}

# smoke_doctor FILE: what `msdata doctor` printed: its faults, each with its cure.
smoke_doctor() {
  local count
  count=$(grep -c '^WRONG' "$1" 2>/dev/null || true)
  if [[ ! -s $1 ]]; then
    echo 'doctor     not asked'
  elif ((count)); then
    printf 'doctor     %s fault(s):\n' "$count"
    grep -A 1 '^WRONG' "$1" | grep -v '^--$'
  else
    echo 'doctor     nothing wrong'
  fi
}

# smoke_command SCRIPT ARGUMENTS...: the page's last line, how to run the script on one's own data.
smoke_command() {
  printf 'your data: %ssbatch %s %s/%s\n' "${CACHE_TRANSPORT:+CACHE_TRANSPORT=$CACHE_TRANSPORT }" \
    "$(smoke_options)" "$source_dir" "$*"
}

# end_smoke: removes what was made to be read; logs, run and page stay.
end_smoke() { rm -rf "$smoke/objects" "$smoke/objects.made" "$smoke/data"; }

# smoke_options: the options of sbatch that this job had, for the command with one's own data.
smoke_options() {
  printf -- '--nodes=%s' "$SLURM_JOB_NUM_NODES"
  if ((${SLURM_GPUS_ON_NODE:-0})); then
    printf -- ' --gpus-per-node=%s --cpus-per-task=%s' "$SLURM_GPUS_ON_NODE" "$cpus_per_node"
  else
    printf -- ' --ntasks-per-node=%s' "$tasks_per_node"
  fi
}
