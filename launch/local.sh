#!/usr/bin/env bash
# Train with several real processes on this machine: what a pod does, on one desk.
# Only the environment of a multi-process run is made here; all training logic is in mtsft.train.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: launch/local.sh [options] [--] ARGS...

Runs N processes of `python -m mtsft.train ARGS...` on this machine, as one distributed run.
The first word that is not an option of this script begins ARGS.

  --processes N            how many processes (default 2)
  --devices-per-process M  devices each process sees (default 1)
  --platform cpu|gpu       cpu: M virtual devices each; gpu: a slice of M GPUs each (default cpu)
  --port P                 the coordinator's port (default: a free one)
  --logs DIR               log files of processes 1, 2, ... (default: a new temporary folder)
  --dry-run                print the commands, one a process, and run nothing
  --help                   print this

Process 0 writes to the terminal. When a process fails, the others are ended and the exit status is
that of the first to fail (0: all went well; 2: the input is wrong; 75: asked to stop, and saved; 69: another
process was gone). Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 are passed on as SIGTERM, on which the trainer saves and exits; a second one
kills. Should this script itself be killed, its processes save and end as well.

environment:
  PYTHON                the interpreter (default: the python3 of the active environment or of ./.venv, else python3)
  MTSFT_GRACE_SECONDS   time between TERM and KILL when a process has failed (default 30)
  MTSFT_PEER_SECONDS    time in which a process may be silent before the others take it for lost (default 60)

example:
  launch/local.sh --processes 2 --devices-per-process 4 -- --config=quickstart --workdir=/tmp/run
EOF
}

say() { printf 'local.sh: %s\n' "$*" >&2; }
die() {
  say "$*"
  exit 2
}

# Empty arrays are no error under `set -u` from bash 4.4 on.
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || die "needs bash 4.4 or newer, this is $BASH_VERSION"

processes=2 devices_per_process=1 platform=cpu port='' logs='' dry_run=no
while (($#)); do
  case $1 in
    --processes | --devices-per-process | --platform | --port | --logs)
      (($# >= 2)) || die "$1 needs a value"
      option=${1#--}
      printf -v "${option//-/_}" %s "$2"
      shift 2
      ;;
    --processes=* | --devices-per-process=* | --platform=* | --port=* | --logs=*)
      set -- "${1%%=*}" "${1#*=}" "${@:2}"
      ;;
    --dry-run)
      dry_run=yes
      shift
      ;;
    -h | --help)
      usage
      exit 0
      ;;
    --)
      shift
      break
      ;;
    *) break ;;
  esac
done
train_args=("$@")

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# An environment that is active comes first on the path; one that is not may lie where `python -m venv .venv` made it.
python=${PYTHON:-python3}
if [[ -z ${PYTHON:-} && -z ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} ]]; then
  for folder in . "$root"; do
    [[ ! -x $folder/.venv/bin/python ]] || { python=$folder/.venv/bin/python && break; }
  done
fi
grace=${MTSFT_GRACE_SECONDS:-30}
count='^[1-9][0-9]{0,3}$'
[[ $processes =~ $count ]] || die "--processes must be a whole number above 0, not $(printf %q "$processes")"
[[ $devices_per_process =~ $count ]] ||
  die "--devices-per-process must be a whole number above 0, not $(printf %q "$devices_per_process")"
[[ $platform == cpu || $platform == gpu ]] || die "--platform must be cpu or gpu, not $(printf %q "$platform")"
[[ -z $port || ($port =~ ^[1-9][0-9]{0,4}$ && $port -le 65535) ]] ||
  die "--port must be between 1 and 65535, not $(printf %q "$port")"
[[ $grace =~ ^[0-9]+$ ]] || die "MTSFT_GRACE_SECONDS must be a whole number, not $(printf %q "$grace")"
((${#train_args[@]})) || die "nothing to train: give at least --config=FILE --workdir=DIR"
type -P -- "$python" >/dev/null || die "no interpreter $(printf %q "$python"): set PYTHON"
# Looked for only, which takes no time: nothing is imported.
has_both='import sys, importlib.util; sys.exit(not all(map(importlib.util.find_spec, ("mtsft", "jax"))))'
[[ $dry_run == yes || -n ${PYTHON:-} ]] || "$python" -c "$has_both" ||
  die "$(type -P -- "$python") lacks mtsft or JAX: activate the environment that has them (source DIR/bin/activate)," \
    "or set PYTHON"

# The GPUs to share out: those that CUDA_VISIBLE_DEVICES names, or 0, 1, 2, ...
if [[ $platform == gpu ]]; then
  wanted=$((processes * devices_per_process))
  IFS=, read -r -a gpus <<<"${CUDA_VISIBLE_DEVICES-$(seq -s, 0 $((wanted - 1)))}"
  ((${#gpus[@]} >= wanted)) ||
    die "$processes processes of $devices_per_process GPUs need $wanted, CUDA_VISIBLE_DEVICES names ${#gpus[@]}"
fi

# Below the ports that the kernel gives to outgoing connections, so that none of those takes it first.
free_port() {
  local candidate
  while :; do
    candidate=$((20000 + RANDOM % 12000))
    if ! (: <>"/dev/tcp/127.0.0.1/$candidate") 2>/dev/null; then
      printf %s "$candidate"
      return
    fi
  done
}
port=${port:-$(free_port)}

# The kernel tells a process when its parent is gone, which a `kill -9` of us could not.
with_us=()
! type -P setpriv >/dev/null || with_us=(setpriv --pdeathsig TERM)

# Sets `command`: what process $1 runs. --dry-run prints the very array that a run executes.
command_of() {
  local id=$1 mine
  command=("${with_us[@]}" env
    "JAX_COORDINATOR_ADDRESS=127.0.0.1:$port"
    "JAX_NUM_PROCESSES=$processes"
    "JAX_PROCESS_ID=$id"
    PYTHONUNBUFFERED=1)
  if [[ $platform == cpu ]]; then
    # Last, because the last of two settings of one XLA flag is the one that holds.
    command+=(JAX_PLATFORMS=cpu
      "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices_per_process")
  else
    # Named, because JAX that finds no GPU would otherwise train on the CPU without a word.
    mine=$(IFS=, && echo "${gpus[*]:id * devices_per_process:devices_per_process}")
    command+=(JAX_PLATFORMS=cuda "CUDA_VISIBLE_DEVICES=$mine")
  fi
  command+=("$python" -m mtsft.train "${train_args[@]}")
}

if [[ $dry_run == yes ]]; then
  for ((id = 0; id < processes; id++)); do
    command_of "$id"
    line=$(printf '%q ' "${command[@]}")
    printf '%s\n' "${line% }"
  done
  exit 0
fi

if [[ -z $logs ]]; then
  logs=$(mktemp -d "${TMPDIR:-/tmp}/mtsft-local.XXXXXX")
else
  mkdir -p -- "$logs" 2>/dev/null || die "cannot make the folder for logs, $(printf %q "$logs")"
fi
say "$processes processes, coordinator at 127.0.0.1:$port; logs of processes 1, 2, ... in $logs"

declare -A id_of=() # pid -> process id, of those still running
pids=()
asked_to_stop=no

kill_groups() {
  local pid
  for pid in "${pids[@]}"; do kill -KILL -- "-$pid" 2>/dev/null || true; done
}

# shellcheck disable=SC2317  # reached through the trap
pass_on() {
  if [[ $asked_to_stop == yes ]]; then
    say "asked twice: killing"
    kill_groups
  else
    asked_to_stop=yes
    say "passing TERM on; waiting for ${#id_of[@]} processes to save and exit"
    ((${#id_of[@]} == 0)) || kill -TERM "${!id_of[@]}" 2>/dev/null || true
  fi
}
trap pass_on INT TERM HUP USR1

# When one has failed its peers wait for it in a collective, perhaps for ever.
end_the_others() {
  local deadline=$((SECONDS + grace))
  if ((${#id_of[@]})); then
    [[ $asked_to_stop == yes ]] || kill -TERM "${!id_of[@]}" 2>/dev/null || true
    while ((SECONDS < deadline)) && kill -0 "${!id_of[@]}" 2>/dev/null; do sleep 0.1; done
  fi
  kill_groups
}

# Job control gives each process a group of its own: Ctrl-C reaches them only through us, once, as
# TERM; and KILL takes a process's own children (data loaders) along.
set -m
for ((id = 0; id < processes; id++)); do
  [[ $asked_to_stop == no ]] || break
  command_of "$id"
  if ((id == 0)); then
    "${command[@]}" </dev/null &
  else
    "${command[@]}" </dev/null >"$logs/process-$id.log" 2>&1 &
  fi
  pids+=("$!")
  id_of[$!]=$id
done

set +m

status=0
failed='' unfinished=75 missed_another=69
# ended PID STATUS: strike it off; the first to fail is the one to report, and the end of the others.
ended() {
  local id=${id_of[$1]}
  unset "id_of[$1]"
  if (($2 == unfinished)); then
    [[ -n $failed ]] || status=$2 # the others were asked to stop with it, and save
  elif (($2 != 0)) && [[ -z $failed ]]; then
    failed=$id status=$2
    end_the_others
  fi
}
while ((${#id_of[@]})); do
  # Looked at in turns: a signal that interrupts `wait` at the moment when a process ends makes bash lose its status.
  sleep 0.1 || true
  missed=()
  for pid in "${!id_of[@]}"; do
    kill -0 "$pid" 2>/dev/null && continue
    code=0
    wait "$pid" || code=$?
    if ((code == missed_another)); then missed+=("$pid"); else ended "$pid" "$code"; fi
  done
  # Of those that ended in one turn, what missed another one ended after it.
  for pid in "${missed[@]}"; do ended "$pid" "$missed_another"; done
done

if [[ -n $failed ]]; then
  if ((failed == 0)); then
    say "process 0 failed with status $status; its output is above"
  else
    say "process $failed failed with status $status; read $logs/process-$failed.log, which ends:"
    tail -n 20 -- "$logs/process-$failed.log" >&2
  fi
fi
exit "$status"
