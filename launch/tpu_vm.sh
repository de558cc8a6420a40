#!/usr/bin/env bash
# Trains on Cloud TPU VMs: creates NAME-0 (the head, and a worker node too),
# NAME-1, ... or takes those that are there, installs, starts Ray, trains, and
# fetches the results. With the same flags again it goes on with a run that was
# interrupted. Needs gcloud, logged in, and quota for TPUs.
#
#   bash launch/tpu_vm.sh --zone=us-central1-a --nodes=2 --workdir=runs/tpu -- --method=ga --workers=16
#   bash launch/tpu_vm.sh --zone=us-central1-a --delete
#
#   --zone=ZONE           required
#   --project=ID          default: gcloud's
#   --name=ga-jax         of the VMs
#   --nodes=1             how many
#   --accelerator=v5litepod-8
#                         of each; types with one host: every node is a JAX
#                         process of its own
#   --runtime=VERSION     TPU software (default: the one for the accelerator)
#   --spot                all but the head may be taken away at any time
#   --workdir=DIR         results, here and on the head (default runs/NAME)
#   --token_file=FILE     default ~/.ray/auth_token; made where there is none
#   --delete_after        deletes the VMs once the results are here
#   --dry_run             prints every command and runs none
#   -- FLAG...            for experiments.train
# Instead of that:
#   --follow              a run that goes on, then its results
#   --fetch               only the results
#   --stop                stops the VMs; spot VMs cannot be, and are deleted
#   --delete              deletes the VMs and their disks
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/ray_common.sh"

zone='' project='' name=ga-jax nodes=1 accelerator=v5litepod-8 runtime=''
spot='' workdir='' delete_after='' dry_run='' action=train
while [ $# -gt 0 ]; do
  case $1 in
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --name=*) name=${1#*=} ;;
    --nodes=*) nodes=${1#*=} ;;
    --accelerator=*) accelerator=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --workdir=?*) workdir=${1#*=} ;;
    --token_file=?*) token_file=${1#*=} ;;
    --spot) spot=1 ;;
    --delete_after) delete_after=1 ;;
    --dry_run) dry_run=1 ;;
    --follow | --fetch | --stop | --delete) action=${1#--} ;;
    --) shift && flags+=("$@") && break ;;
    -h | --help) help "$0" && exit ;;
    *) fail "$1: no such flag; --help lists them" ;;
  esac
  shift
done
[[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] ||
  fail "--zone=$zone: must be a zone with TPUs, as us-central1-a"
[[ $name =~ ^[a-z]([a-z0-9-]{0,48}[a-z0-9])?$ ]] ||
  fail "--name=$name: must be small letters, digits and -, at most 50"
whole nodes "$nodes"
[[ $accelerator =~ ^(v2|v3|v4|v5p|v5litepod|v6e)-[1-8]$ ]] ||
  fail "--accelerator=$accelerator: must be a type with one host: v2-8, v3-8, v4-8, v5p-8, v5litepod-1, -4, -8, v6e-1, -4, -8"
if [ -z "$runtime" ]; then
  case $accelerator in
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    *) runtime=tpu-ubuntu2204-base ;;
  esac
fi
workdir=${workdir:-runs/$name} && workdir=${workdir%/}
remote_workdir=runs/$(basename "$workdir")
[ -n "$dry_run" ] || command -v gcloud >/dev/null ||
  fail "gcloud is not here: https://cloud.google.com/sdk/docs/install"

# --- what is told to gcloud ----------------------------------------------------

# quoted WORD...: as it can be pasted into a shell.
quoted() {
  local word separator=''
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./=:@%+,-]+$ ]] || word=${word@Q}
    printf '%s%s' "$separator" "$word"
    separator=' '
  done
}

# run COMMAND...: or prints it.
run() {
  if [ -n "$dry_run" ]; then
    quoted "$@" && echo
  else
    "$@"
  fi
}

# tpu VERB WORD...: gcloud compute tpus tpu-vm.
tpu() {
  run gcloud compute tpus tpu-vm "$@" --zone="$zone" \
    ${project:+--project="$project"} --quiet
}

# on NODE COMMAND: by ssh.
on() {
  tpu ssh "$name-$1" --command="$2"
}

# each FUNCTION: for every node, side by side.
each() {
  local node running=() failed=''
  for ((node = 0; node < nodes; node++)); do
    if [ -n "$dry_run" ]; then
      "$1" $node
    else
      "$1" $node > >(sed "s/^/$name-$node: /") 2>&1 &
      running+=($!)
    fi
  done
  for node in "${!running[@]}"; do
    wait "${running[$node]}" || failed+=" $name-$node"
  done
  [ -z "$failed" ] || fail "failed on$failed"
}

# --- what is done to one node ----------------------------------------------------

create() {
  local may_go=''
  [ -z "$spot" ] || [ "$1" = 0 ] || may_go=1
  tpu create "$name-$1" --accelerator-type="$accelerator" --version="$runtime" \
    --labels=ga_jax="$name" ${may_go:+--spot}
}

have() {
  local state
  state=$(tpu describe "$name-$1" --format='value(state)' 2>&1) || true
  if [ -n "$dry_run" ]; then
    echo "$state"
    echo "# $name-$1 is taken as it is where it is READY, started where it is STOPPED, and otherwise made:"
    create "$1"
    return
  fi
  case $state in
    *NOT_FOUND* | *'not found'*) create "$1" ;;
    READY) echo "is there" ;;
    STOPPED) tpu start "$name-$1" ;;
    PREEMPTED | TERMINATED)
      tpu delete "$name-$1"
      create "$1"
      ;;
    *) fail "$name-$1: $state" ;;
  esac
}

reach() { # SSH answers some time after the VM is ready
  local attempt
  for attempt in 1 2 3 4 5 6; do
    if on "$1" true; then
      return
    fi
    [ "$attempt" = 6 ] || sleep 10
  done
  fail "$name-$1 does not answer"
}

send() {
  local pack=(tar -C "$(dirname "$here")" --exclude=__pycache__ -cz ga_jax experiments
    launch pyproject.toml requirements.txt README.md LICENSE)
  local unpack='mkdir -p ga_jax && cd ga_jax && rm -rf ga_jax experiments launch && tar -xz'
  # Through a pipe: a command line can be read by every user of a machine.
  local keep='umask 077 && mkdir -p .ray && cat >.ray/new && mv .ray/new .ray/auth_token'
  if [ -n "$dry_run" ]; then
    echo "$(quoted "${pack[@]}") | $(on "$1" "$unpack")"
    echo "$(on "$1" "$keep") <$(quoted "$token_file")"
  else
    "${pack[@]}" | on "$1" "$unpack"
    on "$1" "$keep" <"$token_file"
  fi
  on "$1" 'bash ga_jax/launch/ray_install.sh tpu'
}

work() {
  [ "$1" = 0 ] ||
    on "$1" "cd ga_jax && bash launch/ray_worker.sh --stop && bash launch/ray_worker.sh --address=$head:6379"
}

# --- all of it -------------------------------------------------------------------

prepare() {
  local node
  run bash "$here/ray_token.sh" --token_file="$token_file"
  each have
  for ((node = 0; node < nodes; node++)); do
    reach $node # one after the other: the first makes gcloud's SSH key
  done
  each send
  head=$(tpu describe "$name-0" --format='value(networkEndpoints[0].ipAddress)')
  if [ -n "$dry_run" ]; then
    echo "$head"
    echo "# HEAD is what that says:"
    head=HEAD
  fi
  on 0 "cd ga_jax && bash launch/ray_head.sh --stop && bash launch/ray_head.sh --interface=$head"
  each work
}

train() {
  on 0 "cd ga_jax && bash launch/ray_job.sh $(quoted --workdir="$remote_workdir" --accelerator=tpu "${flags[@]}")"
}

fetch() {
  run mkdir -p "$(dirname "$workdir")"
  tpu scp "$name-0:ga_jax/$remote_workdir" \
    "$name-0:ga_jax/$remote_workdir.log" "$(dirname "$workdir")" --recurse
}

# remove VERB: of every VM of that name that there is.
remove() {
  local one may_go verb found
  if [ -n "$dry_run" ]; then
    tpu list --filter="labels.ga_jax=$name" --format='csv[no-heading](name.basename(),schedulingConfig.spot)'
    echo "# for each of them:"
    tpu "$1" "$name-0"
    return
  fi
  found=$(tpu list --filter="labels.ga_jax=$name" --format='csv[no-heading](name.basename(),schedulingConfig.spot)')
  while IFS=, read -r one may_go; do
    verb=$1
    [ "${may_go,,}" != true ] || verb=delete
    [ -z "$one" ] || tpu "$verb" "$one" </dev/null
  done <<<"$found"
}

case $action in
  stop | delete) remove "$action" ;;
  fetch) fetch ;;
  train | follow)
    [ "$action" = follow ] || prepare
    code=0
    train || code=$?
    if ! fetch; then
      echo "the results are still on $name-0 (--fetch)" >&2
      [ $code != 0 ] || code=1
    fi
    if [ -n "$delete_after" ] && [ $code = 0 ]; then
      remove delete
    else
      echo "# The VMs go on, and cost; end: bash launch/tpu_vm.sh --zone=$zone --name=$name --delete"
    fi
    exit $code
    ;;
esac
