#!/usr/bin/env bash
# A real SLURM of one node on this machine, for trying the batch scripts and for their tests. Root, Debian or Ubuntu;
# needs no systemd, listens on 127.0.0.1 only, and keeps everything in one folder of its own.
#
#   bash scripts/slurm/setup.sh up             install slurm-wlm if it is not there; start munged, slurmctld and slurmd
#   eval "$(bash scripts/slurm/setup.sh env)"  let sbatch, squeue and so on in this shell talk to it
#   bash scripts/slurm/setup.sh status
#   bash scripts/slurm/setup.sh down           end these daemons and their jobs, remove the folder
#
# MPICONV_SLURM is the folder (/run/mpiconv-slurm), MPICONV_SLURM_CPUS what the node offers (8, whatever it has),
# MPICONV_SLURM_PORT the first of two ports (16817).
set -euo pipefail
folder=${MPICONV_SLURM:-/run/mpiconv-slurm} cpus=${MPICONV_SLURM_CPUS:-8} port=${MPICONV_SLURM_PORT:-16817}
daemons=(munged slurmctld slurmd)
export SLURM_CONF=$folder/slurm.conf

refuse() {
  echo "slurm: error: $*" >&2
  exit 1
}

running() { # NAME: whether the daemon that this script started is still there; a number may be another process by now
  local pid
  pid=$(cat "$folder/$1.pid" 2>/dev/null) && [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$1" ] &&
    tr '\0' ' ' <"/proc/$pid/cmdline" | grep -qF "$folder/"
}

answers() { # COMMAND...: until it succeeds, 15 s at most
  for _ in $(seq 60); do
    if "$@" >/dev/null 2>&1; then return 0; fi
    sleep 0.25
  done
  return 1
}

install_slurm() {
  local missing=()
  for tool in "${daemons[@]}" sbatch mungekey; do command -v "$tool" >/dev/null || missing+=("$tool"); done
  [ ${#missing[@]} = 0 ] && return
  command -v apt-get >/dev/null || refuse "${missing[0]} is not installed and there is no apt-get to install slurm-wlm"
  echo "== installing slurm-wlm"
  # Its own daemons are not wanted: without configuration they would only fail to start.
  local install="apt-get install -qq -y --no-install-recommends slurm-wlm munge"
  export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
  $install >"$folder/apt.log" 2>&1 || { apt-get update -qq && $install; } >"$folder/apt.log" 2>&1 || {
    tail -5 "$folder/apt.log" >&2
    refuse "apt-get cannot install slurm-wlm"
  }
}

configure() {
  local host
  host=$(hostname -s)
  mkdir -p "$folder"/{state,spool}
  [ -e "$folder/munge.key" ] || mungekey --create --keyfile "$folder/munge.key"
  chmod 600 "$folder/munge.key"
  # cred_expire: a requeued job waits that long before it starts again; the usual 120 s are for large clusters.
  # OverTimeLimit: minutes that a job may take longer, so that a busy machine does not kill what was to end by itself.
  cat >"$SLURM_CONF" <<END
ClusterName=mpiconv
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
OverTimeLimit=1
KillWait=5
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
END
}

up() {
  [ "$(id -u)" = 0 ] || refuse "setting SLURM up needs root"
  [ "$(uname)" = Linux ] || refuse "this sets SLURM up on Linux only"
  if running slurmctld; then refuse "it is up already, in $folder; 'down' ends it"; fi
  for conf in /etc/slurm/slurm.conf /etc/slurm-llnl/slurm.conf; do
    [ ! -e "$conf" ] || refuse "this machine has a SLURM of its own ($conf): submit to that one"
  done
  [ ! -e "$folder" ] || [ -e "$folder/.mpiconv-slurm" ] || refuse "$folder is there and not from this script"
  for p in "$port" $((port + 1)); do
    if (: <"/dev/tcp/127.0.0.1/$p") 2>/dev/null; then
      refuse "port $p is taken; MPICONV_SLURM_PORT names another"
    fi
  done
  (umask 022 && mkdir -p "$folder" && touch "$folder/.mpiconv-slurm")
  install_slurm
  configure
  munged --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munged.seed" || fail munged
  slurmctld -c -f "$SLURM_CONF" || fail slurmctld
  answers scontrol ping || fail slurmctld
  slurmd -f "$SLURM_CONF" || fail slurmd
  answers idle || fail slurmd
  status
}

fail() { # NAME: a daemon that did not start
  tail -5 "$folder/$1.log" >&2 2>/dev/null || true
  cp "$folder/$1.log" "${TMPDIR:-/tmp}/mpiconv-$1.log" 2>/dev/null || true
  down
  refuse "$1 did not start; its log is ${TMPDIR:-/tmp}/mpiconv-$1.log"
}

idle() { sinfo -h -o %t | grep -qx idle; }

status() {
  running slurmctld || refuse "not up (folder $folder)"
  scontrol ping
  sinfo -N -o '%N: %c CPUs, %T'
  squeue
}

down() {
  if [ ! -e "$folder/.mpiconv-slurm" ]; then
    echo "slurm: nothing of this script in $folder"
    return
  fi
  if running slurmctld && running slurmd; then
    timeout 5 scancel --user=root 2>/dev/null || true
    answers eval '[ -z "$(squeue -h)" ]' || true
  fi
  for name in slurmd slurmctld munged; do
    if running "$name"; then
      kill "$(cat "$folder/$name.pid")"
      answers eval "! running $name" || kill -9 "$(cat "$folder/$name.pid")"
    fi
  done
  rm -rf "$folder"
}

case ${1:-} in
  up) up ;;
  env) [ -e "$SLURM_CONF" ] || refuse "not up (folder $folder)"; echo "export SLURM_CONF=$SLURM_CONF" ;;
  status) status ;;
  down) down ;;
  *) refuse "one of up, env, status, down is wanted, not '${1:-}'" ;;
esac
