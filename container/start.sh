#!/usr/bin/env bash
# Start a command in a container of Docker or Apptainer, such as `start.sh make all STUDY=paper`.
#
# Results are in /kit/runs; models and data are in /cache. Mount folders there. The kit writes only there and to /tmp.
set -e
mounted() { [ -n "$1" ] && [ -d "$1" ] && [ -w "$1" ]; } # Apptainer passes on the host's variables

mounted "${HF_HOME:-}" || HF_HOME=/cache/huggingface
mounted "${QLORA_REPEAT_CACHE:-}" || QLORA_REPEAT_CACHE=/cache/qlora-repeat
export HF_HOME QLORA_REPEAT_CACHE
export QLORA_REPEAT_LOCK="${QLORA_REPEAT_LOCK:-/kit/runs/}"
export QLORA_REPEAT_BUILD="${QLORA_REPEAT_BUILD:-/kit/runs/tables-and-figures}"
mounted "${HOME:-}" || export HOME=/tmp # the user may have no home here
export USER="${USER:-kit}"
# shellcheck source=container/environment.sh
. /kit/container/environment.sh
cd /kit
[ $# -gt 0 ] || set -- qlora-repeat --help
[ ! -t 0 ] || exec "$@" # a terminal signals every process

# An engine signals only this process. Pass the signal on to all processes: they finish their step and write a
# checkpoint. Wait until they have ended.
set +e -m
"$@" &
child=$! asked=
for signal in TERM INT USR1; do
	# shellcheck disable=SC2064
	trap "asked=$signal; kill -s $signal -- -$child 2>/dev/null" $signal
done
wait "$child"
code=$?
if [ -n "$asked" ]; then
	while kill -0 -- "-$child" 2>/dev/null; do sleep 0.2; done
	wait "$child"
	code=$?
fi
exit "$code"
