# shellcheck shell=sh
# For whatever runs in an image.
export PATH="/opt/kit/bin:$PATH"
unset PYTHONPATH PYTHONHOME # Apptainer passes the host's on, with which another kit would run
export KIT_PYTHON=/opt/kit/bin/python
export PYTHONNOUSERSITE=1 # Apptainer shows the user's home, and packages in it are not the image's
export PYTHONDONTWRITEBYTECODE=1
