"""Runs a command in several processes on this machine.

For example: python scripts/launch/local.py --processes 2 -- jaxrlhf ppo --config FILE
"""

import argparse
import signal
import sys

from jaxrlhf.sharding.launch import launch


def main() -> int:
    """Returns the exit status of the first process that failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, required=True, help="how many")
    parser.add_argument("--devices", type=int, help="simulated CPU devices of each process")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="program and arguments, after the options")
    options = parser.parse_args()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("the command is missing")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the processes are stopped on the way out
    return launch(command, processes=options.processes, devices=options.devices)


if __name__ == "__main__":
    sys.exit(main())
