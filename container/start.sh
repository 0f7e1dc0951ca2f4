#!/usr/bin/env bash
# Where every container starts, of Docker and Apptainer: `start.sh make all STUDY=paper`, say.
#
# Results are in /kit/runs; models and data in /cache. Mount folders there. Nothing else is written to, but /tmp.
set -e
mounted() { [ -n "$1" ] && [ -d "$1" ] && [ -w "$1" ]; } # of the host's variables, which Apptainer passes on

mounted "${HF_HOME:-}" || HF_HOME=/cache/huggingface
mounted "${QLORA_REPEAT_CACHE:-}" || QLORA_REPEAT_CACHE=/cache/qlora-repeat
export HF_HOME QLORA_REPEAT_CACHE
export QLORA_REPEAT_LOCK="${QLORA_REPEAT_LOCK:-/kit/runs/}"
export QLORA_REPEAT_BUILD="${QLORA_REPEAT_BUILD:-/kit/runs/tables-and-figures}"
mounted "${HOME:-}" || export HOME=/tmp # any user may run it, also one without a name
export USER="${USER:-kit}"
# shellcheck source=container/environment.sh
. /kit/container/environment.sh
cd /kit
[ $# -gt 0 ] || set -- qlora-repeat --help
[ ! -t 0 ] || exec "$@" # a terminal sends its signals to all itself

# A container's engine signals this process alone: pass it on to all, for they end their step and keep a
# checkpoint, and stay until they have.
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
