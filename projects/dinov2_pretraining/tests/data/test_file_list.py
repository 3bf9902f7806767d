"""Images are found in folders and lists, once each, in a fixed order; mistakes are named."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from data.pictures import write_pictures

from dinov2_pretraining.data.file_list import FileList, find_images


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_a_list_gives_back_its_paths() -> None:
    paths = ["a/b.png", "", "ä/ü.jpg", os.fsdecode(b"bad\xff.png")]
    files = pickle.loads(pickle.dumps(FileList(paths)))
    assert len(files) == 4 and list(files) == paths and files[-1] == paths[-1]
    with pytest.raises(IndexError):
        files[4]
    assert list(FileList([])) == []


def test_nested_folders_are_read_in_order_of_names(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    touch(a / "z.PNG", a / "sub" / "2.jpeg", a / "sub" / "1.tif", a / "notes.txt", b / "x.webp")
    touch(a / ".hidden.png", a / ".cache" / "y.png")
    expected = [a / "z.PNG", a / "sub" / "1.tif", a / "sub" / "2.jpeg", b / "x.webp"]
    assert list(find_images([a, str(b)])) == [str(path) for path in expected]
    assert list(find_images(str(b))) == [str(b / "x.webp")]


def test_images_that_are_reached_twice_count_once(tmp_path: Path) -> None:
    sub = tmp_path / "all" / "sub"
    touch(sub / "1.png")
    (sub / "loop").symlink_to(tmp_path / "all")
    assert len(find_images([tmp_path / "all", sub])) == 1
    assert len(find_images([sub, tmp_path / "all", sub])) == 1


def test_a_list_file_counts_from_its_own_folder(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", 2)
    elsewhere = write_pictures(tmp_path / "elsewhere", 1)[0]
    listed = tmp_path / "list.txt"
    listed.write_text(f"images/001.png\n\n{elsewhere}\nimages/000.png\nimages/001.png\n")
    expected = [tmp_path / "images/001.png", elsewhere, tmp_path / "images/000.png"]
    assert list(find_images(listed)) == [str(path) for path in expected]
    assert len(find_images([listed, tmp_path / "images"])) == 5


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere: there is no such folder or list file"):
        find_images(tmp_path / "nowhere")
    touch(tmp_path / "empty" / "a.xml", tmp_path / "empty" / "b.xml")
    with pytest.raises(FileNotFoundError, match=r"no images; it holds 2 files with \.xml.*\.jpg"):
        find_images(tmp_path / "empty")
    touch(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"x\.png is a file; give folders"):
        find_images(tmp_path / "x.png")
    with pytest.raises(ValueError, match="data is empty"):
        find_images([])
    listed = tmp_path / "list.txt"
    listed.write_text("\n \n")
    with pytest.raises(FileNotFoundError, match="names no images"):
        find_images(listed)
    listed.write_text("a.png\nb.png\n")
    with pytest.raises(FileNotFoundError, match=r"none of the 2 files .*a\.png"):
        find_images(listed)
    listed.write_bytes("ä.png".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        find_images(listed)
