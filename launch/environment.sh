# shellcheck shell=bash
# Sourced by the scripts beside it: makes the virtual environment once and sets
# $root, $python and $accelerator, the extra that brings JAX for what this
# machine computes with (accelerator.sh; ACCELERATOR=cpu|cuda12|cuda13|tpu).
#
# PYTHON picks the interpreter; another one than python3 gets an environment of
# its own (.venv-3.12, ...). VENV puts the environment elsewhere, or names one
# that is there.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=accelerator.sh
source "$root/launch/accelerator.sh"
use_accelerator
base=${PYTHON:-python3}
if [ -z "${PYTHON:-}" ] && [ -x "${VENV:=$root/.venv}/bin/python" ]; then
  base=$VENV/bin/python # it may be newer than the system's
fi

if ! command -v "$base" >/dev/null; then
  echo "error: PYTHON=$base: no such command" >&2
  exit 2
fi
version=$("$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "error: $base is Python $version; ga_jax needs 3.11 or later" >&2
  exit 2
fi

venv=${VENV:-$root/.venv-$version}
python=$venv/bin/python
if ! [ -x "$python" ]; then
  echo "making $venv" >&2
  "$base" -m venv "$venv"
fi

# install [EXTRA]: this checkout with JAX for $accelerator, unless exactly that
# was installed before.
install() {
  local stamp=$venv/.installed-${1:-run} wanted
  local what="${root}[${1:+$1,}$accelerator]"
  wanted=$(cat "$root/requirements.txt" "$root/pyproject.toml" && echo "$what")
  if ! [ -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
    echo "installing into $venv for $accelerator: $because (a few minutes the first time)" >&2
    "$python" -m pip install --quiet --disable-pip-version-check \
      --editable "$what"
    printf '%s' "$wanted" >"$stamp"
  fi
}
