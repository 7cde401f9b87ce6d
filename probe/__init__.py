"""See where a vision-language model looks when it says a word.

The public names load on first use, so that ``import probe`` takes no time and needs neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: Public name -> the module that defines it.
_PUBLIC = {
    "AttentionRecord": "probe.attention",
    "LayerAttention": "probe.attention",
    "PatchGrid": "probe.layout",
    "ProbeError": "probe.errors",
    "GroundingCallback": "probe.callbacks",
    "HeadScores": "probe.analysis.heads",
    "Subject": "probe.models",
    "SweepPlan": "probe.sweep.plan",
    "ablate": "probe.capture.ablation",
    "attend_and_segment": "probe.grounding.segment",
    "check": "probe.capture.checks",
    "compare": "probe.comparing",
    "concept_maps": "probe.capture.concepts",
    "contributions": "probe.capture.decomposition",
    "emergence": "probe.training_curves",
    "explore": "probe.widgets.explorer",
    "find_checkpoints": "probe.checkpoints",
    "load": "probe.files",
    "load_model": "probe.models",
    "noun_phrases": "probe.grounding.phrases",
    "profile": "probe.analysis.profiles",
    "read_image": "probe.images",
    "record": "probe.capture.records",
    "relevance": "probe.capture.attributions",
    "run": "probe.runs",
    "run_sweep": "probe.sweep.runner",
    "save": "probe.files",
    "score_heads": "probe.analysis.heads",
}
_SUBPACKAGES = ("analysis", "capture", "evaluation", "families", "grounding", "lab", "plots", "widgets")

__all__ = ["__version__", *_PUBLIC, *_SUBPACKAGES]

if TYPE_CHECKING:
    from probe.analysis.heads import HeadScores as HeadScores
    from probe.analysis.heads import score_heads as score_heads
    from probe.analysis.profiles import profile as profile
    from probe.attention import AttentionRecord as AttentionRecord
    from probe.attention import LayerAttention as LayerAttention
    from probe.callbacks import GroundingCallback as GroundingCallback
    from probe.capture.ablation import ablate as ablate
    from probe.capture.attributions import relevance as relevance
    from probe.capture.checks import check as check
    from probe.capture.concepts import concept_maps as concept_maps
    from probe.capture.decomposition import contributions as contributions
    from probe.capture.records import record as record
    from probe.checkpoints import find_checkpoints as find_checkpoints
    from probe.comparing import compare as compare
    from probe.errors import ProbeError as ProbeError
    from probe.files import load as load
    from probe.files import save as save
    from probe.grounding.phrases import noun_phrases as noun_phrases
    from probe.grounding.segment import attend_and_segment as attend_and_segment
    from probe.images import read_image as read_image
    from probe.layout import PatchGrid as PatchGrid
    from probe.models import Subject as Subject
    from probe.models import load_model as load_model
    from probe.runs import run as run
    from probe.sweep.plan import SweepPlan as SweepPlan
    from probe.sweep.runner import run_sweep as run_sweep
    from probe.training_curves import emergence as emergence
    from probe.widgets.explorer import explore as explore


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in _SUBPACKAGES:
        return importlib.import_module(f"probe.{name}")
    raise AttributeError(f"module 'probe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
