"""A study whose models and data are all on a hub, and a user who fetches it with the command line."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.checkout import ROOT
from support.tiny import TINY

MODEL = "acme/small-llama"
PICKLED = "togethercomputer/GPT-NeoXT-Chat-Base-20B"
"""A repository without safetensors; its miniature has none either."""
QUOTES = "acme/quotes"
QUESTIONS = "acme/questions"
SHARD = "model-00002-of-00003.safetensors"
"""A file of MODEL."""
QUOTER = ("--only", "quoter")
"""Options for the model with base MODEL and data QUOTES."""
NOBODY = "http://127.0.0.1:9"
"""An address where nothing listens (the discard port)."""

STUDY = f"""
[bases.llama]
hub = {{ repository = "{MODEL}", revision = "main" }}
architecture = {{ model_type = "llama" }}

[bases.neox]
hub = {{ repository = "{PICKLED}", revision = "main" }}
architecture = {{ model_type = "gpt_neox", rotary_pct = 0.25, use_parallel_residual = true }}

[data.quotes]
task = "text-generation"
source = "hub"
hub = {{ repository = "{QUOTES}", revision = "main", files = "*.jsonl" }}
columns = {{ quote = "quote" }}
rows = 40
max_new_tokens = 4
prompts = ["Your silence will"]

[data.questions]
task = "question-answering"
source = "hub"
hub = {{ repository = "{QUESTIONS}", revision = "main", files = "data/*.parquet" }}
columns = {{ instruction = "instruction", answer = "output" }}
rows = 40
max_new_tokens = 4
prompts = ["If you have", "Tommy:"]

[models.quoter]
title = "Quoter"
base = "llama"
data = "quotes"
template = "{{quote}}"
target_modules = ["q_proj", "v_proj"]

[models.solver]
title = "Solver"
base = "neox"
data = "questions"
template = "<s><human> {{instruction}} <bot> {{answer}}</s>"
target_modules = ["query_key_value"]
"""


def write_hub_study(folder: Path, *replacements: tuple[str, str]) -> Path:
    """Write the study to a file after these replacements in its text; return its path."""
    settings = (
        TINY.read_text(encoding="utf-8").partition("[bases.")[0].replace('name = "tiny"', 'name = "small"')
    )
    text = settings + STUDY
    for old, new in replacements:
        assert old in text, old
        text = text.replace(old, new)
    path = folder / "small.toml"
    path.write_text(text, encoding="utf-8")
    return path


@dataclass
class User:
    """A user with a study file and caches in one folder."""

    folder: Path
    hub: str
    """The address of the hub."""

    @property
    def study(self) -> Path:
        return self.folder / "small.toml"

    @property
    def lock(self) -> Path:
        return self.folder / "small.lock"

    @property
    def cache(self) -> Path:
        """The cache of the kit."""
        return self.folder / "cache"

    @property
    def home(self) -> Path:
        """The value of HF_HOME."""
        return self.folder / "home"

    def snapshot(self, repository: str, kind: str = "models") -> Path:
        """Return the folder with a repository's files in the hub's cache."""
        folder = self.home / "hub" / f"{kind}--{repository.replace('/', '--')}" / "snapshots"
        return next(iter(sorted(folder.iterdir())))

    def base(self, name: str = "llama") -> Path:
        """Return the folder of a base model in the kit's cache."""
        return next((self.cache / "bases").glob(f"{name}-*"))

    def locked(self) -> dict[str, Any]:
        """Return the content of the lock file."""
        found: dict[str, Any] = json.loads(self.lock.read_text())
        return found

    def commit(self) -> str:
        """Return the commit of the fetched base model."""
        source: dict[str, str] = json.loads((self.base() / "source.json").read_text())
        return source["commit"]

    def start(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        """Start `qlora-repeat fetch` on the study."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        own = {
            "HF_HOME": str(self.home),
            "HF_ENDPOINT": self.hub,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "QLORA_REPEAT_CACHE": str(self.cache),
        }
        command = [str(Path(sys.executable).with_name("qlora-repeat")), "fetch", str(self.study), *arguments]
        return subprocess.Popen(
            command, cwd=ROOT, env=kept | own | environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def fetch(self, *arguments: str, **environment: str) -> list[str]:
        """Fetch successfully; return the lines of output."""
        process = self.start(*arguments, **environment)
        output, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, ""), errors
        return output.splitlines()

    def refused(self, *arguments: str, code: int = 3, **environment: str) -> str:
        """Fetch, check that it fails with this exit code and one line, and return the line."""
        process = self.start(*arguments, **environment)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == code, errors
        assert len(errors.splitlines()) == 1, errors
        assert errors.startswith("Error: ")
        return errors.removeprefix("Error: ").rstrip("\n")

    def again(self, model: str = "quoter") -> str:
        """Return the command that errors recommend."""
        return f"`qlora-repeat fetch {self.study} --only {model}`"
