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
while IFS= read -r -d '' setting; do settings+=("$setting"); done < <("$python" -m pip config list | "$python" -c '
import ast, sys
kept = ("index-url extra-index-url find-links no-index trusted-host cert client-cert proxy timeout default-timeout "
        "retries resume-retries cache-dir no-cache-dir no-compile keyring-provider use-feature").split()
found, lines = {}, sys.stdin.read().splitlines()
for section in ("global", "install", ":env:"):  # a later one counts
    for line in lines:
        name, _, value = line.removeprefix(f"{section}.").partition("=")
        if line.startswith(f"{section}.") and name in kept:
            found[name] = ast.literal_eval(value).strip().replace("\n", " ")
for name, value in found.items():
    print("PIP_" + name.upper().replace("-", "_") + "=" + value, end="\0")
')
while IFS= read -r name; do unset "$name"; done < <(compgen -e | grep '^PIP_')
PIP_CONFIG_FILE=/dev/null exec env "${settings[@]}" "$python" -m pip --disable-pip-version-check "$@"
