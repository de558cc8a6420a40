#!/usr/bin/env bash
# Installs ga_jax with Ray into .venv of this checkout, on a machine that has
# nothing but curl: with a Python of its own. All machines of a cluster must
# have the same Python, Ray and JAX to the last digit, also those that join
# weeks later, hence the versions here.
#
#   bash launch/ray_install.sh cpu|cuda12|cuda13|tpu|auto [PACKAGE...]
#
# auto installs JAX for what this machine has, which a head without accelerators
# has not.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/ray_common.sh"
# shellcheck source=accelerator.sh
source "$here/accelerator.sh"

UV=0.13.9 PYTHON=3.12 RAY=2.60.0 JAX=0.12.0.1
case ${1:-} in
  auto) ;;
  cpu | cuda12 | cuda13 | tpu) ACCELERATOR=$1 ;;
  -h | --help) help "$0" && exit ;;
  *) fail "${1:-nothing}: must be cpu, cuda12, cuda13, tpu or auto" ;;
esac
use_accelerator
export PATH=$HOME/.local/bin:$PATH
if [ "$(uv --version 2>/dev/null | cut -d' ' -f2)" != $UV ]; then
  curl --location --silent --show-error --fail "https://astral.sh/uv/$UV/install.sh" |
    UV_NO_MODIFY_PATH=1 sh
fi
cd "$here/.."
uv venv --quiet --allow-existing --managed-python --python=$PYTHON .venv
uv pip install --quiet --editable '.[ray]' "ray==$RAY" "jax[$accelerator]==$JAX" "${@:2}"
.venv/bin/python -c 'import jax, ray; print("jax", jax.__version__, "ray", ray.__version__)'
