"""Token ids and labels: against a plain writing of LLaVA-1.5's conversation, piece by piece."""

from __future__ import annotations

import pytest

from probe.difflmm.processing import CHAT_TEMPLATE
from probe.errors import InputError, ModelError
from probe.lab.llava import load_processor
from probe.lab.storage import folder
from probe.training.batches import Collator, check_lengths
from probe.training.conversations import BadRecords, Conversation
from probe.training.texts import NO_LOSS, Encoder
from tests.tiny import tiny_processor

TURNS = (("What is on the grass?", "two dogs"), ("and near a café?", "a man 🐶"))
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
    "polite answers to the user's questions. "
)
PATCHES = 16  # 32 pixels in patches of 8


def processor_with(template):
    made = tiny_processor(preparation="pad")
    made.chat_template = template
    return made


def pieces(*parts):
    """Ids and labels of (text, is it an answer) pieces, each tokenised for itself."""
    tokenizer = tiny_processor().tokenizer
    ids, labels = [], []
    for text, counts in parts:
        own = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += own
        labels += own if counts else [NO_LOSS] * len(own)
    return ids, labels


@pytest.mark.parametrize("image", ["dogs.png", None])
def test_a_conversation_is_llavas_and_answers_and_their_ends_count(image):
    encoder = Encoder(processor_with(CHAT_TEMPLATE), prompt="conversation", max_length=4096)
    picture = "<image>" * PATCHES + "\n" if image else ""
    expected = pieces(
        (f"{SYSTEM}USER: {picture}What is on the grass? ASSISTANT:", False),
        (" two dogs</s>", True),
        ("USER: and near a café? ASSISTANT:", False),
        (" a man 🐶</s>", True),
    )
    assert encoder(Conversation("x", image, TURNS)) == expected


def test_a_template_without_an_end_gets_one():
    encoder = Encoder(tiny_processor(preparation="pad"), prompt="conversation", max_length=4096)
    expected = pieces(
        ("USER: What is on the grass? ASSISTANT:", False),
        (" two dogs</s>", True),
        ("USER: and near a café? ASSISTANT:", False),
        (" a man 🐶</s>", True),
    )
    assert encoder(Conversation("x", None, TURNS)) == expected


def test_the_start_token_of_a_template_is_not_doubled():
    processor = load_processor(folder("lab/llava"))
    ids, labels = Encoder(processor, prompt="conversation", max_length=512)(Conversation("x", "a.png", TURNS[:1]))
    tokenizer = processor.tokenizer
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids.count(tokenizer.convert_tokens_to_ids("<image>")) == 64
    counted = [label for label in labels if label != NO_LOSS]
    assert tokenizer.decode(counted) == "two dogs</s>"
    assert counted == ids[-len(counted) :]


def test_the_plain_prompt_is_the_image_and_the_caption():
    encoder = Encoder(tiny_processor(preparation="pad"), prompt="plain", max_length=64)
    expected = pieces(("<image>" * PATCHES, False), ("a red ball\n", True))
    assert encoder(Conversation("x", "a.png", (("Describe it.", "a red ball"),))) == expected


def test_a_template_that_rewrites_the_past_is_refused():
    template = "{{ messages | length }}{% for one in messages %}{{ one.content[0].text }}{% endfor %}"
    with pytest.raises(ModelError, match="nobody can tell where the answers are"):
        Encoder(processor_with(template), prompt="conversation", max_length=64)(Conversation("x", None, TURNS))
    with pytest.raises(ModelError, match="has no chat template"):
        Encoder(processor_with(None), prompt="conversation", max_length=64)
    with pytest.raises(InputError, match="An image has 16 tokens, so max_length=16"):
        Encoder(processor_with(None), prompt="plain", max_length=16)


def test_long_texts():
    encoder = Encoder(tiny_processor(preparation="pad"), prompt="plain", max_length=18)
    records = [
        Conversation(f"'f', record {name}", "a.png", (("", text),)) for name, text in (("a", "a"), ("b", "a red ball"))
    ]
    expected = {"refuse": (["a"], ["b"], 1), "skip": (["a"], ["b"], 0), "truncate": (["a", "b"], ["b"], 0)}
    for what, (kept, long, noted) in expected.items():
        bad = BadRecords("f", 2)
        found, names = check_lengths(records, encoder, bad, long_texts=what)
        assert [one.name[-1] for one in found] == kept
        assert names == long
        assert sum(bad.counts().values()) == noted
    assert [len(one) for one in encoder.cut(records[1])] == [18, 18]
    encoder.max_length = 16
    bad = BadRecords("f", 2)
    assert check_lengths(records, encoder, bad, long_texts="truncate")[0] == []
    assert bad.counts() == {"no answer within the first max_length=16 tokens": 2}


def test_batches_are_padded_and_without_pictures_they_have_none():
    import torch

    one = {"input_ids": [5, 6, 7], "labels": [NO_LOSS, 6, 7], "pixel_values": torch.ones(3, 2, 2)}
    two = {"input_ids": [8], "labels": [8]}
    batch = Collator(0)([two, one])
    assert batch["input_ids"].tolist() == [[8, 0, 0], [5, 6, 7]]
    assert batch["labels"].tolist() == [[8, NO_LOSS, NO_LOSS], [NO_LOSS, 6, 7]]
    assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert batch["pixel_values"].shape == (1, 3, 2, 2)
    assert set(Collator(0)([two, two])) == {"input_ids", "labels", "attention_mask"}
