"""Results of long experiments: each point is saved as it ends, and a finished one is never run again."""

from __future__ import annotations

import datetime as dt
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

RESULTS = Path(__file__).parent / "results"


class Points:
    """A JSON file of points, each known by its settings.

    Args:
        name: the benchmark's; the file is ``benchmarks/results/<name>.json``.
        environment: what the figures depend on beside the settings.
    """

    def __init__(self, name: str, environment: dict[str, str]) -> None:
        self._path = RESULTS / f"{name}.json"
        self._content: dict[str, Any] = {
            "command": f"python -m benchmarks.{name}",
            "environment": environment,
            "points": [],
        }
        self._read()

    def _read(self) -> None:
        if self._path.exists():
            self._content = json.loads(self._path.read_text())

    def get(self, settings: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The measurements of a point, taken from the file or made now.

        Args:
            settings: JSON-like; two points of the same settings are one.
            measure: makes the measurements, JSON-like too.
        """
        for point in self._content["points"]:
            if point["settings"] == settings:
                result: dict[str, Any] = point["result"]
                return result
        sys.stderr.write(f"{dt.datetime.now(dt.UTC):%H:%M:%S} {settings}\n")
        result = measure()
        today = dt.datetime.now(dt.UTC).date().isoformat()
        RESULTS.mkdir(exist_ok=True)
        with FileLock(self._path.with_suffix(".lock")):
            self._read()  # another process may have saved points meanwhile
            self._content["points"].append({"settings": settings, "date": today, "result": result})
            self._save()
        return result

    def _save(self) -> None:
        # One point a line, written aside and moved into place: an interruption leaves the old file whole.
        points = ",\n".join(json.dumps(point) for point in self._content["points"])
        head = json.dumps({key: value for key, value in self._content.items() if key != "points"}, indent=1)[:-2]
        aside = self._path.with_suffix(".part")
        aside.write_text(f'{head},\n "points": [\n{points}\n]}}\n')
        aside.replace(self._path)
