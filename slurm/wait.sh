# shellcheck shell=bash
# Waiting for a child while signals arrive. Sourced by batch scripts and on the nodes, never run.

# wait_for PID: its exit code, however many signals arrive meanwhile: a signal ends the wait, not the
# child. Traps must set `interrupted`.
wait_for() {
  local status
  while :; do
    interrupted=
    status=0
    wait "$1" || status=$?
    [[ $interrupted ]] || return "$status"
  done
}
