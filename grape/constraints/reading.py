"""Text to plain data: JSON, or YAML reduced to what JSON can say. Every limit of a file is here."""

from __future__ import annotations

import json
from typing import Any

from grape.errors import ConstraintError


def parse_json(text: str) -> Any:
    """Plain data from JSON text.

    Raises:
        ConstraintError: The text is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConstraintError(f"is not json ({error})") from error
