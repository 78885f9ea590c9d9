#!/usr/bin/env bash
# Fetches a catalog's cutouts with an array of jobs, one slice of the catalog per job.
#
#   sbatch --array=0-15%4 [options of sbatch] slurm/fetch.sh CATALOG OUT [options of msdata fetch]
#
#   sbatch --array=0-15%4 --partition=transfer --time=2-00:00:00 \
#     slurm/fetch.sh catalog.csv /project/objects --contact me@institute.example
#
# The jobs that run at a time, four of sixteen here, share each service's rate: where the rate is the
# limit, more jobs are not faster. To resume a job that was cut short, submit it again unchanged: what
# is fetched stays. To submit some of the slices again: SLICES=16 sbatch --array=3,7 ...
#
# The nodes must reach the services: many clusters have a partition for transfers, others a proxy
# (https_proxy in slurm/site.sh).
#
#SBATCH --job-name=msdata-fetch
#SBATCH --output=%x-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --requeue

# --- Variables, by the environment: SLICES=16 sbatch slurm/fetch.sh ... --------------------------
# MSDATA_SITE   file with the site's modules; the one file to edit       (slurm/site.sh)
# PYTHON        interpreter                                              (python in PATH)
# SLICES        parts of the catalog                    (the array's last index, and one more)
# ------------------------------------------------------------------------------------------------
source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ ! -e $source_dir/job.sh && ${SLURM_JOB_ID:-} ]]; then
  # sbatch runs a copy; Slurm knows where it came from.
  source_dir=$(squeue --noheader --job "$SLURM_JOB_ID" --format %o)
  source_dir=${source_dir%%/fetch.sh*}
fi
# shellcheck source=slurm/job.sh
source "$source_dir/job.sh"

(($# >= 2)) || die "usage: sbatch --array=0-15%4 slurm/fetch.sh CATALOG OUT [options]"
slices=${SLICES:-$((${SLURM_ARRAY_TASK_MAX:-0} + 1))}
index=${SLURM_ARRAY_TASK_ID:-0}
((index < slices)) || die "array index $index is beyond SLICES=$slices; count indices from 0"

# As many jobs at a time as the array's % allows; else all.
together=${SLURM_ARRAY_TASK_COUNT:-1}
throttle=$(scontrol show job "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}" 2>/dev/null |
  grep -o 'ArrayTaskThrottle=[0-9]*' | head -n 1 || true)
throttle=${throttle#*=}
if ((${throttle:-0} > 0 && throttle < together)); then
  together=$throttle
fi

say "job $SLURM_JOB_ID: slice $index/$slices of $1 into $2, $together at a time"
interrupted='' child=''
trap 'interrupted=1; kill -TERM "$child" 2>/dev/null' TERM
"$PYTHON" -m msdata fetch "$@" --slice "$index/$slices" --concurrent-slices "$together" &
child=$!
status=0
wait_for "$child" || status=$?
if ((status)); then
  say "not finished (exit code $status); what is fetched stays; the same command resumes" >&2
fi
exit "$status"
