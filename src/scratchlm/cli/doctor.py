"""scratchlm doctor: this machine."""

from scratchlm import runtime


def command() -> int:
    """Show this machine as scratchlm sees it, and what it would choose."""
    for name, value in runtime.describe().items():
        print(f"{name:<12} {value}")
    return 0
