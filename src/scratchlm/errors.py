"""The one error for input that a person can mend, and the helper that names the nearest valid word."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: the message names the value and the remedy. The command line prints it and exits with 2."""


def did_you_mean(word: object, options: Iterable[str]) -> str:
    """The end of an error message: the nearest of `options`, or all of them where none is near."""
    options = sorted(options)
    near = difflib.get_close_matches(str(word), options, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"choose from: {', '.join(options)}"
