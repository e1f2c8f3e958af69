"""A model's config.json, as far as trajkit looks at it."""

import json
from collections.abc import Mapping
from typing import Any

from trajkit.errors import InvalidInput
from trajkit.text import shown


def parse_config(content: bytes, where: str) -> dict[str, Any]:
    """The object in a config.json; what its fields hold is not checked.

    Raises:
        InvalidInput: it is not a JSON object.

    >>> parse_config(b'{"vocab_size": 7}', "config.json")
    {'vocab_size': 7}
    """
    try:
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{where}: not a readable JSON file: {shown(error)}") from error
    if not isinstance(config, dict):
        raise InvalidInput(f"{where}: not a JSON object")
    return config


def architectures_of(config: Mapping[str, Any]) -> list[str]:
    """The class names under ``architectures``; none where it holds anything else.

    >>> architectures_of({"architectures": 5}), architectures_of({"architectures": ["A", None]})
    ([], ['A'])
    """
    found = config.get("architectures")
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []
