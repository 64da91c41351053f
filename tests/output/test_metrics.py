import json

import pytest

from lora_kit.output.metrics import new_records, read_metrics

START = {"event": "start", "total_updates": 4}


def test_read_metrics(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == (None, [])
    lines = [START, {"update": 0, "loss": 1.0}, {"update": 1, "loss": 0.5}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"update": 2, "lo')
    assert read_metrics(path) == (START, lines[1:])  # a run that is writing leaves half a line
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"event": "end", "updates": 2}]))
    assert read_metrics(path) == (START, lines[1:])


def test_new_records_go_on_where_the_last_whole_line_ended(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert new_records(path, 0) == ([], 0) and new_records(path, 7) == ([], 7)
    path.write_bytes(b'{"a": 1}\n{"b"')
    records, place = new_records(path)
    assert (records, place) == ([{"a": 1}], 9)
    assert new_records(path, place) == ([], 9)
    path.write_bytes('{"a": 1}\n{"b": "ü"}\n'.encode())
    assert new_records(path, place) == ([{"b": "ü"}], 9 + 12)


@pytest.mark.parametrize("line", ['{"update": 1, "lo', '"text"', "7", "[" * 100_000, "\0"], ids=range(5))
@pytest.mark.parametrize("place", [0, 14])
def test_a_damaged_line_is_named(place, line, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"update": 0}\n{"update": 1}\n' + line + "\n")
    after = f"line 2 after byte {place}" if place else "line 3"
    with pytest.raises(ValueError, match=f"^{path}: {after} is damaged .*; take it out$"):
        new_records(path, place)
