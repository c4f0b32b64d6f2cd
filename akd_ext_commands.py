"""Where the commands begin: a word at once, then PyTorch and the rest, which take seconds.

Beside the package and not in it: whoever imports anything below ``akd_ext`` has waited for PyTorch already.
"""

import os
import sys

# Who asks for silence, for a text, or for data gets nothing else.
_NO_WORD = {"-h", "--help", "--quiet", "--json"}


def train() -> int:
    """``akd-train``."""
    _say("akd-train")
    from akd_ext.train.cli import main

    return main()


def reproduce() -> int:
    """``akd-reproduce``."""
    _say("akd-reproduce")
    from akd_ext.reproduce.cli import main

    return main()


def info() -> int:
    """``akd-info``."""
    _say("akd-info")
    from akd_ext.info import main

    return main()


def _say(command: str) -> None:
    """On one process of several, and not into what a program reads."""
    if os.environ.get("RANK", "0") == "0" and _NO_WORD.isdisjoint(sys.argv):
        print(f"{command}: loading PyTorch ...", file=sys.stderr, flush=True)
