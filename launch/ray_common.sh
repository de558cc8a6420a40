# shellcheck shell=bash
# Sourced by the Ray scripts beside it: flags, the cluster's token, nodes.
#
# A node is what `ray start` leaves behind, in a session (setsid) of its own,
# whose number stands in $temp_dir/NAME.session: `ray stop` would end every
# cluster of this machine, stop_node ends this one.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
loopback=127.0.0.1
token_file=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
temp_dir=${RAY_TMPDIR:-/tmp/ga_ray-$UID}

fail() {
  echo "error: $*" >&2
  exit 2
}

# help SCRIPT: the comment that it begins with.
help() {
  awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$1"
}

# whole NAME VALUE [LEAST]: refuses anything but a whole number.
whole() {
  [[ $2 =~ ^[0-9]{1,9}$ ]] && [ "$2" -ge "${3:-1}" ] ||
    fail "--$1=$2: must be a whole number, at least ${3:-1}"
}

# node_flag FLAG: one of those that ray_head.sh and ray_worker.sh share.
interface='' block='' action=start flags=()
# shellcheck disable=SC2034 # the script reads it
node_flag() {
  case $1 in
    --interface=*) interface=${1#*=} ;;
    --token_file=?*) token_file=${1#*=} ;;
    --resources=?*) flags+=("$1") ;;
    --temp_dir=*) temp_dir=${1#*=} ;;
    --block) block=1 ;;
    --running | --stop) action=${1#--} ;;
    -h | --help) help "$0" && exit ;;
    *) fail "$1: no such flag; --help lists them" ;;
  esac
}

# other_action NAME: does what is not to start that node, and ends the script.
other_action() {
  case $action in
    running)
      [ -n "$(members "$1")" ] && exit
      exit 1
      ;;
    stop)
      stop_node "$1"
      exit
      ;;
  esac
}

# --- token -------------------------------------------------------------------

# make_token: 256 random bits into $token_file, which nobody else can read from
# its first moment on. A token that is there is kept, whoever made it.
make_token() {
  local folder new
  if ! [ -e "$token_file" ]; then
    folder=$(dirname "$token_file")
    (umask 077 && mkdir -p "$folder")
    new=$(mktemp "$folder/.token.XXXXXX")
    head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$new"
    ln "$new" "$token_file" 2>/dev/null || mv -n "$new" "$token_file"
    rm -f "$new"
  fi
}

# use_token: token authentication for all that this script starts, or an error.
use_token() {
  local mode
  [ "${RAY_AUTH_MODE:-token}" = token ] ||
    fail "RAY_AUTH_MODE=$RAY_AUTH_MODE: no cluster is started without a token; unset it"
  [ -z "${RAY_AUTH_TOKEN:-}" ] ||
    fail "RAY_AUTH_TOKEN would override $token_file; unset it"
  [ -s "$token_file" ] ||
    fail "no token in $token_file: make one on the head (bash launch/ray_token.sh), and copy it to every machine"
  [ -O "$token_file" ] || fail "$token_file belongs to somebody else"
  mode=$(stat -L -c %a "$token_file" 2>/dev/null || stat -L -f %Lp "$token_file")
  [[ $mode == ?00 ]] ||
    fail "$token_file (mode $mode) can be read by others: chmod 600 $(printf %q "$token_file"), or on a machine with other users remove it and make a new one: bash launch/ray_token.sh"
  token_file=$(cd "$(dirname "$token_file")" && pwd)/$(basename "$token_file")
  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token_file
}

# --- nodes -------------------------------------------------------------------

# use_python: $root and $python, with Ray.
use_python() {
  # shellcheck source=environment.sh
  source "$here/environment.sh"
  if ! "$python" -c 'from importlib.util import find_spec as find
raise SystemExit(not (find("ray") and find("ga_jax")))'; then
    install ray
  fi
  export RAY_USAGE_STATS_ENABLED=0
}

# use_temp_dir: a folder for this user only. Ray opens its own to everybody.
use_temp_dir() {
  # Ray puts Unix sockets under it, whose paths end at 107 characters.
  [[ $temp_dir =~ ^/[A-Za-z0-9._/-]{1,31}$ ]] ||
    fail "--temp_dir=$temp_dir: must be an absolute path of at most 32 letters, digits and ._-/"
  (umask 077 && mkdir -p "$temp_dir")
  [ -O "$temp_dir" ] || fail "--temp_dir=$temp_dir belongs to somebody else"
  chmod 700 "$temp_dir"
}

# use_interface INTERFACE: $address, which other nodes reach this one at.
use_interface() {
  address=$("$python" "$here/ray_node.py" address "$1") || exit 2
}

# start_node NAME RAY-START-ARGUMENT...: at $address.
start_node() {
  local name=$1 ray=(-m ray.scripts.scripts)
  shift
  if [ "$address" = $loopback ]; then
    ray=("$here/ray_node.py" loopback)
  fi
  # A folder for each node: nodes that share one take each other's sockets when
  # they start at the same time.
  ray+=(start --temp-dir="$temp_dir/$name" --node-ip-address="$address")
  unset RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER # of a local cluster's environment
  ulimit -n "$(ulimit -Hn)" || true
  if [ -n "$block" ]; then
    exec "$python" "${ray[@]}" --block "$@"
  fi
  [ -z "$(members "$name")" ] ||
    fail "a node runs in $temp_dir already; end it first (--stop), or choose another --temp_dir"
  # shellcheck disable=SC2016 # the inner shell expands them
  if ! setsid --wait bash -c 'echo $$ "$(</proc/sys/kernel/random/boot_id)" >"$0" && exec "$@"' \
    "$temp_dir/$name.session" "$python" "${ray[@]}" "$@" \
    </dev/null >"$temp_dir/$name.log" 2>&1; then
    stop_node "$name"
    if grep -q 'InvalidAuthToken' "$temp_dir/$name.log"; then
      fail "the head refused the token in $token_file: copy the head's own"
    fi
    tail -n 20 "$temp_dir/$name.log" >&2
    fail "Ray did not start; all that it said is in $temp_dir/$name.log"
  fi
}

# wait_for HOST:PORT SECONDS: until somebody listens there.
wait_for() {
  local deadline=$((SECONDS + $2))
  until (exec 3<>"/dev/tcp/${1%:*}/${1#*:}") 2>/dev/null; do
    [ $SECONDS -lt $deadline ] || fail "--address=$1: nobody listens there"
    sleep 0.5
  done
}

# members NAME: the processes of a node, as lines 'PID COMMAND'.
members() {
  local session boot
  if [ -f "$temp_dir/$1.session" ]; then
    read -r session boot <"$temp_dir/$1.session"
    if [ "$boot" = "$(</proc/sys/kernel/random/boot_id)" ]; then
      # shellcheck disable=SC2009 # pgrep shows no command that it did not match
      ps -ww -o pid=,args= --sid "$session" |
        grep -E -e "^ *[0-9]+ (ray::|.*$temp_dir/$1)" || true
    fi
  fi
}

# end NAME SIGNAL PATTERN SECONDS: signals those, and waits for them to be gone.
end() {
  local deadline=$((SECONDS + $4)) processes
  processes=$(members "$1" | awk -v pattern="$3" '$0 ~ pattern { print $1 }')
  # shellcheck disable=SC2086 # one word for each process
  [ -z "$processes" ] || kill "-$2" $processes 2>/dev/null || true
  while members "$1" | grep -q -e "$3" && [ $SECONDS -lt $deadline ]; do
    sleep 0.1
  done
}

# stop_node NAME: this node and no other.
stop_node() {
  end "$1" TERM /raylet/raylet 10 # it says goodbye and ends its workers
  end "$1" TERM . 3
  end "$1" KILL . 5
  rm -rf "${temp_dir:?}/$1" "$temp_dir/$1.session"
}

# write_environment ADDRESS: what a driver needs, in a file to be sourced.
write_environment() {
  cat >"$temp_dir/env" <<END
export RAY_ADDRESS=$1 RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export RAY_AUTH_TOKEN_PATH=${token_file@Q}
END
  if [ "$address" = $loopback ]; then
    # Ray takes 127.0.0.1 for the machine's outer address otherwise.
    echo export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0
  else
    echo unset RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER
  fi >>"$temp_dir/env"
}

# progress WORKDIR: of the run in it: new, stopped (it can go on) or finished.
progress() {
  if grep -qs '"stopped": false' "$1/summary.json"; then
    echo finished
  elif [ -d "$1/checkpoints" ] || [ -e "$1/trace.rows" ]; then
    echo stopped
  else
    echo new
  fi
}
