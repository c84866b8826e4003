"""What the config's types cannot see: whether the plug-ins that it names exist, with the options given."""

from __future__ import annotations

import importlib.util
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fedcl import plugins
from fedcl.config import Config
from fedcl.explain import ConfigError, expected, guess

Tree = Mapping[str, Any]


def check(tree: Tree) -> list[ConfigError]:
    """Mistakes in names and options; what is not of the right type is left to the types.

    Plug-ins are imported only where options are given for them.
    """
    return [
        *_names(tree),
        *_methods(tree),
        *_rules(tree),
        *_compression(tree),
        *_mechanisms(tree),
        *_sections(tree),
        *_inference(tree),
        *_device(tree),
        *_own(tree),
        *_runtime(tree),
        *_trackers(tree),
    ]


def _names(tree: Tree) -> Iterator[ConfigError]:
    named = [("methods", "method", name) for name in plugins.split(_text(tree, "method"))]
    named += [("datasets", "data.name", _base(name)) for name in _text(tree, "data.name").split("+")]
    named += [("models", "model.name", _text(tree, "model.name"))]
    named += [("aggregators", "federation.aggregator", _text(tree, "federation.aggregator"))]
    if (merger := _text(tree, "federation.merger")) not in ("auto", *plugins.names("aggregators")):
        named += [("mergers", "federation.merger", merger)]
    if (growth := _text(tree, "model.growth")) != "none":
        named += [("growth", "model.growth", name) for name in plugins.split(growth)]
    if (compress := _text(tree, "federation.compress")) != "none":
        named += [("compression", "federation.compress", compress)]
    if (mechanism := _text(tree, "privacy.mechanism")) != "none":
        named += [("privacy", "privacy.mechanism", name) for name in plugins.split(mechanism)]
    for kind, key, name in named:
        try:
            plugins.check(kind, name)
        except plugins.UnknownPlugin as error:
            yield ConfigError(key, _get(tree, key), str(error))


def _methods(tree: Tree) -> Iterator[ConfigError]:
    """Each method's options, and then whether the methods go together."""
    used, given = plugins.split(_text(tree, "method")), _table(tree, "methods")
    growing = list(_tables(tree, "growth"))
    yield from growing
    grows = _table(tree, "growth") or _text(tree, "model.growth") != "none"
    usual = not given and _text(tree, "method") == Config().method and not grows
    sound = not usual and all(_load("methods", name) for name in used)
    for name, options in given.items():
        plugin = _load("methods", name)
        wrong = []
        if name not in used and sound:
            why = f"options of a method that is not used: method is {_text(tree, 'method')!r}"
            wrong = [ConfigError(f"methods.{name}", None, why)]
        elif name in used and plugin is not None and isinstance(options, Mapping):
            wrong = list(_options(f"methods.{name}", name, [plugin], options, skip=0))
        yield from wrong
        sound = sound and not wrong
    if sound and not growing:
        yield from _together(tree)


def _tables(tree: Tree, kind: str) -> Iterator[ConfigError]:
    """The options of each plug-in of a kind that has a table."""
    for name, options in _table(tree, kind).items():
        if (plugin := _load(kind, name)) and isinstance(options, Mapping):  # else the types say so
            yield from _options(f"{kind}.{name}", name, [plugin], options, skip=0)


def _rules(tree: Tree) -> Iterator[ConfigError]:
    """The options of the rules that merge, and then whether they can work."""
    wrong = [error for kind in ("aggregators", "mergers") for error in _tables(tree, kind)]
    yield from wrong
    rules = [_text(tree, f"federation.{rule}") for rule in ("aggregator", "merger")]
    usual = [Config().federation.aggregator, Config().federation.merger]
    if not wrong and (rules != usual or _table(tree, "aggregators") or _table(tree, "mergers")):
        from fedcl import merge
        from fedcl.contracts import FedclError

        try:
            merge.rules(Config.model_validate(dict(tree)))
        except FedclError as error:
            yield _said(error, "federation.merger", None)
        except (ValidationError, plugins.UnknownPlugin):
            return  # said above


def _compression(tree: Tree) -> Iterator[ConfigError]:
    """The options of how updates travel."""
    yield from _chosen(tree, "federation.compress", "compression", "compression", "compression")


def _mechanisms(tree: Tree) -> Iterator[ConfigError]:
    """The options of privacy mechanisms, and whether they go together with the rest."""
    yield from _chosen(tree, "privacy.mechanism", "mechanisms", "privacy", "privacy")


def _chosen(tree: Tree, key: str, table: str, kind: str, module: str) -> Iterator[ConfigError]:
    """The options of plug-ins that a key names, if any, and then whether the module can build them."""
    name = _text(tree, key)
    used = [] if name == "none" else plugins.split(name)
    sound = all(_load(kind, each) for each in used)
    for each, options in _table(tree, table).items():
        plugin, wrong = _load(kind, each), []
        if each not in used:
            why = f"options of a rule that is not used: {key} is {name!r}"
            wrong = [ConfigError(f"{table}.{each}", None, why)]
        elif plugin is not None and isinstance(options, Mapping):
            wrong = list(_options(f"{table}.{each}", each, [plugin], options, skip=0))
        yield from wrong
        sound = sound and not wrong
    if sound and used:
        from fedcl.contracts import FedclError

        try:
            importlib.import_module(f"fedcl.{module}").build(Config.model_validate(dict(tree)))
        except FedclError as error:
            yield _said(error, key, name)
        except (ValidationError, plugins.UnknownPlugin):
            return  # said above


def _together(tree: Tree) -> Iterator[ConfigError]:
    from fedcl import methods
    from fedcl.contracts import FedclError

    try:
        methods.build(Config.model_validate(dict(tree)))
    except FedclError as error:
        key = "model.growth" if str(error).startswith("growth ") else "method"
        yield _said(error, key, _get(tree, key))
    except (ValidationError, plugins.UnknownPlugin):
        return  # said of the key that is wrong


def _said(error: Exception, key: str, value: Any) -> ConfigError:
    """A plug-in's complaint: of the option that it names ("methods.ewc: strength = -1 must be ≥ 0"), or of `key`."""
    where, _, why = str(error).partition(": ")
    named = "." in where and " " not in where
    return ConfigError(where, None, why) if named else ConfigError(key, value, str(error))


def _sections(tree: Tree) -> Iterator[ConfigError]:
    """The options of the trunk and of the data sets."""
    for section, kind in (("model", "models"), ("data", "datasets")):
        options = _table(tree, f"{section}.options")
        names = _text(tree, f"{section}.name").split("+")
        loaded = [_load(kind, _base(name)) for name in names] if options else []
        if found := [plugin for plugin in loaded if plugin]:
            yield from _options(f"{section}.options", "+".join(names), found, options, skip=1)


def _inference(tree: Tree) -> Iterator[ConfigError]:
    rule = _text(tree, "model.infer")
    if rule == Config().model.infer:
        return
    from fedcl import infer
    from fedcl.contracts import FedclError

    try:
        infer.resolve(rule)
    except FedclError as error:
        yield ConfigError("model.infer", rule, str(error).partition(": ")[2] + guess(rule, infer.RULES))


def _device(tree: Tree) -> Iterator[ConfigError]:
    name, names, bf16 = (_text(tree, f"run.{key}") for key in ("device", "devices", "precision"))
    if names and _text(tree, "run.runtime") not in ("processes", "ray"):
        yield ConfigError("run.devices", names, "is for the runtimes processes and ray; elsewhere it is run.device")
    elif names:
        from fedcl.contracts import FedclError
        from fedcl.runtime import placement

        try:
            placement.parse(names, placement.present())
        except FedclError as error:
            yield ConfigError("run.devices", names, str(error).partition(": ")[2])
    if name == Config().run.device:
        return
    import torch

    try:
        if torch.empty(0, device=name).is_meta:
            raise RuntimeError("it holds no values")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).partition("\n")[0]
        yield ConfigError("run.device", name, f"cannot be used here ({why}); `fedcl doctor` names the devices")
        return
    if bf16 == "bf16" and name.startswith("cuda") and not torch.cuda.is_bf16_supported(including_emulation=False):
        yield ConfigError("run.precision", bf16, f"{name} has no bfloat16; take float32")


def _runtime(tree: Tree) -> Iterator[ConfigError]:
    if _text(tree, "run.runtime") == "ray" and importlib.util.find_spec("ray") is None:
        yield ConfigError("run.runtime", "ray", "needs Ray; pip install 'fedcl[ray]'")


def _trackers(tree: Tree) -> Iterator[ConfigError]:
    """Whether the trackers are there, with what they need, and have these options."""
    named = _get(tree, "run.track")
    for name in named if isinstance(named, list) else []:
        from fedcl import tracking
        from fedcl.contracts import FedclError

        try:
            tracking.check(Config.model_validate({"run": {"track": [name]}}))
        except (FedclError, ValidationError) as error:
            yield ConfigError("run.track", name, str(error).removeprefix("run.track: "))
    for name, options in _table(tree, "trackers").items():
        if (plugin := _load("trackers", name)) and isinstance(options, Mapping):
            yield from _options(f"trackers.{name}", name, [plugin], options, skip=1)


def _own(tree: Tree) -> Iterator[ConfigError]:
    if not _get(tree, "data.own"):
        return
    if _text(tree, "run.runtime") != "superlink":
        yield ConfigError("data.own", True, 'is for run.runtime = "superlink"; here the data are at hand')
    if _get(tree, "partition.noisy"):
        yield ConfigError("partition.noisy", _get(tree, "partition.noisy"), "is for simulations; these data are real")
    if _text(tree, "federation.kind") in ("central", "joint"):
        yield ConfigError("federation.kind", _text(tree, "federation.kind"), "pools data, which data.own forbids")


def _options(key: str, name: str, found: list[Callable[..., Any]], given: Tree, skip: int) -> Iterator[ConfigError]:
    """Options that the plug-ins do not have, and values of the wrong type."""
    hints: dict[str, Any] = {}
    for plugin in found:
        own = typing.get_type_hints(plugin)
        hints |= {option: own.get(option, Any) for option in plugins.options(plugin, skip)}
    hints.pop("variant", None)
    for option, value in given.items():
        if option not in hints:
            has = f"{name} has {', '.join(hints) or 'none'}"
            yield ConfigError(f"{key}.{option}", value, f"is no option{guess(option, hints) or f'; {has}'}")
            continue
        try:
            TypeAdapter(hints[option]).validate_python(value)
        except ValidationError:
            yield ConfigError(f"{key}.{option}", value, f"must be {expected(hints[option])}")


def _load(kind: str, name: str) -> Callable[..., Any] | None:
    """A plug-in, or None where there is none of that name, which `_names` says."""
    try:
        return plugins.load(kind, name)
    except plugins.UnknownPlugin:
        return None


def _base(name: str) -> str:
    """The data set of `medmnist:bloodmnist`; somebody's own `module:function` stays as it is."""
    base, colon, _ = name.partition(":")
    own = colon and base and ("." in base or importlib.util.find_spec(base) is not None)
    return name if own else base


def _get(tree: Tree, key: str) -> Any:
    """The value at a dotted key: the tree's, or the default."""
    node: Any = tree
    default: Any = Config()
    for name in key.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
        default = getattr(default, name)
    return default if node is None else node


def _text(tree: Tree, key: str) -> str:
    return str(_get(tree, key))


def _table(tree: Tree, key: str) -> Tree:
    value = _get(tree, key)
    return value if isinstance(value, Mapping) else {}
