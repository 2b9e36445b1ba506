"""python -m scratchlm."""

import os
import sys

from scratchlm.cli import main

if __name__ == "__main__":
    code = main()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # all is written; threads that gloo has left can abort what Python does at its end (torch 2.13), which torchrun
        # would take for a fault
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)
