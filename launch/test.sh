#!/usr/bin/env bash
# Lint and the default test suite. Arguments go to pytest:
#   bash launch/test.sh -k gap_aware
#   bash launch/test.sh -m slow
#   PYTHON=python3.12 bash launch/test.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install dev
cd "$root"
"$python" -m ruff check .
"$python" -m ruff format --check .
exec "$python" -m pytest -n auto --maxprocesses=4 --dist loadfile \
  --no-loadscope-reorder "$@"
