#!/usr/bin/env bash
# Run pip: its configuration and PIP_* say only where packages come from and how they are fetched.
#
#   lockfiles/pip.sh PYTHON ARGUMENT...      for example: .venv/bin/python install --require-hashes -r lockfiles/dev.txt
#
# Other settings, such as user, target, prefix or constraint, would end pip or put packages elsewhere.
set -euo pipefail
python=$1
shift
unset PYTHONPATH PYTHONHOME PYTHONUSERBASE PYTHONWARNINGS # packages found there would count as installed
settings=()
# `pip config list` does not do: it obeys `user` itself, and then shows the settings of one file only.
while IFS= read -r -d '' setting; do settings+=("$setting"); done < <("$python" -c '
from pip._internal.configuration import Configuration
kept = ("index-url extra-index-url find-links no-index trusted-host cert client-cert proxy timeout default-timeout "
        "retries resume-retries cache-dir no-cache-dir no-compile keyring-provider use-feature").split()
configuration, known, found = Configuration(isolated=False), {}, {}
configuration.load()
for key, value in configuration.items():
    known.update(value if isinstance(value, dict) else {key: value})
for section in ("global", "install", ":env:"):  # a later one counts
    found.update({name: known[f"{section}.{name}"] for name in kept if f"{section}.{name}" in known})
for name, value in found.items():
    print("PIP_" + name.upper().replace("-", "_"), value.strip().replace("\n", " "), sep="=", end="\0")
')
while IFS= read -r name; do unset "$name"; done < <(compgen -e | grep '^PIP_')
PIP_CONFIG_FILE=/dev/null exec env "${settings[@]}" "$python" -m pip --disable-pip-version-check "$@"
