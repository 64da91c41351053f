"""metrics.jsonl: a line when a run starts, one for each update, one at the end."""

import json
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"


def new_records(path: str | Path, place: int = 0) -> tuple[list[dict[str, Any]], int]:
    """(the records of a file of JSON lines from a byte on, the byte to go on from).

    Only whole lines count: a run that is writing, or was killed, leaves half a line. ([], place) where there is no file. Raises
    ValueError, with the line's number, for one that is no record.
    """
    try:
        with open(path, "rb") as file:
            file.seek(place)
            new = file.read()
    except FileNotFoundError:
        return [], place
    whole, records = new[: new.rfind(b"\n") + 1], []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            records.append(dict(json.loads(line)))
        except (ValueError, TypeError, RecursionError) as error:
            after = f" after byte {place}" if place else ""
            raise ValueError(
                f"{path}: line {number}{after} is damaged ({type(error).__name__} {error}); take it out"
            ) from None
    return records, place + len(whole)


def read_metrics(path: str | Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """(start record, [update records]) of a metrics.jsonl, also while it is being written; (None, []) before it is."""
    start, updates = None, []
    for record in new_records(path)[0]:
        if record.get("event") == "start":
            start, updates = record, []
        elif "update" in record:
            updates.append(record)
    return start, updates
