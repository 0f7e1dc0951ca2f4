"""The folders of tables, figures and reports, and of templates."""

import os
from pathlib import Path

from qlora_repeat.system.package_data import kit_path

BUILD = Path(os.environ.get("QLORA_REPEAT_BUILD") or "paper/build")
"""The folder of tables, figures and reports; each study has its own in it."""
TEMPLATES = kit_path("paper/templates")
"""The templates of tables."""
