"""What each model of a comparison may spend: params=1M or trunk=1M, and tokens=5M or time=3m."""

import re
from dataclasses import dataclass

from scratchlm.errors import InputError, did_you_mean

COUNTS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}
NAMES = ("params", "trunk", "tokens", "time")
EXAMPLE = "give it as params=1M,tokens=5M or params=1M,time=3m"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Parameters of each model, and either tokens that it reads in training or seconds that it trains for.

    `trunk`: the parameters are those of the contextual network alone, and what a model has beside it comes on top.
    """

    params: int = 1_000_000
    trunk: bool = False
    tokens: int | None = None
    seconds: float | None = None


def parse_budget(text: str) -> Budget:
    """The budget that a text means. Raises InputError where it is malformed, not above 0, or incomplete."""
    found: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise InputError(f"--budget has {part!r}, which is no name=value; {EXAMPLE}")
        if name not in NAMES:
            raise InputError(f"--budget has no {name!r}: {did_you_mean(name, NAMES)}")
        if name in found:
            raise InputError(f"--budget names {name} twice; {EXAMPLE}")
        found[name] = _number(name, value)
    if "params" in found and "trunk" in found:
        raise InputError("--budget has params, which count all of a model, and trunk, which count a part: give one")
    if "tokens" in found and "time" in found:
        raise InputError("--budget has tokens and time, and one of them would be broken: give one")
    if "tokens" not in found and "time" not in found:
        raise InputError(f"--budget {text!r} does not say how long to train; {EXAMPLE}")
    return Budget(
        params=round(found.get("trunk", found.get("params", Budget.params))),
        trunk="trunk" in found,
        tokens=round(found["tokens"]) if "tokens" in found else None,
        seconds=found.get("time"),
    )


def _number(name: str, text: str) -> float:
    units = SECONDS if name == "time" else COUNTS
    match = re.fullmatch(r"(-?[0-9]{1,12}(?:\.[0-9]{1,12})?)([a-z]?)", text.lower(), re.ASCII)
    if match is None or match[2] not in units:
        raise InputError(
            f"--budget {name} is {text!r}; it must be a number, which {', '.join(filter(None, units))} may follow"
        )
    value = float(match[1]) * units[match[2]]
    if value <= 0 or (name != "time" and value < 1):
        raise InputError(f"--budget {name} is {text}; it must be {'above 0' if name == 'time' else 'at least 1'}")
    return value
