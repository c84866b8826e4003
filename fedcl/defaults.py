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
    rules = [] if config.model.growth == "none" else plugins.split(config.model.growth)
    growth = {name: _options(plugins.load("growth", name), config.growth.get(name, {})) for name in rules}
    changes: dict[str, Any] = {"growth": dict(config.growth) | growth}
    changes |= {"methods": methods | {k: v for k, v in config.methods.items() if k not in methods}}
    model = _options(plugins.load("models", config.model.name), config.model.options, skip=1)
    masks: str = config.model.masks
    if masks == "auto":  # at most one method needs any
        parts = [plugins.load("methods", name) for name in plugins.split(config.method)]
        parts += [plugins.load("growth", name) for name in rules] if config.model.heads == "task" else []
        wanted = {getattr(part, "masks", "none") for part in parts} - {"none"}
        masks = wanted.pop() if wanted else "none"
    changes |= _rules(config) | _compression(config) | _mechanisms(config)
    infer, mechanism = config.model.infer, config.privacy.mechanism
    mechanisms = [] if mechanism == "none" else plugins.split(mechanism)
    if infer == "auto" and mechanisms:
        infer = "entropy"  # needs nothing of the hospitals
    changes["model"] = config.model.model_copy(update={"options": model, "masks": masks, "infer": infer})
    if "+" not in config.data.name:
        base = config.data.name.partition(":")[0]  # of a variant; somebody's own is `module:build`
        plugin = plugins.load("datasets", base if base in plugins.names("datasets") else config.data.name)
        data = _options(plugin, config.data.options, skip=1)
        changes["data"] = config.data.model_copy(update={"options": data})
    return config.model_copy(update=changes)


def _rules(config: Config) -> dict[str, Any]:
    """The rules that merge: `auto` resolved, and their options."""
    aggregator, merger = config.federation.aggregator, config.federation.merger
    plugin = plugins.load("aggregators", aggregator)
    if merger == "auto" and any(
        getattr(plugins.load("methods", n), "personal", False) for n in plugins.split(config.method)
    ):
        merger = "personal"
    kind, merger = plugins.merger(aggregator, merger)
    used: dict[str, dict[str, Any]] = {"aggregators": {aggregator: plugin}, "mergers": {}}
    used[kind][merger] = plugins.load(kind, merger)
    filled: dict[str, Any] = {"federation": config.federation.model_copy(update={"merger": merger})}
    for kind, found in used.items():
        given = getattr(config, kind)
        own = {name: _options(rule, given.get(name, {})) for name, rule in found.items()}
        filled[kind] = {name: options for name, options in own.items() if options}
    return filled


def _compression(config: Config) -> dict[str, Any]:
    """The options of how updates travel, beside any that are a mistake."""
    name = config.federation.compress
    if name == "none":
        return {}
    own = _options(plugins.load("compression", name), config.compression.get(name, {}))
    return {"compression": dict(config.compression) | ({name: own} if own else {})}


def _mechanisms(config: Config) -> dict[str, Any]:
    """The options of privacy mechanisms; where one protects records, what finds a task must not read them."""
    if config.privacy.mechanism == "none":
        return {}
    parts = {name: plugins.load("privacy", name) for name in plugins.split(config.privacy.mechanism)}
    own = {name: _options(part, config.mechanisms.get(name, {})) for name, part in parts.items()}
    return {"mechanisms": dict(config.mechanisms) | own}


def _options(plugin: Any, given: Mapping[str, Any], skip: int = 0) -> dict[str, Any]:
    known = plugins.options(plugin, skip)
    own = {
        name: list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        for name, parameter in known.items()
        # TOML has no null; `variant` is the second half of the data set's name.
        if parameter.default is not Parameter.empty and parameter.default is not None and name != "variant"
    }
    return own | dict(given)
