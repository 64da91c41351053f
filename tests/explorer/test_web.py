"""The explorer behind a web page, without a browser, and how its build keeps what it has fetched and packed."""

import json
import sys
import threading
from pathlib import Path

import pytest

from lora_kit.explorer.web import Page

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import build_explorer


def test_the_address_of_the_pictures_is_there_before_a_start_and_after_it():
    page = Page("abc/atlas/")
    assert page.session.source == "abc/atlas/"
    for address in ("", "rank=8"):
        page.start(address)
        assert page.session.source == "abc/atlas/"


def test_only_what_changed_is_said():
    page = Page()
    page.start()
    changed = json.loads(page.act('{"do": "turn", "name": "rank", "value": 8}'))
    assert set(changed["controls"]) == {"rank"} and changed["address"] == "rank=8"
    assert json.loads(page.act('{"do": "turn", "name": "rank", "value": 8}')) == {}


def test_what_no_reader_can_do():
    with pytest.raises(ValueError, match="do 'view' is unknown; it must be one of turn, type, look"):
        Page().act('{"do": "view"}')


@pytest.mark.parametrize("builds", [1, 2])
def test_builds_at_once_end_with_one_folder(builds, tmp_path):
    meeting = threading.Barrier(builds)

    def make(temporary):
        meeting.wait(60)
        (temporary / "made").mkdir()
        (temporary / "made" / "file").write_text("whole")
        meeting.wait(60)
        return temporary / "made"

    made = []
    threads = [
        threading.Thread(target=lambda: made.append(build_explorer.made_once(tmp_path / "kept" / "it", make)))
        for _ in range(builds)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [tmp_path / "kept" / "it"] * builds
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["it"]
    assert (made[0] / "file").read_text() == "whole"
    assert build_explorer.made_once(made[0], None) == made[0]  # and it is made once


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def make(temporary):
        (temporary / "half").write_text("")
        raise SystemExit("npm pack failed")

    with pytest.raises(SystemExit, match="npm pack failed"):
        build_explorer.made_once(tmp_path / "it", make)
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_another_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(build_explorer, "ROOT", tmp_path)
    monkeypatch.setattr(
        build_explorer, "_run", lambda *words: Path(words[-1], "axe-core-1.tgz").write_bytes(b"another")
    )
    with pytest.raises(SystemExit, match=r"axe-core 1 as npm has it has the integrity sha512-\S+, not sha512-wanted"):
        build_explorer.fetched("axe-core", "1", "sha512-wanted")
    assert list((tmp_path / "build" / "npm").iterdir()) == []
