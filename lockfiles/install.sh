#!/usr/bin/env bash
# Makes a virtual environment of what the lock files pin, and of nothing else. For make and for images.
#
#   lockfiles/install.sh FOLDER PYTHON cpu|cuda LOCK...      such as: .venv python3 cpu runtime dev pocket
set -euo pipefail
folder=$1 python=$2 accelerator=$3
locks=$(cd "$(dirname "$0")" && pwd)
shift 3

install() {
	"$folder/bin/python" -m pip install --disable-pip-version-check -qq --no-deps --require-hashes "$@"
}

trap 'exit 130' INT # or an interrupted pip would count as an index without torch
"$python" -m venv --clear "$folder"
install -r "$locks/build.txt"
if [ "$accelerator" = cuda ]; then
	install -r "$locks/torch-cuda.txt"
elif ! install -r "$locks/torch-cpu.txt" 2>/dev/null; then
	echo "torch's CPU build is not on the configured package indexes; trying PyTorch's own"
	install --retries 1 --index-url https://download.pytorch.org/whl/cpu -r "$locks/torch-cpu.txt"
fi
named=()
for lock in "$@"; do named+=(-r "$locks/$lock.txt"); done
install --no-build-isolation "${named[@]}"
