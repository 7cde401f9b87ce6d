"""The page of costs is filled in from measurements, by arithmetic that a line can repeat."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEED = {
    "shape": "s", "dtype": "d", "device": "g", "threads": 1, "batch": 8,
    "seconds_per_head_cell": 0.01, "seconds_per_edge_cell": 0.001,
}  # fmt: skip
STATUS = {"rows": 300, "examples": 10, "ablations": 9, "bytes": 600, "failed": 0, "damaged": []}


def test_the_table_is_the_formulas(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("sweep_costs", ROOT / "docs" / "sweep_costs.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = tmp_path / "page.md"
    page.write_text((ROOT / "docs" / "sweep-costs.md").read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(script, "PAGE", page)
    for name, values in (("speed", SPEED), ("status", STATUS)):
        (tmp_path / name).write_text(json.dumps(values))
    monkeypatch.setattr(sys, "argv", ["sweep_costs", str(tmp_path / "speed"), str(tmp_path / "status")])
    script.main()
    script.main()  # filling in again leaves one table
    text = page.read_text(encoding="utf-8")
    # 100,000 images x 1,024 heads; 300 rows of 10 examples under 9 ablations and none are 3 phrases an example.
    assert text.count("| cells | 102,400,000 |") == 1
    assert "| hours of one device, heads | 284 |" in text
    assert "| hours of one device, edges | 28 |" in text
    assert "| phrases an example | 3.00 |" in text
    assert "| rows | 307,500,000 |" in text
    assert "| gigabytes | 0.6 |" in text
    (tmp_path / "status").write_text(json.dumps(STATUS | {"failed": 1}))
    with pytest.raises(SystemExit, match="without failed examples"):
        script.main()
