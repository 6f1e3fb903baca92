# Sourced by the other scripts: setup_venv EXTRAS makes .venv with the package and its extras, and puts it on the PATH.
# PYTHON names another interpreter than python3; a .venv that is up to date is left alone.

setup_venv() {
  local extras=$1 python=${PYTHON:-python3} stamp
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    echo "mpiconv needs Python 3.10 or newer; $python is not. Set PYTHON to one that is." >&2
    return 1
  fi
  stamp=.venv/.installed-$(cat setup.cfg scripts/constraints.txt scripts/setup.sh | "$python" -c \
    'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read() + sys.argv[1].encode()).hexdigest()[:16])' "$extras")
  if [ ! -e "$stamp" ]; then
    echo "== installing mpiconv[$extras] into .venv (once)"
    [ -x .venv/bin/python ] || "$python" -m venv .venv || {
      echo "cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2
      return 1
    }
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -c scripts/constraints.txt -e ".[$extras]"
    touch "$stamp"
  fi
  export PATH=$PWD/.venv/bin:$PATH
  # Open MPI: let root start jobs (as in containers), and more ranks than cores
  [ "$(id -u)" != 0 ] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  export PRTE_MCA_rmaps_default_mapping_policy=${PRTE_MCA_rmaps_default_mapping_policy-:oversubscribe}
}
