"""The script that draws what taking heads away costs: on a stand-in table, and measured on a few scenes."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from probe.effects import EFFECTS
from tests.plots.scripts import load_script


@pytest.fixture
def script() -> ModuleType:
    return load_script("ablation")


def test_two_runs_draw_the_same_bytes(script: ModuleType, tmp_path: Path) -> None:
    assert tuple(script.PANELS) == EFFECTS
    shared = {"before": -0.5, "change": -0.1, "low": -0.2, "high": 0.0, "images": 3, "phrases": 9}
    rows = [
        {"ablation": name, "how": how, "effect": effect, **shared}
        for how in script.LABELS
        for name in ("best head", "all heads of layer 1")
        for effect in EFFECTS
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "ablation.csv", index=False)
    held = {"value": 0.9, "low": 0.8, "high": 1.0}
    facts = {"model": "m", "heads": [2, 2], "metric": "pointing", "held_out": held, "chosen_on_seed": 1}
    facts |= {"chosen_on_scenes": 5, "held_out_scenes": 4, "measured_on_seed": 0, "reference": "a set"}
    (tmp_path / "ablation.json").write_text(json.dumps(facts))
    first, again = ([path.read_bytes() for path in script.draw(tmp_path, tmp_path / name)] for name in ("a", "b"))
    assert first == again


def test_heads_are_chosen_on_other_scenes_than_those_they_are_taken_away_on(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import probe.effects
    import probe.runs

    read: dict[str, set[bytes]] = {"chosen": set(), "measured": set()}

    def noting(name: str, examples: list) -> list:
        read[name] |= {one.image.tobytes() for one in examples}
        return examples

    score, effects = probe.runs.score_examples, probe.effects.ablation_effects
    monkeypatch.setattr(
        probe.runs, "score_examples", lambda subject, of, **rest: score(subject, noting("chosen", list(of)), **rest)
    )
    monkeypatch.setattr(
        probe.effects,
        "ablation_effects",
        lambda subject, of, plan, **rest: effects(subject, noting("measured", list(of)), plan, **rest),
    )
    script.REFERENCE, script.LABELS = 2, {"zero": "zero", "mean": "mean"}
    script.measure(tmp_path, scenes=4)
    assert [len(one) for one in read.values()] == [4, 4]
    assert not read["chosen"] & read["measured"]
    table, facts = pd.read_csv(tmp_path / "ablation.csv"), json.loads((tmp_path / "ablation.json").read_text())
    assert facts["best"] != facts["random"]
    assert facts["random"][0] < 3
    # Best head, random head and four layers; two effects; two ways of taking away.
    assert len(table) == 6 * 2 * 2
    assert (table["images"] == 4).all()
