#!/usr/bin/env bash
# Starts the head of a Ray cluster on this machine, with token authentication.
#
#   bash launch/ray_head.sh [--interface=eth0] [FLAG...] [-- RAY-START-FLAG...]
#   bash launch/ray_head.sh --stop [--temp_dir=DIR]
#
#   --interface=NAME   interface or address that the other machines reach this
#                      one at (default 127.0.0.1: this machine only)
#   --port=6379        of the head
#   --token_file=FILE  default ~/.ray/auth_token; made for 127.0.0.1, required
#                      for every other interface (bash launch/ray_token.sh)
#   --resources=JSON   as in `ray start`: '{"big": 1}'
#   --temp_dir=DIR     sockets and logs (default /tmp/ga_ray-UID)
#   --block            stay in the foreground (systemd, srun)
#   --running          does nothing; exits with 0 where this head runs
#   --stop             ends this head, and nothing else
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/ray_common.sh"

interface=$loopback port=6379
while [ $# -gt 0 ]; do
  case $1 in
    --port=*) port=${1#*=} ;;
    --) shift && flags+=("$@") && break ;;
    *) node_flag "$1" ;;
  esac
  shift
done
whole port "$port" 1024
use_temp_dir
[ "$action" != stop ] || rm -f "$temp_dir/env"
other_action head

use_python
use_interface "$interface"
if [ "$address" = "$loopback" ]; then
  make_token
elif ! [ -e "$token_file" ]; then
  fail "--interface=$interface is open to the network, and without a token whoever reaches it runs programs here: make one (bash launch/ray_token.sh), copy $token_file to every machine, and start again"
fi
use_token
write_environment "$address:$port"
start_node head --head --port="$port" --include-dashboard=false \
  --dashboard-host="$loopback" --disable-usage-stats "${flags[@]}"
cat <<END
The head listens at $address:$port; only programs with the token in $token_file come in.
  another machine, with the same token:  bash launch/ray_worker.sh --address=$address:$port
  a run, from here:                      source $temp_dir/env
                                         $python -m experiments.train --runtime=ray --address=auto --workers=2 --workdir=runs/cluster
  end:                                   bash launch/ray_head.sh --stop --temp_dir=$temp_dir
END
