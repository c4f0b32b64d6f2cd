"""Every file of which tests run less than 90 % of the lines stands in docs/coverage.md, with the reason.

coverage run -m pytest && coverage combine && coverage json && python tools/uncovered.py coverage.json
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs/coverage.md"
ENOUGH = 90


def main(report: str) -> int:
    """Print the files below 90 %; 1 if one of them has no reason."""
    reasons = dict(re.findall(r"^\| `(\S+)` \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.M))
    files = json.loads(Path(report).read_text(encoding="utf-8"))["files"]
    low = {name: file["summary"]["percent_covered"] for name, file in files.items()}
    low = {name: share for name, share in sorted(low.items()) if share < ENOUGH}
    for name, share in low.items():
        print(f"{name}  {share:.0f} %  {reasons.get(name, f'no reason in {PAGE.name}')}")
    return int(not low.keys() <= reasons.keys())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
