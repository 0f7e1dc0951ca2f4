#!/usr/bin/env bash
# Test an image without a network: run container/test.sh, then the first trial of the pocket study.
#
#   container/try.sh docker|apptainer [TRIAL]
set -euo pipefail
here=$(dirname "$0")
trial=${2:-smollm2-135m/adamw-8bit/1}
inside() { "$here/run.sh" "$kind" "$@"; }
kind=$1
case $kind in
docker) network="--network none" ;;
apptainer) network="--net --network none" ;;
esac
export CONTAINER_OPTIONS="${CONTAINER_OPTIONS:-} $network"
inside container/test.sh
inside qlora-repeat fetch pocket
inside qlora-repeat trial "$trial" --study pocket --randomness bitwise
