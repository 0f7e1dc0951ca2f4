# shellcheck shell=sh
# The environment of every command in an image.
export PATH="/opt/kit/bin:$PATH"
unset PYTHONPATH PYTHONHOME # Apptainer passes on the host's values, which could import another kit
export KIT_PYTHON=/opt/kit/bin/python
export PYTHONNOUSERSITE=1 # Apptainer mounts the user's home, which may contain other packages
export PYTHONDONTWRITEBYTECODE=1
