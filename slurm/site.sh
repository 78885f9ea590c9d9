# shellcheck shell=bash
# What this cluster needs before the jobs' commands are found: the one file to edit. Every batch
# script sources it on the job's first node; the steps inherit its environment.
# MSDATA_SITE=/path/to/another.sh names a file outside the clone instead.
#
# module purge
# module load python/3.11 cuda/12.4
# source "$HOME/venvs/msdata/bin/activate"
#
# NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME choose the network where a node has several:
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
#
# Node-local scratch, where it is not $SLURM_TMPDIR, $TMPDIR or /tmp:
# export SCRATCH_DIR=/local/scratch
