"""Train an Elman network: the same as `scratchlm train rnn`, with the same flags."""

import sys

from scratchlm.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", "rnn", *sys.argv[1:]]))
