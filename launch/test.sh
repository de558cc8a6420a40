#!/usr/bin/env bash
# Lint and the default test suite. Arguments go to pytest:
#   bash launch/test.sh -k gap_aware
#   bash launch/test.sh -m slow
#   PYTHON=python3.12 bash launch/test.sh
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install dev --editable "${root}[dev]"
cd "$root"
"$python" -m ruff check .
"$python" -m ruff format --check .
# One more than cores: some tests wait for processes of their own.
processes=$("$python" -c 'import os; print(min(os.cpu_count() + 1, 4))')
exec "$python" -m pytest -n "$processes" --dist loadfile \
  --no-loadscope-reorder "$@"
