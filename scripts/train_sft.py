"""`jaxrlhf sft`, the same command on every process: `python scripts/train_sft.py --config FILE key=value ...`."""

import sys

from jaxrlhf.cli import main

if __name__ == "__main__":
    sys.exit(main(["sft", *sys.argv[1:]]))
