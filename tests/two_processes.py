"""Training stages one after the other in the same processes, so that these import their libraries once.

torchrun … tests/two_processes.py '{"out/a": ["sft", "--model", …], …}'

Each gets its `--output_dir`.
"""

import importlib
import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # beside this file stand folders of the packages' names


def main() -> None:
    runs = json.loads(sys.argv[1])
    for out, (stage, *arguments) in runs.items():
        sys.argv = [f"{stage}.py", *arguments, "--output_dir", out]
        importlib.import_module(f"stages.{stage}").main()


if __name__ == "__main__":
    main()
