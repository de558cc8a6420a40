#!/usr/bin/env bash
# Several Ray nodes on this machine, on 127.0.0.1 only, with a token of their
# own: a cluster to try things on.
#
#   bash launch/local_cluster.sh --nodes=3    start; prints what to source
#   bash launch/local_cluster.sh --add=1      more nodes, while a run goes on
#   bash launch/local_cluster.sh --kill=3     a node is gone without a word, as
#                                             a spot machine
#   bash launch/local_cluster.sh --list       the nodes
#   bash launch/local_cluster.sh --stop       end: these nodes, and nothing else
#
#   --nodes=2       with the head
#   --cpus=1        that each node says it has: one for every worker on it
#   --port=0        of the head (0: one that is free)
#   --temp_dir=DIR  sockets, logs and token (default /tmp/ga_local-UID)
#   -- FLAG...      for `ray start` on every node that is started now
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/ray_common.sh"

action=nodes count=2 cpus=1 port=0 temp_dir=${RAY_TMPDIR:-/tmp/ga_local-$UID}
while [ $# -gt 0 ]; do
  case $1 in
    --nodes=* | --add=* | --kill=*)
      action=${1%%=*} && action=${action#--} && count=${1#*=}
      ;;
    --stop | --list) action=${1#--} ;;
    --cpus=*) cpus=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --temp_dir=*) temp_dir=${1#*=} ;;
    --) shift && flags+=("$@") && break ;;
    -h | --help) help "$0" && exit ;;
    *) fail "$1: no such flag; --help lists them" ;;
  esac
  shift
done
whole "$action" "$count"
whole cpus "$cpus"
whole port "$port" 0
use_temp_dir
address=$loopback
token_file=$temp_dir/token

# names: of the nodes that were started, in that order.
names() {
  find "$temp_dir" -maxdepth 1 -name 'node-*.session' -printf '%f\n' |
    sed 's/\.session//' | sort -t- -k2n
}

# one NAME FLAG...: a node.
one() {
  start_node "$@" --num-cpus="$cpus" --object-store-memory=268435456 \
    --min-worker-port=0 --max-worker-port=0 "${flags[@]}"
}

# more FIRST LAST: nodes with these numbers, side by side.
more() {
  local number nodes=()
  for ((number = $1; number <= $2; number++)); do
    one "node-$number" --address="$RAY_ADDRESS" &
    nodes+=($!)
  done
  for node in "${nodes[@]}"; do
    wait "$node" || exit 2
  done
}

case $action in
  nodes)
    [ -z "$(names)" ] ||
      fail "nodes run in $temp_dir already; end them first (--stop), or choose another --temp_dir"
    use_python
    make_token
    use_token
    one node-1 --head --port="$port" --include-dashboard=false --disable-usage-stats
    write_environment "$(<"$temp_dir/node-1/ray_current_cluster")"
    # shellcheck source=/dev/null
    source "$temp_dir/env"
    more 2 "$count"
    cat <<END
$count nodes run on this machine. Now:
  source $temp_dir/env
  $python -m experiments.train --runtime=ray --address=auto --workers=$count --workdir=runs/local_cluster
  bash launch/local_cluster.sh --stop --temp_dir=$temp_dir
END
    ;;
  add)
    [ -f "$temp_dir/env" ] && [ -n "$(names)" ] ||
      fail "no nodes run in $temp_dir; start some first: --nodes=2"
    use_python
    use_token
    # shellcheck source=/dev/null
    source "$temp_dir/env"
    last=$(names | tail -n 1)
    more $((${last#node-} + 1)) $((${last#node-} + count))
    ;;
  kill)
    [ "$count" != 1 ] || fail "--kill=1: that is the head; end all of it by --stop"
    [ -f "$temp_dir/node-$count.session" ] || fail "--kill=$count: no such node"
    end "node-$count" KILL . 10
    rm -r "$temp_dir/node-$count" "$temp_dir/node-$count".*
    ;;
  list)
    for name in $(names); do
      echo "$name: $(members "$name" | wc -l) processes"
    done
    ;;
  stop)
    for name in $(names | tac); do # the head last
      stop_node "$name"
    done
    rm -rf "$temp_dir"/node-* "$temp_dir/env" "$token_file"
    ;;
esac
