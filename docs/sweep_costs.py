"""Fill in docs/sweep-costs.md: what a large sweep costs, from seconds a cell and bytes a row that were measured.

python -m tests.speed.sweep --shape llava-1.5-7b --device cuda --dtype bfloat16 --json > speed.json
probe sweep status runs/heads --json > status.json
python docs/sweep_costs.py speed.json status.json
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("sweep-costs.md")
IMAGES, LAYERS, HEADS = 100_000, 32, 32
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def costs(speed: dict[str, Any], status: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and value of each line of the table."""
    cells = IMAGES * LAYERS * HEADS
    rows_per_cell = status["rows"] / (status["examples"] * (status["ablations"] + 1))
    bytes_per_row = status["bytes"] / status["rows"]
    rows = IMAGES * (LAYERS * HEADS + 1) * rows_per_cell
    machine = (
        f"{speed['shape']}, {speed['dtype']}, {speed['device']}, {speed['threads']} threads, {speed['batch']} at a time"
    )
    return [
        ("measured on", machine),
        ("seconds a cell, heads", f"{speed['seconds_per_head_cell']:.5f}"),
        ("seconds a cell, edges", f"{speed['seconds_per_edge_cell']:.5f}"),
        ("cells", f"{cells:,}"),
        ("hours of one device, heads", f"{cells * speed['seconds_per_head_cell'] / 3600:,.0f}"),
        ("hours of one device, edges", f"{cells * speed['seconds_per_edge_cell'] / 3600:,.0f}"),
        ("phrases an example", f"{rows_per_cell:.2f}"),
        ("bytes a row", f"{bytes_per_row:.2f}"),
        ("rows", f"{rows:,.0f}"),
        ("gigabytes", f"{rows * bytes_per_row / 1e9:,.1f}"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speed", type=Path)
    parser.add_argument("status", type=Path)
    arguments = parser.parse_args()
    speed, status = (json.loads(one.read_text(encoding="utf-8")) for one in (arguments.speed, arguments.status))
    if status["failed"] or status["damaged"] or not status["rows"]:
        raise SystemExit("bytes a row come from a sweep without failed examples and damaged shards")
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in costs(speed, status))])
    page = PAGE.read_text(encoding="utf-8")
    filled = re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{table}\n{END}", page, flags=re.DOTALL)
    PAGE.write_text(filled, encoding="utf-8")


if __name__ == "__main__":
    main()
