#!/usr/bin/env bash
# Adds this machine to the Ray cluster of a head (launch/ray_head.sh). It needs
# the head's token, Python, Ray and ga_jax in the same versions.
#
#   bash launch/ray_worker.sh --address=HEAD:6379 [FLAG...] [-- RAY-START-FLAG...]
#   bash launch/ray_worker.sh --stop [--temp_dir=DIR]
#
#   --address=HOST:PORT  of the head
#   --interface=NAME     interface or address that the other machines reach this
#                        one at (default: the one that the default route takes)
#   --token_file=FILE    a copy of the head's (default ~/.ray/auth_token)
#   --resources=JSON     as in `ray start`: '{"big": 1}'
#   --wait=60            seconds to wait for the head
#   --temp_dir=DIR       sockets and logs (default /tmp/ga_ray-UID)
#   --block              stay in the foreground (systemd, srun)
#   --running            does nothing; exits with 0 where this node runs
#   --stop               ends this node, and nothing else
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/ray_common.sh"

head='' wait=60
while [ $# -gt 0 ]; do
  case $1 in
    --address=*) head=${1#*=} ;;
    --wait=*) wait=${1#*=} ;;
    --) shift && flags+=("$@") && break ;;
    *) node_flag "$1" ;;
  esac
  shift
done
whole wait "$wait" 0
use_temp_dir
other_action worker

[[ $head =~ ^[A-Za-z0-9._-]+:[0-9]{1,5}$ ]] ||
  fail "--address=$head: must be the head's HOST:PORT"
use_token
use_python
case ${head%:*} in localhost | 127.*) interface=$loopback ;; esac
use_interface "$interface"
wait_for "$head" "$wait"
start_node worker --address="$head" "${flags[@]}"
echo "This machine ($address) is a node of $head; end: bash launch/ray_worker.sh --stop --temp_dir=$temp_dir"
