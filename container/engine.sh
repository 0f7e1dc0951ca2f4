# shellcheck shell=bash
# Shared by build.sh and run.sh. The Makefile documents the variables.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' src/qlora_repeat/__init__.py)
: "${IMAGE:=localhost/qlora-repeat:$version}" "${SIF:=qlora-repeat.sif}"
: "${RESULTS:=$PWD/runs}" "${CACHE:=${XDG_CACHE_HOME:-$HOME/.cache}}"
RESULTS=$(realpath -m "$RESULTS") CACHE=$(realpath -m "$CACHE") # Docker takes a relative path for a volume

find_engine() { # docker may be installed while its daemon is not running
	if [ -z "${ENGINE:-}" ]; then
		if docker info >/dev/null 2>&1; then ENGINE=docker
		elif command -v podman >/dev/null; then ENGINE=podman
		else
			echo "Neither docker nor podman works here. For Apptainer, which needs neither, run: make sif" >&2
			exit 3
		fi
	fi
}

require_apptainer() {
	command -v apptainer >/dev/null || { echo "apptainer: not found; see docs/howto/run-on-a-cluster.md" >&2; exit 3; }
}
