"""A record in a few lines: at the prompt, and as a table in a notebook."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

from probe.text import shorten

if TYPE_CHECKING:
    from probe.attention import AttentionRecord

__all__ = ["summary_html", "summary_text"]


def summary_text(record: AttentionRecord) -> str:
    """The record's sizes, certificate and text, a line each."""
    parts = _summary(record)
    head = ", ".join(f"{parts[name]} {name}" for name in ("layers", "timesteps", "heads", "tokens"))
    tail = "".join(f"\n  {name}: {value}" for name, value in list(parts.items())[4:])
    return f"AttentionRecord({head}){tail}"


def summary_html(record: AttentionRecord) -> str:
    """The same as a table."""
    rows = "".join(f"<tr><th>{name}</th><td>{html.escape(value)}</td></tr>" for name, value in _summary(record).items())
    return f"<table><caption>AttentionRecord</caption>{rows}</table>"


def _summary(record: AttentionRecord) -> dict[str, str]:
    layers, certificate = record.layers, record.certificate
    size = sum(t.numel() * t.element_size() for one in layers for t in (one.values, one.token_mean, one.rest))
    row = f", {record.query_row} rows" if record.query_row else ""
    checked = "passed" if certificate.passed else "off" if certificate.verify == "off" else "FAILED"
    ablation = {"ablation": record.source.ablation} if record.source.ablation else {}
    numbers = sorted({step for one in layers for step in one.timesteps} - {-1})
    steps = {"timestep": ", ".join(map(str, numbers))} if 0 < len(numbers) <= 10 else {}
    return {
        "layers": str(len(layers)),
        "timesteps": _several({one.values.shape[0] for one in layers}),
        "heads": _several({one.values.shape[1] for one in layers}),
        "tokens": str(len(record.tokens)),
        "grid": _several({f"{one.grid.shape[0]} x {one.grid.shape[1]}" for one in layers}),
        "image": f"{record.image_size[0]} x {record.image_size[1]} (height x width)",
        "quantity": f"{record.quantity} of each {record.query_kind}{row}"
        + "".join(f", {one}" for one in record.history),
        "certificate": f"{checked}, largest error {certificate.max_error:.1e} in {certificate.rows} rows",
        **steps,
        **ablation,
        "memory": f"{size / 1e6:.1f} MB",
        "text": shorten(record.text, 70),
    }


def _several(found: set[Any]) -> str:
    return " or ".join(sorted(str(one) for one in found))
