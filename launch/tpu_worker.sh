#!/usr/bin/env bash
# The half of tpu_pod.sh that runs on the workers of a TPU slice, over ssh. Every verb may be run twice:
# gcloud repeats a command whose connection broke.
#
#   install           end what is left of an earlier run; a fresh environment for the code in ~/mtsft/src
#   start ARGS...     start `python -m mtsft.train ARGS...` in the background, unless it is running
#   follow            print the log until the run ends
#   result [SECONDS]  wait up to SECONDS for the run to end, then print "mtsft-result HOST VALUE", VALUE being
#                     the exit status, or: preempted, stopped, killed, running, none
#   tail              the last lines of the log, each with the name of the host
#   stop              have the run save a checkpoint and end
#
# Files in ~/mtsft: src/ venv/ run.log run.previous.log run.pid run.result run.stopped
set -euo pipefail

# The Python that the project is tested with: the one of the TPU images is older than JAX accepts.
python_version=3.11

script=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/$(basename "${BASH_SOURCE[0]}")
mkdir -p "$HOME/mtsft"
cd "$HOME/mtsft"

# Is the supervisor there? After a reboot its number may be another process's, hence the second look.
alive() {
  [[ -f run.pid ]] && pid=$(<run.pid) && kill -0 "$pid" 2>/dev/null &&
    grep -qa tpu_worker "/proc/$pid/cmdline" 2>/dev/null
}

install() {
  local tries
  if alive; then
    kill -TERM "$pid" || true
    for ((tries = 0; tries < 300; tries++)); do
      alive || break
      sleep 0.2
    done
    kill -KILL -- "-$pid" 2>/dev/null || true
  fi
  rm -rf run.pid run.result run.stopped venv
  PATH=$HOME/.local/bin:$PATH
  command -v uv >/dev/null || PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --user --quiet uv
  uv venv --quiet --python "$python_version" venv
  # Editable: ~/mtsft/src is then the only copy of the code here.
  uv pip install --quiet --python venv/bin/python --editable './src[tpu]'
}

start() {
  if alive; then
    echo "already running on $HOSTNAME"
    return
  fi
  rm -f run.result run.stopped
  [[ ! -f run.log ]] || mv run.log run.previous.log
  # In a session of its own, so that the end of the ssh connection is not the end of the run.
  setsid bash "$script" supervise "$@" >run.log 2>&1 </dev/null &
  echo "$!" >run.pid
}

# A trainer that is told to end saves and exits with 75; 0 is a finished run. TERM comes to this process too, when
# the machine is shut down and from `stop`.
supervise() {
  local child='' value told=no interrupted
  trap 'told=yes interrupted=yes; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true' TERM
  cd src
  printf 'python -m mtsft.train'
  printf ' %q' "$@"
  printf '\n'
  MTSFT_DISTRIBUTED=auto PYTHONUNBUFFERED=1 ../venv/bin/python -m mtsft.train "$@" &
  child=$!
  while :; do
    value=0 interrupted=no
    wait "$child" || value=$?
    [[ $interrupted == yes ]] || break
  done
  cd ..
  if [[ -f run.stopped ]]; then
    value=stopped
  elif [[ $told == yes ]]; then
    value=preempted
  fi
  echo "$value" >run.result.new
  mv run.result.new run.result # whole, or not there
}

follow() {
  if alive; then
    tail -n 200 --sleep-interval=0.2 --pid="$pid" -F run.log
  else
    tail -n 200 run.log
  fi
}

result() {
  local deadline=$((SECONDS + ${1:-0})) value=none
  while alive && ((SECONDS < deadline)); do sleep 0.2; done
  if alive; then
    value=running
  elif [[ -f run.result ]]; then
    value=$(<run.result)
  elif [[ -f run.pid ]]; then
    value=killed
  fi
  echo "mtsft-result $HOSTNAME $value"
}

case ${1:-} in
  install | start | supervise | follow | result) "$@" ;;
  tail) command tail -n 5 run.log | sed "s/^/$HOSTNAME: /" ;;
  stop)
    touch run.stopped
    if alive; then kill -TERM "$pid"; fi
    ;;
  *)
    echo "tpu_worker.sh: unknown verb: ${1:-none}" >&2
    exit 2
    ;;
esac
