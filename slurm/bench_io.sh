#!/usr/bin/env bash
# Benchmarks a cluster's I/O on the nodes of a job: what the storage and the nodes could do, how fast
# loaders are on the same bytes, what the cache gives, how it scales; and a report of it all.
#
#   sbatch [options of sbatch] slurm/bench_io.sh OUT [options of python -m benchmarks QUESTION]
#
#   sbatch --nodes=8 --exclusive --time=2:00:00 slurm/bench_io.sh /project/bench --data /project/DATA
#   sbatch --nodes=2 --time=0:30:00 slurm/bench_io.sh /project/bench --quick
#   sbatch --nodes=2 slurm/bench_io.sh
#
# Without OUT it is a smoke test: every question is asked of 64 small mock samples, in a folder of its own,
# msdata-bench-smoke-JOB where the job was submitted, and one page says what ran and what to run next.
#
# OUT lies on the storage that is to be measured, where all nodes see it. `limit` and `loaders` run on
# the job's first node; `cache` and `scale` on 1, 2, 4, ... and all of them. A question that fails
# leaves the others' results unchanged, and sets the job's exit code. OUT/report.html is written last,
# from all results.
#
#SBATCH --job-name=msdata-bench
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append

# --- Variables, by the environment: QUESTIONS="limit scale" sbatch slurm/bench_io.sh ... ----------
# MSDATA_SITE     file with the site's modules; the one file to edit       (slurm/site.sh)
# PYTHON          interpreter                                              (python in PATH)
# QUESTIONS       what to ask, in this order                               (limit loaders cache scale)
# PEERS           contestants of loaders, such as ours_tar,dali_webdataset (all that are installed)
# MACHINE         machine.json of msdata probe, for scale                  (measured)
# RANKS_PER_NODE  loaders on each node, for scale                          (tasks per node)
# SMOKE_DIR       folder of the smoke test, which all nodes see            (msdata-bench-smoke-JOB)
# SRUN_MPI        srun's --mpi: pmi2 for MPICH and relatives, pmix for Open MPI  (pmi2)
# ------------------------------------------------------------------------------------------------
source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ ! -e $source_dir/job.sh && ${SLURM_JOB_ID:-} ]]; then
  # sbatch runs a copy; Slurm knows where it came from.
  source_dir=$(squeue --noheader --job "$SLURM_JOB_ID" --format %o)
  source_dir=${source_dir%%/bench_io.sh*}
fi
# shellcheck source=slurm/job.sh
source "$source_dir/job.sh"

smoke=''
if (($# == 0)); then
  # shellcheck source=slurm/smoke.sh
  source "$source_dir/smoke.sh"
  begin_smoke msdata-bench
  set -- "$smoke/results" --quick --mock 64 --workload stamps
  PEERS=${PEERS:-ours_tar,bare_map}
fi
[[ ${1:--} != -* ]] ||
  die "usage: sbatch slurm/bench_io.sh OUT [--data DATA | --mock N] [--workload NAME] [--quick]"
out=$1
shift
mkdir -p "$out" || die "$out cannot be created; name a folder that all nodes see and you may write to"
out=$(realpath "$out")
root=${source_dir%/*}
[[ -d $root/benchmarks ]] || die "$root has no benchmarks: submit this script from a clone of msdata"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
export RANKS_PER_NODE=${RANKS_PER_NODE:-$tasks_per_node} SRUN_MPI=${SRUN_MPI:-pmi2}
"$PYTHON" -c 'import sys; from msdata.loader.read import stream_fill; sys.exit(stream_fill is None)' ||
  say "note: the loader's C module is not built here, so rates are lower: pip install -e $root" >&2

child='' interrupted='' asked=''
on_term() {
  interrupted=1 asked=1
  if [[ $child ]]; then
    kill -TERM "$child" 2>/dev/null || true
  fi
}
trap on_term TERM

# Questions for one node start their own ranks, which an mpiexec would else send to other nodes.
alone=(env)
for name in $(compgen -e SLURM); do
  alone+=(-u "$name")
done

# ask QUESTION OPTIONS...: its exit code.
ask() {
  local question=$1 prefix=()
  case $question in
    limit) prefix=("${alone[@]}") ;;
    loaders)
      prefix=("${alone[@]}")
      [[ ${PEERS:-} ]] && set -- "$@" --peers "$PEERS"
      ;;
    scale) [[ ${MACHINE:-} ]] && set -- "$@" --machine "$MACHINE" ;;
  esac
  "${prefix[@]}" "$PYTHON" -u -m benchmarks "$@" --out "$out" &
  child=$!
  local status=0
  wait_for "$child" || status=$?
  child=''
  return "$status"
}

# The page of the smoke test; a folder of results lies beside it.
end_with_page() {
  {
    smoke_head
    printf '%-10s %s\n' ranks "$RANKS_PER_NODE on each node; limit and loaders on the first alone"
    smoke_doctor "$smoke/doctor.txt"
    "$PYTHON" -c 'import json, pathlib, sys
out, *questions = sys.argv[1:]
for name in questions:
    shown = json.loads(pathlib.Path(out, name + ".json").read_text())["shown"]
    print(name.ljust(10), shown["title"])
    print(*("  " + sentence for sentence in shown["sentences"][:4]), sep="\n")' "$out" "$@" || return
    printf '%-10s %s\n' report "$out/report.html"
    smoke_command bench_io.sh OUT --data DATA
  } | tee "$smoke/page.txt"
}

# Which nodes are at fault is told before their results.
doctor() {
  local status=0
  "$PYTHON" -m msdata doctor --ranks-per-node "$RANKS_PER_NODE" | tee "$smoke/doctor.txt" || status=$?
  ((status == 1)) || return "$status"
}

[[ ! $smoke ]] || smoke_step doctor doctor
say "job $SLURM_JOB_ID: $SLURM_JOB_NUM_NODES nodes ($SLURM_JOB_NODELIST), results in $out"
failed=()
for question in ${QUESTIONS:-limit loaders cache scale}; do
  if [[ $asked ]]; then
    failed+=("$question (not run)")
    continue
  fi
  "$PYTHON" -m benchmarks "$question" --help >/dev/null 2>&1 || {
    [[ ${QUESTIONS:-} ]] && failed+=("$question (unknown question)")
    continue
  }
  runner=(smoke_step "$question")
  [[ $smoke ]] || { runner=() && say "$question"; }
  status=0
  "${runner[@]}" ask "$question" "$@" || status=$?
  ((status == 0)) || failed+=("$question (exit code $status)")
done

trap '' TERM
"$PYTHON" -m benchmarks report "$out" || failed+=("report")
if [[ $smoke && ${#failed[@]} == 0 ]]; then
  # shellcheck disable=SC2086  # names without spaces
  smoke_step page end_with_page ${QUESTIONS:-limit loaders cache scale}
  rm -rf "$out/work" "$out/logs"
  say "done: $smoke/page.txt"
fi
if ((${#failed[@]})); then
  printf -v text '%s, ' "${failed[@]}"
  say "failed: ${text%, }; results of the others are in $out" >&2
  exit 1
fi
say "done: $out/report.html"
