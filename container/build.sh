#!/usr/bin/env bash
# Build the image: container/build.sh docker|apptainer [OPTION OF THE ENGINE...]
set -euo pipefail
# shellcheck source=container/engine.sh
. "$(dirname "$0")/engine.sh"
: "${ACCELERATOR:=cuda}"
case $ACCELERATOR in cpu | cuda) ;; *) echo "ACCELERATOR=$ACCELERATOR: expected cpu or cuda" >&2; exit 2 ;; esac

lock_digest() { # as in records; empty if no Python can compute it
	local python
	for python in ${PYTHON:-python3}; do
		PYTHONPATH=src "$python" -c "from qlora_repeat.system.fingerprint import lock_digest
print(lock_digest('$ACCELERATOR'))" 2>/dev/null && return
	done || true
}

commit=$(git describe --always --abbrev=40 --dirty --exclude='*' 2>/dev/null || true)
made=$(git log -1 --format=%ct 2>/dev/null || echo 0)
inputs=(ACCELERATOR="$ACCELERATOR" VERSION="$version" COMMIT="$commit" LOCK="$(lock_digest)")
[ -z "${SNAPSHOT+set}" ] || inputs+=(SNAPSHOT="$SNAPSHOT")
kind=$1
shift
case $kind in
docker)
	find_engine
	[ -z "${BASE_IMAGE:-}" ] || inputs+=(BASE_IMAGE="$BASE_IMAGE")
	# Every file and the image get the time of the commit.
	if "$ENGINE" --version | grep -qi podman; then dated=(--timestamp "$made")
	else dated=(--build-arg=SOURCE_DATE_EPOCH="$made"); fi
	DOCKER_BUILDKIT=1 "$ENGINE" build --tag "$IMAGE" "${inputs[@]/#/--build-arg=}" "${dated[@]}" "$@" .
	;;
apptainer)
	require_apptainer
	case ${BASE_IMAGE:-} in
	docker-archive:* | docker-daemon:* | oci-archive:* | oci:* | localimage:*)
		inputs+=(BOOTSTRAP="${BASE_IMAGE%%:*}" FROM="${BASE_IMAGE#*:}") ;;
	?*) inputs+=(FROM="$BASE_IMAGE") ;;
	esac
	apptainer build "${inputs[@]/#/--build-arg=}" "$@" "$SIF" apptainer.def
	;;
esac
