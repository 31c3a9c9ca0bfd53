"""`python -m jaxrlhf` is `jaxrlhf`."""

import sys

from jaxrlhf.cli import main

if __name__ == "__main__":
    sys.exit(main())
