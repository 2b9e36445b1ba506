"""Train a CNN: the same as `scratchlm train cnn`, with the same flags."""

import sys

from scratchlm.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", "cnn", *sys.argv[1:]]))
