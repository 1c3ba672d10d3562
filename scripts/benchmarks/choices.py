"""Types of command-line options."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection


def some_of(what: str, known: Collection[str], baseline: bool = True) -> Callable[[str], list[str]]:
    """A type: names of ``known``, with commas; the first always takes part if it is what others are compared with."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown {what} {unknown[0]!r}; choose of {', '.join(known)}")
        always = [next(iter(known))] if baseline else []
        return [name for name in known if name in (*always, *names)]

    return parse


def sizes(text: str) -> list[float]:
    """Shares of the training patients, all of them first; 1 always takes part."""
    try:
        shares = {float(word) for word in text.split(",")} | {1.0}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of shares such as 0.25,0.5,1") from error
    if not all(0 < share <= 1 for share in shares):
        raise argparse.ArgumentTypeError("shares are above 0 and at most 1")
    return sorted(shares, reverse=True)


def positive(text: str) -> int:
    """A whole number from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def minutes(text: str) -> float:
    """More than none."""
    try:
        value = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes") from error
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("minutes must be more than 0")
    return value
