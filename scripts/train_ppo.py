"""`jaxrlhf ppo`, the same command on every process: `python scripts/train_ppo.py --config FILE key=value ...`."""

import sys

from jaxrlhf.cli import main

if __name__ == "__main__":
    sys.exit(main(["ppo", *sys.argv[1:]]))
