"""Comparisons along an axis, against the same comparison made at each place by hand."""

from __future__ import annotations

from typing import Any

import pytest

import probe
from probe.comparing import compare_examples
from probe.errors import InputError, ModelError
from probe.evaluation.lab import read_lab
from probe.models import Subject, load_model
from probe.series import noise_series, training_series
from tests.difflmm.tiny_difflmm import tiny_difflmm
from tests.tiny import tiny_llava

STEPS = (100, 900)


@pytest.fixture(scope="module")
def examples() -> list[Any]:
    return list(read_lab(limit=2))


@pytest.fixture(scope="module")
def encoders() -> list[Subject]:
    return [probe.load_model(one) for one in ("lab/clip", "lab/diffusion")]


@pytest.fixture
def difflmm() -> Subject:
    return load_model(*tiny_difflmm())


def readings(table: Any, system: str) -> dict[int, float]:
    part = table[(table["kind"] == "reading") & (table["system"] == system)]
    return dict(zip(part["at"], part["value"], strict=True))


def test_each_timestep_is_the_comparison_at_that_timestep(encoders: list[Subject], examples: list[Any]) -> None:
    done: list[int] = []
    table = noise_series(encoders, examples, over="timestep", values=STEPS, on_value=done.append, metric="auroc")
    assert done == [1, 2]
    for step in STEPS:
        alone = compare_examples(encoders, examples, timesteps=(step,), metric="auroc")
        assert readings(table, "lab/diffusion")[step] == alone.systems["lab/diffusion"].scores["auroc"].value
        (pair,) = alone.paired
        row = table[(table["kind"] == "difference") & (table["at"] == step)].iloc[0]
        assert (row["value"], row["p_value"]) == (pair.difference.value, pair.p_value)
    clip = readings(table, "lab/clip")
    assert clip[100] == clip[900]
    diffusion = readings(table, "lab/diffusion")
    assert diffusion[100] != diffusion[900]


def test_draws_change_the_noise_and_nothing_else(encoders: list[Subject], examples: list[Any]) -> None:
    table = noise_series(encoders, examples, over="draw", values=(0, 1), metric="auroc")
    default = compare_examples(encoders, examples, metric="auroc")
    # Draw 0 is what everything else uses; the signs and the bootstrap are the same at each.
    assert readings(table, "lab/diffusion")[0] == default.systems["lab/diffusion"].scores["auroc"].value
    assert len(set(readings(table, "lab/diffusion").values())) == 2
    assert len(set(readings(table, "lab/clip").values())) == 1


@pytest.mark.parametrize(("over", "name"), [("timestep", "timestep"), ("draw", "first_draw")])
def test_a_difflmm_is_read_there_and_left_as_it_was(
    difflmm: Subject, examples: list[Any], over: Any, name: str
) -> None:
    settings = difflmm.model.config.diffusion_config
    before = settings.to_dict()
    subjects = [difflmm, tiny_llava()]
    table = noise_series(subjects, examples, over=over, values=(1, 3), metric="auroc")
    assert settings.to_dict() == before
    setattr(settings, name, 3)
    alone = compare_examples(subjects, examples, metric="auroc")
    found = readings(table, difflmm.name)
    assert found[3] == alone.systems[difflmm.name].scores["auroc"].value
    assert found[1] != found[3]
    with pytest.raises((ModelError, InputError)):
        noise_series(subjects, examples, over=over, values=(-1,), metric="auroc")
    with pytest.raises(ModelError, match="timestep"):
        noise_series(subjects, examples, over="timestep", values=(5000,), metric="auroc")
    assert getattr(settings, name) == 3


def test_what_has_no_noise_is_refused(examples: list[Any]) -> None:
    clip, llava = (probe.load_model(one) for one in ("lab/clip", "lab/llava"))
    with pytest.raises(InputError, match="None of these models puts noise on the image"):
        noise_series([clip, llava], examples, over="draw", values=(0, 1))
    with pytest.raises(InputError, match="different numbers of 0 or more"):
        noise_series([clip, probe.load_model("lab/diffusion")], examples, over="draw", values=(1, 1))


def test_a_training_is_read_from_what_was_measured(tmp_path: Any) -> None:
    table = training_series(["lab/llava"])
    assert table["step"].iloc[-1] == 2500
    assert table["minus_mean"].iloc[-1] > 0.8 > table["minus_mean"].iloc[0]
    assert set(table["seed"]) == {0}
    with pytest.raises(InputError, match="no measurements of its training"):
        training_series(["lab/clip"])
    (tmp_path / "training.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match="no table of a training"):
        training_series([str(tmp_path)])
