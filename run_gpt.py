"""Train a GPT: the same as `scratchlm train gpt`, with the same flags."""

import sys

from scratchlm.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", "gpt", *sys.argv[1:]]))
