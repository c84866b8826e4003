"""Which runs a comparison has."""

import pytest

from fedcl import settings
from fedcl.comparison import grid
from fedcl.comparison.grid import Axis


def test_a_varied_key_is_read_at_its_outer_commas():
    assert grid.parse("method=finetune, ewc,der++") == Axis("method", ("finetune", "ewc", "der++"))
    assert grid.parse("stream.classes=[[0,1],[2]],[[0],[1,2]]").values == ("[[0,1],[2]]", "[[0],[1,2]]")
    assert grid.parse('data.augment=["RandomCrop(28, padding=2)"],[]').values == ('["RandomCrop(28, padding=2)"]', "[]")


@pytest.mark.parametrize("text", ["method", "method=", "=a,b", "method=ewc,,l2", "method=ewc,ewc"])
def test_what_is_no_axis_is_refused(text):
    with pytest.raises(ValueError, match="--vary"):
        grid.parse(text)


def test_seeds_are_a_number_or_a_list():
    assert grid.seeds("3") == (0, 1, 2)
    assert grid.seeds("2", first=7) == (7, 8)
    assert grid.seeds("0,3,7") == (0, 3, 7)
    for text in ("0", "-1", "1,1", "a", "1,-2"):
        with pytest.raises(ValueError, match="--seeds"):
            grid.seeds(text)


def test_every_combination_is_there_once_with_every_seed():
    axes = [Axis("method", ("finetune", "ewc")), Axis("partition.alpha", ("0.1", "0.5"))]
    made = grid.build(axes, (0, 1), sets=["train.rounds=2"], flags={"method": "l2", "train.lr": "0.1"})
    assert [(cell.labels, cell.seed) for cell in made.cells] == [
        ((method, alpha), seed) for method in ("finetune", "ewc") for alpha in ("0.1", "0.5") for seed in (0, 1)
    ]
    for cell in made.cells:
        config = cell.config
        assert (config.method, config.seed, config.train.rounds, config.train.lr) == (cell.labels[0], cell.seed, 2, 0.1)
        assert config.partition.alpha == float(cell.labels[1])


def test_what_does_not_go_together_is_one_combination_s_own_error():
    made = grid.build([Axis("model.heads", ("task", "shared"))], (0,), sets=["model.growth=den", "method=finetune"])
    good, bad = made.cells
    assert good.config is not None
    assert bad.config is None
    assert "heads" in bad.error


def test_a_mistake_of_all_is_told_at_once_and_the_grid_s_own_keys_cannot_vary():
    with pytest.raises(settings.ConfigErrors):
        grid.build([Axis("method", ("ewc",))], (0,), sets=["train.rounds=none"])
    for key in ("seed", "run.output"):
        with pytest.raises(ValueError, match="itself"):
            grid.build([Axis(key, ("1",))], (0,))
    with pytest.raises(ValueError, match="twice"):
        grid.build([Axis("method", ("ewc",)), Axis("method", ("l2",))], (0,))


def test_more_seeds_are_the_same_grid_and_another_setting_is_another():
    axes = [Axis("method", ("finetune", "ewc"))]
    digest = grid.build(axes, (0,)).digest()
    assert grid.build(axes, (0, 1, 2)).digest() == digest
    assert grid.build(axes, (0,), sets=["train.rounds=3"]).digest() != digest


def test_folders_are_readable_and_never_the_same_for_two_combinations():
    axis = (Axis("method", ()),)
    assert grid.folder(axis, ("ewc",)) == "method=ewc"
    odd = ["a/b", "a_b", "a b", "x" * 300, "x" * 301]
    names = [grid.folder(axis, (label,)) for label in odd]
    assert len(set(names)) == len(odd)
    assert all("/" not in name and len(name) < 140 for name in names)
