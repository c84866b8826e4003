"""Nested dicts as TOML. Python reads TOML and does not write it; a config needs little of the format."""

from __future__ import annotations

import json
from typing import Any


def dumps(tree: dict[str, Any]) -> str:
    """Scalars and lists first, then one table per nested dict."""
    return "\n".join(_table(tree, "")).strip() + "\n"


def assignments(tree: dict[str, Any], path: str = "") -> list[str]:
    """Each value with its whole key, as one would type it: `train.rounds=3`."""
    found = []
    for key, value in tree.items():
        name = f"{path}.{quoted(key)}" if path else quoted(key)
        found += assignments(value, name) if isinstance(value, dict) and value else [f"{name}={text(value)}"]
    return found


def _table(tree: dict[str, Any], path: str) -> list[str]:
    lines = [f"{quoted(key)} = {text(value)}" for key, value in tree.items() if not isinstance(value, dict)]
    for key, value in tree.items():
        if isinstance(value, dict):
            name = f"{path}.{quoted(key)}" if path else quoted(key)
            lines += ["", f"[{name}]", *_table(value, name)]
    return lines


def quoted(key: str) -> str:
    """A key as TOML, in quotes where it needs them."""
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else json.dumps(key)


def text(value: Any) -> str:
    """One value as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(text(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(key)} = {text(item)}" for key, item in value.items()) + "}"
    return repr(value)
