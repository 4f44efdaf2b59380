"""Scratch and publishing: whole or not at all, and never another run's work."""

import os

import pytest
import torch

from stages import files
from stages.errors import UserError


def test_a_folder_is_replaced_whole(tmp_path):
    for name, there in (("new", "a"), ("place", "b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / there).write_text(there)
    files.publish(tmp_path / "new", tmp_path / "place")
    assert [f.name for f in (tmp_path / "place").iterdir()] == ["a"]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["place"]


def test_a_place_is_made(tmp_path):
    (tmp_path / "new").mkdir()
    files.publish(tmp_path / "new", tmp_path / "deep" / "place")
    assert (tmp_path / "deep" / "place").is_dir()


def test_scratch_is_found_again_by_the_same_run_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data.txt"
    data.write_text("one")
    first = files.scratch("sft", {"lr": 1}, {"data": data})
    assert files.scratch("sft", {"lr": 1}, {"data": data}) == first
    assert files.scratch("sft", {"lr": 2}, {"data": data}) != first
    assert files.scratch("reward", {"lr": 1}, {"data": data}) != first
    data.write_text("two")
    assert files.scratch("sft", {"lr": 1}, {"data": data}) != first


def test_the_digest_of_a_folder_sees_names_and_content(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a").write_text("1")
    before = files.digest(folder)
    os.rename(folder / "a", folder / "b")
    assert files.digest(folder) != before
    os.rename(folder / "b", folder / "a")
    assert files.digest(folder) == before


def test_a_large_file_is_read_once_and_again_when_it_changes(tmp_path):
    """Its size and time stand for its content: another file of the same is not told apart, one of another size is."""
    large, half = tmp_path / "large", files.LARGE // 2
    found = []
    for content, time in ((b"a" * half * 2, 1), (b"b" * half * 2, 2), (b"c" * half * 2, 2), (b"c" * half * 3, 2)):
        large.write_bytes(content)
        os.utime(large, ns=(time, time))
        found.append(files.digest(large))
    assert found[1] == found[2]
    assert len(set(found)) == 3


def test_tensors_come_back_with_their_facts(tmp_path):
    files.save_tensors(tmp_path / "t.safetensors", {"x": torch.arange(3.0)}, {"step": 7})
    tensors, facts = files.load_tensors(tmp_path / "t.safetensors")
    assert tensors["x"].tolist() == [0.0, 1.0, 2.0]
    assert facts == {"step": 7}
    assert [f.name for f in tmp_path.iterdir()] == ["t.safetensors"]


@pytest.mark.parametrize("content", [b"", b"not tensors", b"\x80\x04pickle"])
def test_a_corrupt_file_is_one_line(tmp_path, content):
    (tmp_path / "t.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="not a safetensors file"):
        files.load_tensors(tmp_path / "t.safetensors")


def test_a_missing_input_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match="dvc repro"):
        files.digest(tmp_path / "nothing")
