"""`jaxrlhf rejection`, the same on every process: `python scripts/train_rejection.py --config FILE key=value ...`."""

import sys

from jaxrlhf.cli import main

if __name__ == "__main__":
    sys.exit(main(["rejection", *sys.argv[1:]]))
