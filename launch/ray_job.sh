#!/usr/bin/env bash
# Trains on a Ray cluster, on the machine of its head: detached, so that a lost
# connection ends nothing, and shows what the run says. With the same --workdir
# again it follows a run that goes on, goes on with one that was interrupted,
# and leaves a finished one alone.
#
#   bash launch/ray_job.sh --workdir=runs/cluster --method=ga --workers=4
#   bash launch/ray_job.sh --workdir=runs/cluster --stop
#
#   --workdir=DIR      results, from the folder of the checkout; DIR.log is
#                      what it said
#   --temp_dir=DIR     of launch/ray_head.sh (default /tmp/ga_ray-UID)
#   --token_file=FILE  default ~/.ray/auth_token
#   --block            stay in the foreground (srun)
#   --stop             end the run in order, with a checkpoint
#   Others go to experiments.train, after --checkpoint_every=60s and, as machines
#   may be rented only now, --wait_for_workers=1800.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/ray_common.sh"

workdir='' stop=''
for argument in "$@"; do
  case $argument in
    --workdir=?*) workdir=${argument#*=} ;;
    --temp_dir=*) temp_dir=${argument#*=} ;;
    --token_file=?*) token_file=${argument#*=} ;;
    --block) block=1 ;;
    --stop) stop=1 ;;
    -h | --help) help "$0" && exit ;;
    *) flags+=("$argument") ;;
  esac
done
[ -n "$workdir" ] || fail "--workdir=DIR is missing"
workdir=${workdir%/}
cd "$here/.."

running() {
  [ -f "$workdir.pid" ] &&
    grep -qsF -e "$workdir.code" "/proc/$(<"$workdir.pid")/cmdline"
}

if [ -n "$stop" ]; then
  running || fail "no run goes on in $workdir"
  pkill -TERM --parent "$(<"$workdir.pid")"
  exit
fi

shown=1
if ! running; then
  case $(progress "$workdir") in
    new)
      flags=(--runtime=ray --address=auto --checkpoint_every=60s
        --wait_for_workers=1800 "${flags[@]}")
      ;;
    stopped) flags=(--resume) ;;
    finished)
      echo "$workdir holds a finished run"
      exit
      ;;
  esac
  if [ -f "$temp_dir/env" ]; then
    # shellcheck source=/dev/null
    source "$temp_dir/env"
    token_file=$RAY_AUTH_TOKEN_PATH
    wait_for "$RAY_ADDRESS" 120
  fi
  use_token
  use_python
  job=("$python" -m experiments.train "${flags[@]}" --workdir="$workdir")
  if [ -n "$block" ]; then
    exec "${job[@]}"
  fi
  mkdir -p "$(dirname "$workdir")"
  shown=$(($(stat -c %s "$workdir.log" 2>/dev/null || echo 0) + 1))
  rm -f "$workdir.code"
  touch "$workdir.log" # or tail might end before it has seen the file
  # shellcheck disable=SC2016 # the inner shell expands them
  setsid bash -c '"$@"; echo $? >"$0"' "$workdir.code" "${job[@]}" \
    </dev/null >>"$workdir.log" 2>&1 &
  echo $! >"$workdir.pid"
fi
echo "The run goes on without this command (Ctrl-C); follow it again: bash launch/ray_job.sh --workdir=$workdir" >&2
tail -c "+$shown" --follow=name --retry --sleep-interval=0.2 \
  --pid="$(<"$workdir.pid")" "$workdir.log" 2>/dev/null
rm -f "$workdir.pid"
[ -f "$workdir.code" ] || fail "the run was killed; this command again goes on with it"
exit "$(<"$workdir.code")"
