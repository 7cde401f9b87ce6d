"""What is held against the kernel, and what the certificate says of it."""

from __future__ import annotations

import pytest
import torch

from probe.capture.reproduction import Reproduction, picked_rows
from probe.errors import CertificateError

SIZES = {"layers": 2, "tokens": 5, "patches": 9, "advice": "Try something else."}


def _noted(*errors, verify="sample"):
    found = Reproduction(verify)
    for name, error in errors:
        found.note(name, torch.tensor(error), 3)
    return found


@pytest.mark.parametrize(
    ("verify", "count", "expected"),
    [
        ("off", 9, []),
        ("all", 5, [0, 1, 2, 3, 4]),
        ("sample", 3, [0, 1, 2]),
        ("sample", 4, [0, 1, 2, 3]),
        ("sample", 64, [0, 21, 42, 63]),
        ("sample", 5, [0, 1, 3, 4]),
    ],
)
def test_a_sample_is_spread_from_the_first_row_to_the_last(verify, count, expected):
    assert picked_rows(verify, count) == expected


def test_a_larger_sample_has_both_ends_too():
    picked = picked_rows("sample", 1000, sample=16)
    assert (len(picked), picked[0], picked[-1]) == (16, 0, 999)


def test_the_largest_error_and_its_layer():
    found = _noted(("layers.0", 1e-7), ("layers.1", 3e-6), ("layers.0", 2e-6), ("layers.1", 1e-8))
    assert found.worst() == (pytest.approx(3e-6), "layers.1")
    assert Reproduction("off").worst() == (0.0, "")
    proof = found.certificate(torch.float32, "sdpa", **SIZES)
    assert (proof.rows, proof.layers, proof.tokens, proof.patches) == (12, 2, 5, 9)
    assert proof.passed


@pytest.mark.parametrize("error", [2e-5, float("inf")])
def test_an_error_beyond_rounding_is_refused_with_its_layer_and_advice(error):
    found = _noted(("layers.0", 1e-7), ("layers.7", error))
    with pytest.raises(
        CertificateError, match=r"in layers\.7, allowed 1e-05 for torch\.float32 .* Try something else\."
    ):
        found.certificate(torch.float32, "sdpa", **SIZES)
    assert _noted(("layers.7", 1e-3)).certificate(torch.bfloat16, "sdpa", **SIZES).passed
