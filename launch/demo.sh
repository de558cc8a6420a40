#!/usr/bin/env bash
# Compares five methods at 1, 8, 16 and 32 simulated workers on real digits, and
# prints the table. Makes .venv where there is none. Arguments go to
# experiments.compare (--workdir=..., --seeds=5, ...).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install
cd "$root"
exec "$python" -m experiments.compare \
  --flagfile=experiments/presets/digits_demo.flags "$@"
