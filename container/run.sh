#!/usr/bin/env bash
# Run a command in the image: container/run.sh docker|apptainer COMMAND...
#
# The root of the container is read-only. The command runs as the calling user, and sees three folders of the
# host: RESULTS, CACHE/huggingface and CACHE/qlora-repeat. The engine also gets $CONTAINER_OPTIONS.
set -euo pipefail
# shellcheck source=container/engine.sh
. "$(dirname "$0")/engine.sh"
kind=$1
shift
folders=("$RESULTS:/kit/runs" "$CACHE/huggingface:/cache/huggingface" "$CACHE/qlora-repeat:/cache/qlora-repeat")
mkdir -p "${folders[@]%%:/*}"
read -ra options <<<"${CONTAINER_OPTIONS:-}"
has_gpu() { nvidia-smi >/dev/null 2>&1; }

case $kind in
docker)
	find_engine
	user=$(id -u):$(id -g)
	case $("$ENGINE" info --format '{{.SecurityOptions}}' 2>/dev/null) in *rootless*) user=0:0 ;; esac # there, root is the calling user
	options+=(--rm --read-only --tmpfs /tmp --user "${CONTAINER_USER:-$user}" "${folders[@]/#/--volume=}")
	options+=(--cap-drop ALL --security-opt no-new-privileges) # the command needs no privilege
	options+=(--security-opt label=disable) # SELinux would hide the folders
	if "$ENGINE" --version | grep -qi podman; then # Podman may be installed as docker
		[ "$(id -u)" = 0 ] || options+=(--userns keep-id)
		! has_gpu || options+=(--device nvidia.com/gpu=all)
	else
		options+=(--init)
		! has_gpu || options+=(--gpus all)
	fi
	digest=$("$ENGINE" image inspect --format '{{.Id}}' "$IMAGE")
	exec "$ENGINE" run --env HF_TOKEN --env HF_HUB_OFFLINE --env QLORA_REPEAT_IMAGE="$IMAGE" \
		--env QLORA_REPEAT_IMAGE_DIGEST="sha256:${digest#sha256:}" "${options[@]}" "$IMAGE" "$@"
	;;
apptainer)
	require_apptainer
	! has_gpu || options+=(--nv)
	digest=""
	[ ! -f "$SIF" ] || digest=sha256:$(sha256sum <"$SIF" | cut -d' ' -f1)
	export APPTAINERENV_QLORA_REPEAT_IMAGE="${SIF##*/}" APPTAINERENV_QLORA_REPEAT_IMAGE_DIGEST="$digest"
	for name in HF_TOKEN HF_HUB_OFFLINE; do
		[ -z "${!name:-}" ] || export "APPTAINERENV_$name=${!name}"
	done
	exec apptainer run --containall --no-home --no-privs "${folders[@]/#/--bind=}" "${options[@]}" "$SIF" "$@"
	;;
esac
