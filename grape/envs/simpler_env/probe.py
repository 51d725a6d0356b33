"""What an interpreter has of the original SIMPLER; run as a script by that interpreter.

Standalone: standard library alone, Python 3.8 or newer. Prints JSON, and loads none of what it looks for.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform

NEEDED = ("simpler_env", "mani_skill2_real2sim", "sapien", "numpy")
RECORDED = (*NEEDED, "gymnasium")


def versions() -> dict[str, str]:
    """Versions of Python and of what is installed and changes pictures or physics."""
    found = {"python": platform.python_version()}
    for name in RECORDED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    print(json.dumps({"versions": versions(), "missing": missing}))
