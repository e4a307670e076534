#!/usr/bin/env bash
# Runs one training command on this machine and starts it again when it dies.
#
#   launch/node.sh --config configs/gemma2b.py --workdir runs/gemma2b
#   PROCESSES=2 launch/node.sh --config ...       # several processes on this machine
#
# One process drives all devices of a machine. On each host of a TPU pod, or as each task
# of a cluster, the same line: the processes find one another (docs/sharding.md).
#
# Exit code 75 (stopped on request) is answered by the same command, which continues; so
# is a code above 128, at most MAX_RESTARTS times (default 20): 134 another process is gone,
# 137 killed or out of memory, 139 a segmentation fault. When one process has ended, the
# others have GRACE seconds (default 20) until they are killed, stopped ones too; then all
# start together.
#
# A process that stays stopped (SIGSTOP) for MAX_STOPPED seconds (default 60) while the
# launcher runs is killed, which counts as 137. Ctrl-Z stops both, and kills nothing.
#
# Ending the launcher itself (Ctrl-C, SIGTERM) ends the run, which saves, and is final;
# so are 0 done, 2 bad input, 3 corrupt checkpoint, 4 storage and 1 other.
set -u
processes=${PROCESSES:-1} module=${MODULE:-tpmm_jax.train} python=${PYTHON:-python}
restarts=0 stopping=0 started=0 children=() looks=()

signal_all() {
  for child in "${children[@]}"; do kill "-$1" "$child" 2>/dev/null; done
}
# A second signal would end a process that saves: each gets one, once all are started.
stop_all() {
  stopping=1
  if [ "$started" -eq 1 ]; then
    started=0
    signal_all TERM
  fi
}
trap stop_all INT TERM

alive() {
  for child in "${children[@]}"; do kill -0 "$child" 2>/dev/null && return 0; done
  return 1
}

# Looks are counted and not seconds: a launcher that is stopped itself does not look, and
# one look at a process that is about to continue kills nothing.
kill_stopped() {
  for child in "${children[@]}"; do
    case $(ps -o stat= -p "$child" 2>/dev/null) in
      T*) looks[child]=$((${looks[child]:-0} + 1)) ;;
      *) looks[child]=0 ;;
    esac
    if [ "${looks[child]}" -gt "${MAX_STOPPED:-60}" ]; then
      echo "launch/node.sh: killing process $child, which was stopped" >&2
      kill -KILL "$child" 2>/dev/null
    fi
  done
}

start() {
  children=() looks=()
  if [ "$processes" -eq 1 ]; then
    "$python" -m "$module" "$@" &
    children+=("$!")
    return
  fi
  local port i
  port=${PORT:-$((20000 + RANDOM % 20000))}
  for ((i = 0; i < processes; i++)); do
    "$python" -m "$module" "$@" --coordinator "localhost:$port" \
      --num-processes "$processes" --process-id "$i" &
    children+=("$!")
  done
}

# Sets code: that of the first process that ended.
await() {
  local ended=
  while [ -z "$ended" ]; do
    # Ended by a process, by the second that is over, or by a trapped signal, after which
    # the run still saves.
    sleep 1 >/dev/null 2>&1 &
    wait -n "${children[@]}" "$!"
    kill_stopped
    for child in "${children[@]}"; do
      kill -0 "$child" 2>/dev/null || { ended=$child; break; }
    done
  done
  wait "$ended"
  code=$?
  local until=$((SECONDS + ${GRACE:-20}))
  while alive && [ "$SECONDS" -lt "$until" ]; do sleep 0.2; done
  signal_all KILL
  wait "${children[@]}"
}

while true; do
  start "$@"
  started=1
  if [ "$stopping" -eq 1 ]; then stop_all; fi
  await
  started=0
  if [ "$code" -ne 75 ] && [ "$code" -le 128 ]; then exit "$code"; fi
  if [ "$stopping" -eq 1 ]; then exit "$code"; fi
  if [ "$code" -gt 128 ]; then
    restarts=$((restarts + 1))
    if [ "$restarts" -gt "${MAX_RESTARTS:-20}" ]; then exit "$code"; fi
  fi
  echo "launch/node.sh: exit code $code, starting again ($restarts)" >&2
  sleep "${PAUSE:-5}"
  if [ "$stopping" -eq 1 ]; then exit "$code"; fi
done
