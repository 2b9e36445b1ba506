"""Train a Transformer: the same as `scratchlm train transformer`, with the same flags."""

import sys

from scratchlm.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", "transformer", *sys.argv[1:]]))
