# `source scripts/env.sh` in every new shell (bash or zsh): .venv on the PATH, and mpirun ready for one machine.
# Where the machine has fewer cores than ranks, or you are root (in a container, say), Open MPI refuses to start unless
# told; other MPIs do not ask. What you have set yourself stays.

_mpiconv=$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")/.." && pwd)
if [ -e "$_mpiconv/.venv/bin/activate" ]; then
  . "$_mpiconv/.venv/bin/activate"
else
  echo "there is no $_mpiconv/.venv yet: bash scripts/demo.sh makes it" >&2
fi
unset _mpiconv
export PRTE_MCA_rmaps_default_mapping_policy="${PRTE_MCA_rmaps_default_mapping_policy-:oversubscribe}" # Open MPI 5
export OMPI_MCA_rmaps_base_oversubscribe="${OMPI_MCA_rmaps_base_oversubscribe-1}"                    # Open MPI 4
[ "$(id -u)" != 0 ] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
