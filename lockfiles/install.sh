#!/usr/bin/env bash
# Make a virtual environment with exactly the packages that the lock files pin. `make setup` and images use it.
#
#   lockfiles/install.sh FOLDER PYTHON cpu|cuda LOCK...      for example: .venv python3 cpu runtime dev pocket
set -euo pipefail
folder=$1 python=$2 accelerator=$3
locks=$(cd "$(dirname "$0")" && pwd)
shift 3

install() {
	"$folder/bin/python" -m pip install --disable-pip-version-check -qq --no-deps --require-hashes "$@"
}

trap 'exit 130' INT # otherwise an interrupted pip looks like an index without torch
"$python" -m venv --clear "$folder"
install -r "$locks/build.txt"
if [ "$accelerator" = cuda ]; then
	install -r "$locks/torch-cuda.txt"
elif ! install -r "$locks/torch-cpu.txt" 2>/dev/null; then
	echo "the configured package indexes do not have the CPU build of torch; trying PyTorch's index"
	install --retries 1 --index-url https://download.pytorch.org/whl/cpu -r "$locks/torch-cpu.txt"
fi
named=()
for lock in "$@"; do named+=(-r "$locks/$lock.txt"); done
install --no-build-isolation "${named[@]}"
