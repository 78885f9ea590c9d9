#!/usr/bin/env bash
# Packs objects into shards with the nodes of a job; a packed folder is the same for any number.
#
#   sbatch [options of sbatch] slurm/pack.sh SOURCE DATA [options of msdata pack]
#
#   sbatch --nodes=8 --ntasks-per-node=16 --time=6:00:00 \
#     slurm/pack.sh photometry /project/DATA --catalog catalog.csv
#
# Runs one MPI rank per task. A job that is cut short, or requeued, resumes where it stopped.
#
#SBATCH --job-name=msdata-pack
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue

# --- Variables, by the environment: SRUN_MPI=pmix sbatch slurm/pack.sh ... ----------------------
# MSDATA_SITE   file with the site's modules; the one file to edit       (slurm/site.sh)
# PYTHON        interpreter                                              (python in PATH)
# SRUN_MPI      srun's --mpi, which mpi4py's MPI library determines: pmi2 for MPICH and relatives,
#               pmix for Open MPI; msdata doctor --mpi tries it          (pmi2)
# ------------------------------------------------------------------------------------------------
source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ ! -e $source_dir/job.sh && ${SLURM_JOB_ID:-} ]]; then
  # sbatch runs a copy; Slurm knows where it came from.
  source_dir=$(squeue --noheader --job "$SLURM_JOB_ID" --format %o)
  source_dir=${source_dir%%/pack.sh*}
fi
# shellcheck source=slurm/job.sh
source "$source_dir/job.sh"

(($# >= 2)) || die "usage: sbatch slurm/pack.sh SOURCE DATA [options of msdata pack]"
data=$2
say "job $SLURM_JOB_ID: packing into $data on $SLURM_JOB_NUM_NODES nodes x $tasks_per_node ranks"

interrupted=''
trap 'interrupted=1' TERM
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$((SLURM_JOB_NUM_NODES * tasks_per_node))" \
  --ntasks-per-node="$tasks_per_node" \
  --mpi="${SRUN_MPI:-pmi2}" "$PYTHON" -m msdata pack "$@" --resume &
status=0
wait_for $! || status=$?
if ((status == 1)) && [[ -e $data/dataset.json ]]; then
  say "packed, but not without faults (exit code $status), see above" >&2
elif ((status)); then
  say "not finished (exit code $status); what is packed stays; the same command resumes" >&2
fi
exit "$status"
