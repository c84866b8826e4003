"""The client store: what a checkpoint names is there, what nobody names goes."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedcl.contracts import FedclError
from fedcl.store import Store, read_tensors


def _memory(value):
    return {"ewc/fisher": torch.tensor([float(value)])}


def test_answers_that_were_never_accepted_do_not_push_out_the_accepted_one(tmp_path):
    """Three refused rounds in a row, each from the same start."""
    store = Store(tmp_path)
    store.save(0, "0-0-train", _memory(1), start="")
    for number in range(1, 4):
        assert store.load(0, "0-0-train")["ewc/fisher"].item() == 1
        store.save(0, f"0-{number}-train", _memory(9), start="0-0-train")
    assert store.load(0, "0-0-train")["ewc/fisher"].item() == 1


def test_exactly_the_named_versions_are_written_and_kept(tmp_path):
    store = Store(tmp_path)
    store.save(0, "a", _memory(1), start="")
    store.save(0, "b", _memory(2), start="a")
    store.write({0: "a"})  # "b" was refused
    assert [file.stem for file in tmp_path.glob("0/*")] == ["a"]
    store.save(0, "c", _memory(3), start="a")
    store.write({0: "c"})
    store.prune([{0: "a"}, {0: "c"}])
    assert {file.stem for file in tmp_path.glob("0/*")} == {"a", "c"}
    store.prune([{0: "c"}])
    assert {file.stem for file in tmp_path.glob("0/*")} == {"c"}
    again = Store(tmp_path)
    again.forget()
    assert again.load(0, "c")["ewc/fisher"].item() == 3
    with pytest.raises(FedclError, match="no memory of version 'a'"):
        again.load(0, "a")


def test_a_damaged_file_is_written_anew(tmp_path):
    store = Store(tmp_path)
    store.save(0, "a", _memory(1), start="")
    store.write({0: "a"})
    (tmp_path / "0" / "a.safetensors").write_bytes(b"cut")
    again = Store(tmp_path)
    again.forget()
    with pytest.raises(FedclError, match="damaged"):
        again.load(0, "a")
    again.save(0, "a", _memory(1), start="")
    again.write({0: "a"})
    third = Store(tmp_path)
    assert third.load(0, "a")["ewc/fisher"].item() == 1


def test_no_room_is_a_clear_error(tmp_path):
    (tmp_path / "0").write_text("a file where the folder should be")
    store = Store(tmp_path)
    store.save(0, "a", _memory(1), start="")
    with pytest.raises(FedclError, match="make room"):
        store.write({0: "a"})


def test_what_has_no_room_in_memory_is_on_disk(tmp_path):
    """Three clients of 4 bytes a version, and room for two versions."""
    store = Store(tmp_path, room=8)
    for client in range(3):
        store.save(client, "a", _memory(client), start="")
    assert [file.parent.name for file in sorted(tmp_path.glob("*/*"))] == ["0"]
    store.save(0, "b", _memory(7), start="a")  # what it starts from is on disk already
    assert store.load(0, "a")["ewc/fisher"].item() == 0
    assert [store.load(client, "a")["ewc/fisher"].item() for client in (1, 2)] == [1, 2]
    store.write({0: "b", 1: "a", 2: "a"})
    store.prune([{0: "b", 1: "a", 2: "a"}] * 2)
    assert {str(file.relative_to(tmp_path)) for file in tmp_path.glob("*/*")} == {
        f"{name}.safetensors" for name in ("0/b", "1/a", "2/a")
    }
    assert store.load(0, "b")["ewc/fisher"].item() == 7


def test_tensors_of_a_file_lie_as_fresh_ones_do(tmp_path):
    """On some processors a product with an operand that lies otherwise is rounded otherwise."""
    odd = {name: torch.arange(float(size)) for name, size in zip("abcdef", (1, 2, 3, 5, 7, 9), strict=True)}
    save_file(odd, tmp_path / "odd.safetensors")
    assert any(value.data_ptr() % 16 for value in load_file(tmp_path / "odd.safetensors").values())
    found = read_tensors(tmp_path / "odd.safetensors")
    assert all(value.data_ptr() % 16 == 0 for value in found.values())
    assert all(torch.equal(found[name], value) for name, value in odd.items())
