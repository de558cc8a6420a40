#!/usr/bin/env bash
# Makes the token that lets programs into a Ray cluster, once, in a file that
# only its owner can read, and prints where it is (never the token). Every
# machine of a cluster needs a copy of the same file.
#
#   bash launch/ray_token.sh [--token_file=FILE]
#
#   --token_file=FILE  default ~/.ray/auth_token, where Ray looks for it
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/ray_common.sh"

for argument in "$@"; do
  case $argument in
    --token_file=?*) token_file=${argument#*=} ;;
    -h | --help) help "$0" && exit ;;
    *) fail "$argument: no such flag; --help lists them" ;;
  esac
done
make_token
use_token
echo "$token_file"
