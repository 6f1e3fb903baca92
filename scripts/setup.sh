# Sourced by the other scripts: setup_venv EXTRAS makes .venv with the package and its extras, and puts it on the PATH.
# PYTHON names another interpreter than python3; a .venv that is up to date is left alone. Which package index is asked
# is pip's business: its configuration files and variables (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS) count.

# torch for the CPU alone where the index has that: the other is 10 times as large, and mpiconv uses nothing more of it.
install_torch() {
  local version pip=".venv/bin/python -m pip"
  version=$(sed -n 's/^torch==//p' scripts/constraints.txt)
  [ "$(uname)" = Linux ] && ! $pip show --quiet torch 2>/dev/null || return 0
  if ! $pip install --quiet --disable-pip-version-check -c scripts/constraints.txt "torch==$version+cpu" 2>/dev/null; then
    cat >&2 <<END
== no torch $version+cpu where pip looks: the torch that is there is taken. If it comes with CUDA, that is some 3 GB to
   download and 5 GB in .venv, of which mpiconv uses 0.8 GB. The small one: Ctrl-C, set PIP_EXTRA_INDEX_URL to an index
   with torch's CPU wheels (its installation page names one), and start again.
END
  fi
}

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
    install_torch
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -c scripts/constraints.txt -e ".[$extras]"
    touch "$stamp"
  fi
  . scripts/env.sh
}
