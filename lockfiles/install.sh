#!/usr/bin/env bash
# Make a virtual environment with exactly the packages that the lock files pin. `make setup` and images use it.
#
#   lockfiles/install.sh FOLDER PYTHON cpu|cuda LOCK...      for example: .venv python3 cpu runtime dev pocket
set -euo pipefail
folder=$1 python=$2 accelerator=$3
locks=$(cd "$(dirname "$0")" && pwd)
shift 3

install() {
	"$locks/pip.sh" "$folder/bin/python" install -qq --no-deps --require-hashes "$@"
}

trap 'exit 130' INT # otherwise an interrupted pip looks like an index without torch
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11, 1))'; then
	echo "$python: Python 3.11.1 or newer is needed (3.11.0 has the hole CVE-2022-42919); name another" >&2
	exit 1
fi
"$python" -m venv --clear "$folder"
install -r "$locks/build.txt" # also the pinned pip, which replaces the one of Python
if [ "$accelerator" = cuda ]; then
	install -r "$locks/torch-cuda.txt"
elif ! said=$(install -r "$locks/torch-cpu.txt" 2>&1); then
	case $said in
	*"No matching distribution found"*) ;;
	*) # such as another hash or a full disk
		echo "$said" >&2
		exit 1 ;;
	esac
	echo "the configured package indexes do not offer the CPU build of torch; trying PyTorch's index"
	install --retries 1 --index-url https://download.pytorch.org/whl/cpu -r "$locks/torch-cpu.txt"
fi
named=()
for lock in "$@"; do named+=(-r "$locks/$lock.txt"); done
install --no-build-isolation "${named[@]}"
