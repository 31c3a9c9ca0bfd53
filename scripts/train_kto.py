"""`jaxrlhf kto`, the same command on every process: `python scripts/train_kto.py --config FILE key=value ...`."""

import sys

from jaxrlhf.cli import main

if __name__ == "__main__":
    sys.exit(main(["kto", *sys.argv[1:]]))
