# Debian's Open MPI where there is no mpicc and this is root; elsewhere it must be there. Sourced by the scripts that
# build with MPI.

if ! command -v mpicc >/dev/null; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "no mpicc: install an MPI and libclang, as docs/CLUSTER.md says" >&2
    exit 1
  fi
  apt-get update -q
  apt-get install -qy --no-install-recommends libopenmpi-dev openmpi-bin libclang-dev
fi
