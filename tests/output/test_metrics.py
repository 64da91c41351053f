import json

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
