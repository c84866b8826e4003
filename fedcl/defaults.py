"""A config with every option written out, so that a run's config.toml says all that decided its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter
from typing import Any

from fedcl import plugins
from fedcl.config import Config


def fill(config: Config) -> Config:
    """The config with the defaults of its method's, trunk's and data set's own options.

    Two configs that mean the same become equal, and so do their run directories. Nothing is checked here.
    """
    methods = {
        name: _options(plugins.load("methods", name), config.methods.get(name, {}))
        for name in plugins.split(config.method)
    }
    changes: dict[str, Any] = {"methods": methods | {k: v for k, v in config.methods.items() if k not in methods}}
    model = _options(plugins.load("models", config.model.name), config.model.options, skip=1)
    masks: str = config.model.masks
    if masks == "auto":  # at most one method needs any
        wanted = {getattr(plugins.load("methods", name), "masks", "none") for name in plugins.split(config.method)} - {
            "none"
        }
        masks = wanted.pop() if wanted else "none"
    changes["model"] = config.model.model_copy(update={"options": model, "masks": masks})
    if "+" not in config.data.name:
        plugin = plugins.load("datasets", config.data.name.partition(":")[0])
        data = _options(plugin, config.data.options, skip=1)
        changes["data"] = config.data.model_copy(update={"options": data})
    return config.model_copy(update=changes)


def _options(plugin: Any, given: Mapping[str, Any], skip: int = 0) -> dict[str, Any]:
    known = plugins.options(plugin, skip)
    own = {
        name: list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        for name, parameter in known.items()
        # TOML has no null; `variant` is the second half of the data set's name.
        if parameter.default is not Parameter.empty and parameter.default is not None and name != "variant"
    }
    return own | dict(given)
