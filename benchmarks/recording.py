"""What the trace and the checkpoints cost, as shares of the time of fine-tuning, from a study's records.

python benchmarks/recording.py runs/pocket@bitwise
"""

import json
import statistics
import sys
from pathlib import Path


def main(folder: Path) -> None:
    """Prints, for each model, the median over its trials."""
    for model in sorted(path for path in folder.iterdir() if path.is_dir()):
        records = [json.loads(path.read_text()) for path in model.glob("*/trial-*/finetune.json")]
        outputs = [record["outputs"] for record in records]
        if not outputs:
            continue
        shares = {
            name: statistics.median(100 * each[f"{name}_seconds"] / each["train_seconds"] for each in outputs)
            for name in ("digest", "checkpoint")
        }
        print(
            f"{model.name}: {len(outputs)} trials, " + ", ".join(f"{k} {v:.2f} %" for k, v in shares.items())
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
