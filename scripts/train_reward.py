"""`jaxrlhf reward`, the same command on every process: `python scripts/train_reward.py --config FILE key=value ...`."""

import sys

from jaxrlhf.cli import main

if __name__ == "__main__":
    sys.exit(main(["reward", *sys.argv[1:]]))
