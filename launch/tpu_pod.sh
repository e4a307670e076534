#!/usr/bin/env bash
# Runs one training command on every host of a TPU pod slice.
#
#   ZONE=us-central1-a launch/tpu_pod.sh my-pod start --config configs/gemma2b.py \
#       --workdir /mnt/runs/gemma2b
#   ZONE=us-central1-a launch/tpu_pod.sh my-pod stop      # saves, and ends
#   ZONE=us-central1-a launch/tpu_pod.sh my-pod logs
#
# The slice is there already (gcloud compute tpus tpu-vm create). On every host DIRECTORY
# (default: tpmm_jax in the home folder) holds this repository with the package installed
# in its .venv (pip install -e ".[tpu]"), and the workdir is a folder that all hosts mount
# (Filestore, say). The run goes on when this command's connection ends; start again is
# refused while it runs, and continues it where it ended. stop where nothing runs says so.
set -eu
name=$1 action=$2
shift 2
directory=${DIRECTORY:-tpmm_jax}
: "${ZONE:?set ZONE to that of the slice}"

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$name" --zone="$ZONE" --worker=all --command="$1"
}

# Whether the process that launch.pid names is a launcher: after a reboot its number may be
# that of another program.
pid="\"\$(cat launch.pid 2>/dev/null)\""
runs="ps -ww -o args= -p $pid 2>/dev/null | grep -q launch/node.sh"

case $action in
  start)
    words=$(printf ' %q' "$@")
    on_all_hosts "cd $directory || exit 2
if $runs; then
  echo 'it runs already; stop it first' >&2; exit 2
fi
PYTHON=.venv/bin/python nohup launch/node.sh$words >launch.log 2>&1 </dev/null &
echo \$! >launch.pid; echo started"
    ;;
  stop)
    on_all_hosts "cd $directory || exit 2
if $runs; then kill -TERM $pid; else echo 'nothing runs here'; fi"
    ;;
  logs) on_all_hosts "tail -n 20 $directory/launch.log" ;;
  *)
    echo "launch/tpu_pod.sh: $action is none of start, stop, logs" >&2
    exit 2
    ;;
esac
