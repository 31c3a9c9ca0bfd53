"""`jaxrlhf grpo`, the same command on every process: `python scripts/train_grpo.py --config FILE key=value ...`."""

import sys

from jaxrlhf.cli import main

if __name__ == "__main__":
    sys.exit(main(["grpo", *sys.argv[1:]]))
