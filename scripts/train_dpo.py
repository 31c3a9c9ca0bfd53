"""`jaxrlhf dpo`, the same command on every process: `python scripts/train_dpo.py --config FILE key=value ...`."""

import sys

from jaxrlhf.cli import main

if __name__ == "__main__":
    sys.exit(main(["dpo", *sys.argv[1:]]))
