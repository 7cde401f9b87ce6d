"""An edge that is cut carries nothing, its row's attention goes to what is left, and nothing else changes."""

from __future__ import annotations

import pytest
import torch

from probe.capture.ablation import ablate
from probe.capture.edges import EDGES, Edge, cut_edges, edge_positions
from probe.capture.passes import inputs_with_answer
from probe.capture.references import HeadOutputs, head_outputs
from probe.errors import CaptureError, InputError
from tests.tiny import picture, tiny_llava

PROMPT, ANSWER = "Describe the image.", "a man with a red ball"


def _outputs(subject, layer):
    """(row, head, channel) what a layer's heads give to the output projection, and the logits."""
    kept = []
    projection = subject.model.get_decoder().layers[layer].self_attn.o_proj
    handle = projection.register_forward_pre_hook(lambda module, args: kept.append(args[0][0]))
    inputs, _ = inputs_with_answer(subject, picture(), PROMPT, ANSWER)
    with torch.inference_mode():
        logits = subject.model(**inputs, use_cache=False).logits[0]
    handle.remove()
    return kept[0].unflatten(-1, (4, -1)), logits


def _wanted(layer, edges):
    """(row, head, channel) by eager attention with the edges' weights set to zero and every row made to sum to 1 again."""
    eager = tiny_llava(attention="eager", dtype=torch.float64)
    inputs, _ = inputs_with_answer(eager, picture(), PROMPT, ANSWER)
    values = []
    handle = (
        eager.model.get_decoder()
        .layers[layer]
        .self_attn.v_proj.register_forward_hook(
            lambda module, args, output: values.append(output[0].unflatten(-1, (2, -1)))
        )
    )
    with torch.no_grad():
        weights = eager.model(**inputs, use_cache=False, output_attentions=True).attentions[layer][0]
    handle.remove()
    weights = weights.clone().double()
    for queries, keys, heads in edges:
        for head in heads:
            for query in queries:
                for key in keys:
                    if key != query:
                        weights[head, query, key] = 0
    weights = weights / weights.sum(-1, keepdim=True)
    of_head = values[0].double().repeat_interleave(2, dim=1)  # (key, head, channel): two query heads read each key head
    return torch.einsum("hqk,khc->qhc", weights, of_head)


@pytest.mark.parametrize(
    "edges",
    [
        [((20, 21, 24), tuple(range(5, 15)), (0, 3))],
        [(tuple(range(25)), tuple(range(25)), (1,))],  # every row sees itself alone
        [((20, 21), (3, 4), (0, 1)), ((21, 22), (5, 6), (1, 2))],  # two edges that meet in a row and a head
    ],
)
def test_rows_go_to_what_is_left(edges):
    subject = tiny_llava(dtype=torch.float64)
    plain, before = _outputs(subject, 1)
    with cut_edges(subject, [Edge(1, *one) for one in edges]):
        found, after = _outputs(subject, 1)
    torch.testing.assert_close(
        found, _wanted(1, edges), atol=5e-6, rtol=0
    )  # eager takes its softmax in single precision
    touched = torch.zeros(plain.shape[:2], dtype=torch.bool)
    for queries, _, heads in edges:
        for head in heads:
            touched[list(queries), head] = True
    assert torch.equal(found[~touched], plain[~touched])
    assert not torch.equal(before, after)
    assert torch.equal(_outputs(subject, 1)[1], before)


def test_names_of_edges_are_positions():
    ids = [
        1,
        9,
        9,
        9,
        5,
        6,
        7,
        8,
        2,
    ]  # a first token, three patches, two words of the prompt, then the answer from 6 on
    found = {name: edge_positions(name, ids, image_token=9, answer_start=6) for name in EDGES}
    assert found["answer to image"] == ((5, 6, 7, 8), (1, 2, 3))
    assert found["prompt to answer"] == ((0, 4), (6, 7, 8))
    assert found["text to prompt"] == ((0, 4, 5, 6, 7, 8), (0, 4, 5))
    assert found["image to text"] == ((1, 2, 3), (0, 4, 5, 6, 7, 8))
    with pytest.raises(InputError, match="no edge 'answer to picture'"):
        edge_positions("answer to picture", ids, image_token=9, answer_start=6)


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([], "edges is empty"),
        ([Edge(9, (1,), (0,))], r"Head \(9, 0\) does not exist"),
        ([Edge(1, (1,), (0,), (4,))], r"Head \(1, 4\) does not exist"),
        ([Edge(1, (), (0,))], "layer 1 has no queries"),
        ([Edge(1, (1,), ())], "layer 1 has no keys"),
    ],
)
def test_bad_edges_are_refused(edges, message):
    with pytest.raises(InputError, match=message), cut_edges(tiny_llava(), edges):
        pass


def test_a_cut_without_effect_is_an_error():
    with (
        pytest.raises(CaptureError, match="the model did not run inside"),
        cut_edges(tiny_llava(), [Edge(1, (1,), (0,))]),
    ):
        pass


def test_heads_of_another_image_are_its_own_outputs():
    subject = tiny_llava()
    other = head_outputs(subject, picture(seed=4), PROMPT, ANSWER, name="another")
    kept = []
    projection = subject.model.get_decoder().layers[2].self_attn.o_proj
    inputs, _ = inputs_with_answer(subject, picture(seed=4), PROMPT, ANSWER)
    handle = projection.register_forward_pre_hook(lambda module, args: kept.append(args[0][0]))
    with torch.inference_mode():
        subject.model(**inputs)
    handle.remove()
    assert torch.equal(other.outputs[2], kept[0].unflatten(-1, (4, -1)))
    plain, _ = _outputs(subject, 2)
    with ablate(subject, heads=[(2, 1), (2, 3)], how="other image", reference=other):
        found, _ = _outputs(subject, 2)
    assert torch.equal(found[:, [1, 3]], other.outputs[2][:, [1, 3]])
    assert torch.equal(found[:, [0, 2]], plain[:, [0, 2]])
    short = HeadOutputs("short", 3, {2: other.outputs[2][:3]})
    with (
        pytest.raises(InputError, match=r"'short' holds 3 positions, and this pass has"),
        ablate(subject, heads=[(2, 1)], how="other image", reference=short),
    ):
        _outputs(subject, 2)
    with (
        pytest.raises(InputError, match=r"how='mean' needs reference: the HeadMeans .*found HeadOutputs"),
        ablate(subject, heads=[(2, 1)], how="mean", reference=other),
    ):
        pass
