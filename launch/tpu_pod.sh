#!/usr/bin/env bash
# Train on a Cloud TPU slice: make it, put the committed code on it, run, follow, and run again after preemption.
# Runs on your own machine; its other half is tpu_worker.sh, on the workers. No training logic in either.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: launch/tpu_pod.sh --name NAME --zone ZONE --type TYPE [options] -- ARGS...

Runs `python -m mtsft.train ARGS...` on every worker of the Cloud TPU slice NAME. A slice that is ready is
used, a missing one is created, a preempted one is deleted and created again. What runs is the commit HEAD.
ARGS are written --key=value and hold --config=FILE (a committed file), or the name of one in configs/, and
--workdir=gs://BUCKET/DIR.

  --name NAME        the slice
  --zone ZONE        e.g. us-west4-a
  --type TYPE        accelerator type, e.g. v5litepod-16, v5p-32, v6e-64, v4-32
  --version RUNTIME  runtime version of the TPU software (default: the one for JAX on that type)
  --project PROJECT  (default: gcloud's own)
  --spot             spot capacity: cheaper, and may be preempted at any time
  --queued           ask through a queued resource, also called NAME, and wait in the queue
  --retries N        start again at most N times after a preemption or a crash (default 5)
  --delete-after     delete the slice when the run has ended, well or badly
  --dry-run          print the commands for a slice that is yet to be created, and run nothing
  --help             print this

Ctrl-C stops following, never the run. The same command again follows the run that is going on.

exit status: 0 the run is done; 2 the input is wrong, and nothing is retried; 130 Ctrl-C; else it failed.

environment:
  MTSFT_BACKOFF_SECONDS  the wait before the first retry, doubled for each one after it, and the time
                         between two looks at a slice that is not ready yet (default 30)

example:
  launch/tpu_pod.sh --name mtsft --zone us-west4-a --type v5litepod-16 --spot --delete-after -- \
      --config=pod --workdir=gs://bucket/run --config.train.steps=1000
EOF
}

say() { printf 'tpu_pod.sh: %s\n' "$*" >&2; }
die() {
  say "$*"
  exit 2
}

# ---- arguments: all of them are checked before anything is touched

name='' zone='' type='' version='' project='' retries=5 spot=no queued=no delete_after=no dry_run=no
while (($#)); do
  case $1 in
    --name | --zone | --type | --version | --project | --retries)
      (($# >= 2)) || die "$1 needs a value"
      printf -v "${1#--}" %s "$2"
      shift 2
      ;;
    --name=* | --zone=* | --type=* | --version=* | --project=* | --retries=*)
      set -- "${1%%=*}" "${1#*=}" "${@:2}"
      ;;
    --spot | --queued | --delete-after | --dry-run)
      option=${1#--}
      printf -v "${option//-/_}" yes
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
    *) die "unknown option $(printf %q "$1"); the trainer's arguments come after --" ;;
  esac
done
train_args=(${@+"$@"})

check() { # check OPTION VALUE PATTERN EXAMPLE
  [[ -n $2 ]] || die "$1 is needed, e.g. $1 $4"
  [[ $2 =~ $3 ]] || die "$1 cannot be $(printf %q "$2"); e.g. $1 $4"
}
check --name "$name" '^[a-z]([-a-z0-9]{0,60}[a-z0-9])?$' mtsft-run
check --zone "$zone" '^[a-z]+-[a-z]+[0-9]+-[a-z]$' us-west4-a
check --type "$type" '^v[0-9]+[a-z]*-[0-9]+$' v5litepod-16
if [[ -z $version ]]; then
  case $type in
    v2-* | v3-* | v4-*) version=tpu-ubuntu2204-base ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    *) die "no default runtime is known for $type: give --version" ;;
  esac
fi
check --version "$version" '^[a-z0-9][-._a-z0-9]*$' v2-alpha-tpuv5-lite
[[ -z $project ]] || check --project "$project" '^[a-z0-9][-.:a-z0-9]*$' my-project
check --retries "$retries" '^[0-9]{1,4}$' 5
backoff=${MTSFT_BACKOFF_SECONDS:-30}
[[ $backoff =~ ^[0-9]{1,5}$ ]] || die "MTSFT_BACKOFF_SECONDS must be a whole number, not $(printf %q "$backoff")"

config='' workdir=''
for arg in ${train_args[@]+"${train_args[@]}"}; do
  case $arg in
    --config=*) config=${arg#*=} ;;
    --workdir=*) workdir=${arg#*=} ;;
    --*) ;;
    *) die "the trainer's arguments are written --key=value, not $(printf %q "$arg")" ;;
  esac
done
[[ -n $config ]] || die "--config=FILE is needed after --"
[[ $workdir == gs://?* ]] ||
  die "--workdir=gs://BUCKET/DIR is needed after --: the disk of a worker goes when the slice goes"

# ---- the commands, once each: --dry-run prints what a run executes

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
scratch=${TMPDIR:-/tmp}
if [[ $dry_run == no ]]; then
  scratch=$(mktemp -d "$scratch/mtsft-pod.XXXXXX")
  trap 'rm -rf "$scratch"' EXIT
fi
worker_script=mtsft/src/launch/tpu_worker.sh
where=(--zone="$zone")
[[ -z $project ]] || where+=(--project="$project")
tpu_vm=(gcloud compute tpus tpu-vm)
queue=(gcloud compute tpus queued-resources)

describe=("${tpu_vm[@]}" describe "$name" "${where[@]}" "--format=value(state)")
describe_queued=("${queue[@]}" describe "$name" "${where[@]}" "--format=value(state.state)")
if [[ $queued == yes ]]; then
  create=("${queue[@]}" create "$name" --node-id="$name" "${where[@]}"
    --accelerator-type="$type" --runtime-version="$version")
  delete=("${queue[@]}" delete "$name" "${where[@]}" --force --quiet)
else
  create=("${tpu_vm[@]}" create "$name" "${where[@]}" --accelerator-type="$type" --version="$version")
  delete=("${tpu_vm[@]}" delete "$name" "${where[@]}" --quiet)
fi
[[ $spot == no ]] || create+=(--spot)

print_command() {
  local line
  line=$(printf '%q ' "$@")
  printf '%s\n' "${line% }"
}
run() { if [[ $dry_run == yes ]]; then print_command "$@"; else "$@"; fi; }

# Committed files only: what is ignored or untracked (secrets, workdirs) stays here, and a run has a name.
pack() { run git -C "$root" archive --format=tar.gz --output="$scratch/mtsft.tar.gz" HEAD; }
copy() { run "${tpu_vm[@]}" scp "$scratch/mtsft.tar.gz" "$name:mtsft.tar.gz" "${where[@]}" --worker=all; }

# on WORKER COMMAND: the shell of the worker reads COMMAND. A worker that is gone is noticed, not waited for.
on() {
  run "${tpu_vm[@]}" ssh "$name" "${where[@]}" --worker="$1" \
    --ssh-flag=-oServerAliveInterval=30 --ssh-flag=-oConnectTimeout=15 --command="$2" </dev/null
}
install() {
  on all "rm -rf mtsft/src && mkdir -p mtsft/src && tar -xzf mtsft.tar.gz -C mtsft/src && bash $worker_script install"
}
# %q: the words reach the trainer as they were given here, whatever they hold.
start() { on all "bash $worker_script start$(printf ' %q' "${train_args[@]}")"; }
follow() { on 0 "bash $worker_script follow"; }
result() { on "$1" "bash $worker_script result $2"; }

if [[ $dry_run == yes ]]; then
  pack
  if [[ $queued == yes ]]; then run "${describe_queued[@]}"; else run "${describe[@]}"; fi
  run "${create[@]}"
  if [[ $queued == yes ]]; then run "${describe_queued[@]}"; fi
  run "${describe[@]}"
  copy
  install
  start
  follow
  result 0 0
  result all 300
  [[ $delete_after == no ]] || run "${delete[@]}"
  exit 0
fi

# ---- what runs is HEAD: say so now if that is not what is meant, and not on the pod in ten minutes

command -v gcloud >/dev/null || die "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
git -C "$root" rev-parse --quiet --verify HEAD >/dev/null 2>&1 || die "$root is not a git checkout with a commit"
git -C "$root" diff --quiet HEAD -- || die "some tracked files have changes: commit them, for what runs on the pod is HEAD"
committed() { git -C "$root" cat-file -e "HEAD:./$1" 2>/dev/null; }
# A file by its path, or by its name in configs/; without the variant, which follows a colon.
config=${config%%:*}
committed "$config" || committed "configs/$config.py" ||
  die "$(printf %q "$config") is not a committed file, so the pod would not have it"
pack

# ---- the slice

# Prints READY, PREEMPTED, ..., or MISSING; fails when gcloud cannot tell.
state_of() {
  local state
  if state=$("$@" 2>"$scratch/describe.err"); then
    printf %s "$state"
  elif grep -q NOT_FOUND "$scratch/describe.err"; then
    printf MISSING
  else
    cat "$scratch/describe.err" >&2
    return 1
  fi
}
slice_state() {
  local state
  if [[ $queued == yes ]]; then
    state=$(state_of "${describe_queued[@]}") || return 1
    if [[ $state != ACTIVE ]]; then
      printf %s "$state"
      return
    fi
  fi
  state_of "${describe[@]}"
}

# Comes back when the slice is ready. Fails with 1 when it cannot be had now, with 4 when trying again would
# not help. At most one creation a call, so that a request which fails every time uses up the retries.
looked=no created=no
have_slice() {
  local state
  created=no
  while :; do
    if ! state=$(slice_state); then
      [[ $looked == yes ]] || return 4 # not signed in, no such project: nothing has been touched yet
      return 1
    fi
    looked=yes
    case $state in
      READY) return 0 ;;
      MISSING | PREEMPTED | TERMINATED | SUSPENDED | FAILED | UNKNOWN)
        if [[ $created == yes ]]; then
          say "$name was created, and is $state"
          return 1
        fi
        if [[ $state != MISSING ]]; then
          say "$name is $state: deleting it"
          "${delete[@]}" || return 1
        fi
        say "creating $name ($type, $version)"
        if ! "${create[@]}" 2>&1 | tee "$scratch/create.log" >&2; then
          ! grep -qE 'INVALID_ARGUMENT|PERMISSION_DENIED|UNAUTHENTICATED' "$scratch/create.log" || return 4
          return 1
        fi
        created=yes
        ;;
      STOPPED | HIDDEN) die "$name is $state: start it or delete it, or give another --name" ;;
      *)
        say "$name is ${state:-in no known state}; looking again in $backoff s"
        sleep "$backoff"
        ;;
    esac
  done
}

# ---- the run

# values WORKER SECONDS: one word a worker (see tpu_worker.sh); `unreachable` when any did not answer.
values() {
  local answer code=0
  answer=$(result "$1" "$2") || code=$?
  sed -n 's/^mtsft-result [^ ]* //p' <<<"$answer"
  ((code == 0)) || echo unreachable
}

followed=no
# One life of the run, from a slice to an end: 0 done, 1 worth a retry, 2 the user's error, 3 stopped by hand,
# 4 no slice to be had. (Called where `set -e` does not hold, hence every `|| return`.)
live() {
  local value misses=0 state ends
  followed=no
  have_slice || return
  if [[ $created == no && $(values 0 0) == running ]]; then
    say "a run is going on on $name: following it (to start another one, stop it first; Ctrl-C shows how)"
  else
    copy && install && followed=yes && start || return 1
  fi
  followed=yes
  while :; do
    follow || true
    value=$(values 0 0)
    case $value in
      running) say "the connection was lost, the run goes on; following again" ;;
      *unreachable*)
        if state=$(slice_state) && [[ $state != READY ]]; then
          say "$name is $state"
          return 1
        fi
        misses=$((misses + 1))
        if ((misses == 5)); then
          say "worker 0 of $name does not answer"
          return 1
        fi
        ;;
      *) break ;;
    esac
    sleep "$backoff"
  done
  # Worker 0 has ended. The others end with it, or never; and the one that knows why may be any of them.
  ends=$(values all 300 | sort -u | paste -sd' ' -)
  [[ $ends != 0 ]] || return 0
  say "how the workers ended: $ends"
  [[ $ends == *unreachable* ]] || on all "bash $worker_script tail" >&2 || true
  if [[ " $ends " == *' 2 '* ]]; then return 2; fi
  if [[ " $ends " == *' stopped '* ]]; then return 3; fi
  return 1
}

# shellcheck disable=SC2317  # reached through the trap
interrupted() {
  trap - INT TERM
  if [[ $followed == yes ]]; then
    say "no longer following; the run on $name goes on"
    say "follow it again: the same command again, or"
    print_command "${tpu_vm[@]}" ssh "$name" "${where[@]}" --worker=0 --command="bash $worker_script follow" >&2
    say "stop it (it saves a checkpoint first):"
    print_command "${tpu_vm[@]}" ssh "$name" "${where[@]}" --worker=all --command="bash $worker_script stop" >&2
  else
    say "the run had not been started; if $name was created it is still there, and paid for"
  fi
  say "delete the slice:"
  print_command "${delete[@]}" >&2
  exit 130
}
trap interrupted INT TERM

for ((retry = 0; ; retry++)); do
  status=0
  live || status=$?
  ((status == 1 && retry < retries)) || break
  pause=$((backoff * 2 ** (retry < 5 ? retry : 5)))
  say "trying again in $pause s (retry $((retry + 1)) of $retries); the run resumes from its last checkpoint"
  sleep "$pause"
done
case $status in
  0) say "done: $workdir" ;;
  2) say "the trainer says that its input is wrong: see above; not trying again" ;;
  3) say "the run was stopped by hand" ;;
  4) say "gcloud refused: see above; not trying again" && exit 1 ;;
  *) say "failed, after $retries retries" ;;
esac
((status <= 2)) || status=1
if [[ $delete_after == yes ]] && ! "${delete[@]}"; then
  say "could not delete $name: it is still there, and paid for"
  ((status != 0)) || status=1
fi
exit "$status"
