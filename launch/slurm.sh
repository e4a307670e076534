#!/usr/bin/env bash
# Runs one training command on GPU nodes under SLURM, one process per GPU.
#
#   sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 launch/slurm.sh \
#       --config configs/gemma2b.py --workdir /shared/runs/gemma2b
#
# The environment that sbatch is called in has the package (pip install -e ".[cuda]"); the
# workdir is on a file system that all nodes share. Two minutes before its time is over the
# run saves and ends with 75, and the job is queued again. When one process has ended, the
# others have 30 seconds until srun kills them; then all start together, as with node.sh: on
# 75, and at most MAX_RESTARTS times (default 20) on a code above 128: 134 another process
# is gone, 137 killed or out of memory, 139 a segmentation fault.
#SBATCH --job-name=tpmm
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
set -u
restarts=0 stopping=0 code=0
# Whether another start may change what the last one ended with.
again() { [ "$code" -eq 75 ] || [ "$code" -gt 128 ]; }
# To the tasks alone; srun itself would answer the signal by killing them.
trap 'stopping=1; scancel --signal=TERM "$SLURM_JOB_ID"' TERM INT
while true; do
  srun --wait=30 --kill-on-bad-exit=0 python -m "${MODULE:-tpmm_jax.train}" "$@" &
  step=$!
  wait "$step"
  code=$?
  if [ "$stopping" -eq 1 ]; then
    # The signal ended the wait, while the tasks still save.
    wait "$step"
    ended=$?
    if [ "$ended" -ne 127 ]; then code=$ended; fi
    if again; then scontrol requeue "$SLURM_JOB_ID"; fi
    exit "$code"
  fi
  if ! again; then exit "$code"; fi
  if [ "$code" -gt 128 ]; then
    restarts=$((restarts + 1))
    if [ "$restarts" -gt "${MAX_RESTARTS:-20}" ]; then exit "$code"; fi
  fi
  echo "launch/slurm.sh: exit code $code, starting again ($restarts)" >&2
  sleep "${PAUSE:-5}"
done
