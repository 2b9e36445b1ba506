"""Train a Backpack: the same as `scratchlm train backpack`, with the same flags."""

import sys

from scratchlm.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", "backpack", *sys.argv[1:]]))
