#!/usr/bin/env bash
# Runs one training command on this machine and starts it again when it dies.
#
#   launch/node.sh --config configs/gemma2b.py --workdir runs/gemma2b
#
# Death by a signal (exit code above 128: out of memory, a preempted machine) and exit
# code 75 (stopped on request) are answered by the same command, which continues; at
# most MAX_RESTARTS times (default 20). Stopping the launcher itself (Ctrl-C, SIGTERM)
# stops the run, which saves, and is final; so are 0 done, 2 bad input, 3 corrupt
# checkpoint, 4 storage and 1 other.
set -u
restarts=0 stopping=0 child=
trap 'stopping=1; [ -n "$child" ] && kill -TERM "$child" 2>/dev/null' INT TERM
while true; do
  python -m tpmm_jax.train "$@" &
  child=$!
  wait "$child"
  code=$?
  # A trapped signal ends the wait early, while the run still saves.
  while kill -0 "$child" 2>/dev/null; do
    wait "$child"
    code=$?
  done
  if [ "$code" -ne 75 ] && [ "$code" -le 128 ]; then
    exit "$code"
  fi
  if [ "$stopping" -eq 1 ] || [ "$restarts" -ge "${MAX_RESTARTS:-20}" ]; then
    exit "$code"
  fi
  restarts=$((restarts + 1))
  echo "launch/node.sh: exit code $code, starting again ($restarts)" >&2
  sleep 5
done
