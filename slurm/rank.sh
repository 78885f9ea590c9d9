#!/usr/bin/env bash
# One rank under torchrun, and what its exit code means.
#
#   torchrun --no-python ... rank.sh REQUEUE_FILE ASKED_FILE COMMAND...
#
# Exit code 85 means: saved, requeue me. torchrun would treat it as a crash and restart the ranks, so
# this script turns it into a file, for the batch script, and exit code 0. ASKED_FILE exists if the
# ranks were asked to save before this one started.
set -uo pipefail

# shellcheck source=slurm/wait.sh
source "${BASH_SOURCE[0]%/*}/wait.sh"
requeue_file=$1 asked_file=$2
shift 2
stopped=''
# Wrong usage is not a crash: it would fail again, so the ranks that torchrun starts next end.
usage_file=${requeue_file%/*}/wrong-usage
[[ -e $usage_file ]] && exit 2

# SIGUSR1, once, when the program catches it: before it would be lost, and a second one might kill
# Python on its way out.
ask() {
  local caught
  interrupted=1
  while kill -0 "$child" 2>/dev/null; do
    caught=$(sed -n 's/^SigCgt:\s*//p' "/proc/$child/status" 2>/dev/null)
    if ((0x${caught:-0} & 1 << 9)); then
      kill -USR1 "$child" 2>/dev/null
      return
    fi
    sleep 0.2
  done
}

trap 'stopped=1 interrupted=1' TERM
trap '' USR1
"$@" &
child=$!
trap ask USR1
[[ -e $asked_file ]] && ask
status=0
wait_for "$child" || status=$?
case $status in
  85)
    touch "$requeue_file"
    exit 0
    ;;
  0)
    # A rank that torchrun had stopped asked to be requeued; the ranks that it started next finished.
    rm -f "$requeue_file"
    exit 0
    ;;
  2) touch "$usage_file" ;;
esac
[[ $stopped ]] && exit 0
exit "$status"
