"""From defaults, file, --set and flags to a config; and all mistakes at once."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from smoke.running import Fedcl

from fedcl import settings
from fedcl.cli.flags import FLAGS
from fedcl.cli.simulate import Peer
from fedcl.config import Config
from fedcl.metrics import COMPAT
from fedcl.settings import ConfigErrors
from fedcl.toml import dumps


def errors(*sets: str, file: Path | None = None, **flags: str) -> dict[str, str]:
    """Key → message."""
    with pytest.raises(ConfigErrors) as caught:
        settings.resolve(file, sets, {key.replace("__", "."): value for key, value in flags.items()})
    return {error.key: error.message for error in caught.value.errors}


def flat(tree: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Dotted key → value."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{path}.{name}".lstrip(".")
        found |= flat(value, key) if isinstance(value, dict) and value else {key: value}
    return found


def test_nothing_given_is_the_default() -> None:
    assert settings.resolve() == Config()


def test_later_ones_win(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("seed = 1\n[train]\nrounds = 1\nepochs = 1\nlr = 1.0\n[stream]\ntasks = 2\n")
    config = settings.resolve(file, ["train.rounds=2", "train.epochs=2"], {"train.epochs": "3"})
    assert (config.train.lr, config.train.rounds, config.train.epochs) == (1.0, 2, 3)
    assert (config.seed, config.stream.tasks) == (1, 2)


def test_a_plain_key_stands_for_one_with_a_plus() -> None:
    config = settings.resolve(None, ["method=der++", "methods.derpp.alpha=0.25"], {})
    assert config.methods == {"der++": {"alpha": 0.25}}
    assert settings.resolve(None, ["method=derpp", "methods.derpp.alpha=0.25"], {}).methods == {
        "derpp": {"alpha": 0.25}
    }


def test_the_later_set_wins() -> None:
    assert settings.resolve(None, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("seed=3", "seed", 3),
        ("data.name=medmnist:bloodmnist", "data.name", "medmnist:bloodmnist"),
        ("run.name=5", "run.name", "5"),  # text, though it looks like a number
        ('run.name="a b"', "run.name", "a b"),
        ("run.name = a=b", "run.name", "a=b"),
        ("stream.classes=[[0, 1], [2]]", "stream.classes", [[0, 1], [2]]),
        ("data.normalize={mean = 0.1, std = 0.3}", "data.normalize", {"mean": 0.1, "std": 0.3}),
        ("model.options.hidden=[9]", "model.options", {"hidden": [9]}),
        ("data.own=false", "data.own", False),
        ("methods.ewc.strength=300", "methods", {"ewc": {"strength": 300}}),
    ],
)
def test_a_set_is_toml_or_else_text(text: str, key: str, value: object) -> None:
    found: object = settings.resolve(None, [text])
    for name in key.split("."):
        found = getattr(found, name)
    assert found == value


def test_a_written_config_reads_back(tmp_path: Path) -> None:
    config = settings.resolve(None, ["methods.ewc.strength=1", "data.val=0.2"], {"method": "ewc"})
    (tmp_path / "config.toml").write_text(dumps(config.model_dump()))
    assert settings.resolve(tmp_path / "config.toml") == config


def test_all_mistakes_come_at_once(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('rounds = 3\n[federation]\nclient = 3\nkind = "fed"\n[model]\nname = "mpl"\n')
    found = errors("train.lr=fast", "nonsense", file=file, federation__clients="0", method="ewcc")
    assert found == {
        "rounds": "there is no such setting; did you mean train.rounds?",
        "federation.client": "there is no such setting; did you mean federation.clients?",
        "federation.kind": "must be one of federated, local, central, joint",
        "federation.clients": "must be a whole number ≥ 1",
        "train.lr": "must be a number > 0",
        "nonsense": "has no value; write --set section.key=value",
        "model.name": found["model.name"],
        "method": found["method"],
    }
    assert "did you mean 'mlp'?" in found["model.name"]
    assert "did you mean 'ewc'?" in found["method"]


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("federation.fraction=2", "federation.fraction", "must be a number > 0 and ≤ 1"),
        ("partition.name=dirichlett", "partition.name", "did you mean 'dirichlet'?"),
        ("stream.tasks=2.5", "stream.tasks", "must be a whole number ≥ 1"),
        ("model.head_bias=often", "model.head_bias", "must be true or false"),
        ("stream.classes=3", "stream.classes", "must be a list, each a list, each a whole number"),
        ("data.normalize=min", "data.normalize", "must be one of auto, none, train, client or a table"),
        ("data=mnist", "data", "is a section"),
        ("train.seed=1", "train.seed", "did you mean seed?"),
        ("zzz=1", "zzz", "the top level has seed, method"),
        ("model.xyz=1", "model.xyz", "[model] has name, options"),
        ("data.name=mnits", "data.name", "did you mean 'mnist'?"),
        ("data.name=digits+medmnits:bloodmnist", "data.name", "did you mean 'medmnist'?"),
        ("federation.aggregator=fedav", "federation.aggregator", "did you mean 'fedavg'?"),
        ("federation.merger=heavy", "federation.merger", "there are: "),
        ("model.infer=entropi", "model.infer", "did you mean 'entropy'?"),
        ("methods.ewc.strenght=1", "methods.ewc.strenght", "did you mean 'strength'?"),
        ("methods.ewc.strength=strong", "methods.ewc.strength", "must be a number"),
        ("methods.ewc.strength=-1", "methods.ewc", "strength = -1 must be ≥ 0"),
        ("methods.finetune.x=1", "methods.finetune", "a method that is not used"),
        ("method=ewc+ewc", "method", "twice"),
        ("model.options.hiden=[3]", "model.options.hiden", "did you mean 'hidden'?"),
        ("model.options.hidden=wide", "model.options.hidden", "must be a list, each a whole number"),
        ("run.device=gpu", "run.device", "fedcl doctor"),
        ("run.device=meta:x", "run.device", "fedcl doctor"),
        ("data.options.size=3", "data.options.size", "digits has none"),
    ],
)
def test_a_mistake_names_the_way_out(text: str, key: str, message: str) -> None:
    found = errors(text)
    assert list(found) == [key]
    assert message in found[key]


def test_somebodys_own_plugins_are_not_mistakes() -> None:
    own = settings.resolve(None, ["data.name=my_package.data", "model.name=my_package.trunk:build"])
    assert own.data.name == "my_package.data"


@pytest.mark.parametrize("content", [None, b"seed = ", b"\xff"])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "a.toml"
    if content is not None:
        file.write_bytes(content)
    found = errors(file=file, seed="-1")
    assert list(found) == ["--config", "seed"]


def test_the_command_tells_them_all_and_exits_2(fedcl: Fedcl, tmp_path: Path) -> None:
    result = fedcl("simulate", "--clients", "0", "--set", "train.lr=-1", "--method", "ewcc")
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert sorted(line.partition(":")[0] for line in lines) == [
        "federation.clients (--clients) = 0",
        "method (--method) = 'ewcc'",
        "train.lr = -1",
    ]
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_the_documented_file_is_the_default_config() -> None:
    text = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    block = text.partition("```toml\n")[2].partition("```")[0]
    assert Config.model_validate(tomllib.loads(block)) == Config()
    assert flat(tomllib.loads(block)).keys() == flat(Config().model_dump()).keys()


def test_flags_state_the_defaults_of_the_config() -> None:
    defaults = flat(Config().model_dump())
    for flag in FLAGS:
        if defaults[flag.key] != "":  # that is made of others
            assert str(defaults[flag.key]) == flag.default, flag.name


def test_every_peer_can_be_named() -> None:
    assert {peer.value for peer in Peer} == set(COMPAT)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--devices", "cuda:7", "--runtime", "processes"), r"run\.devices.*'?cuda:7'?.*this machine has cpu"),
        (("--devices", "cpu"), "for the runtimes processes and ray"),
        (("--set", "data.own=true"), "superlink"),
        (("--set", "data.own=true", "--runtime", "superlink", "--federation", "central"), "pools data"),
        (("--runtime", "cluster"), "inline.*processes.*ray.*superlink"),
    ],
)
def test_runtimes_that_cannot_be_are_wrong_settings(
    fedcl: Fedcl, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    result = fedcl("simulate", *words, "--output", tmp_path / "run")
    assert result.exit_code == 2
    assert re.search(said, result.stderr)
    assert not (tmp_path / "run").exists()
