"""Which characters each token spells, over byte-level and SentencePiece-like tokenizers."""

from __future__ import annotations

import random

import pytest

from probe.capture.tokens import spell
from probe.errors import ModelError
from tests.tiny import tiny_processor

TEXTS = [
    "a man with a red ball",
    "two dogs on the grass, near a café 🐶",
    "family 👨‍👩‍👧 and flag 🇫🇷!",
    "cafe\u0301 n\u0303",
    "红色的圆 и синий квадрат",
    "كرة حمراء",
    "a\n\n- b\n- c\tx",
    "ball ball ball",
    "𝔘𝔫𝔦 ☕️",
]


def _byte_level():
    return tiny_processor().tokenizer


def _sentence_piece():
    """Like Llama's: blanks as ▁, unknown characters as bytes, one blank in front removed."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    words = ["▁a", "▁man", "▁red", "▁ball", "▁dog", "s", "▁", *"abcdefghijklmnopqrstuvwxyz,.!é"]
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    backend = Tokenizer(
        models.Unigram([(one, -float(i > 2)) for i, one in enumerate(vocabulary)], unk_id=0, byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _merged_pieces():
    """Like Mistral's: the same signs, put together by merges; what has no piece is spelt in bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    signs = ["▁", *"abdeghilmnorst.,é"]
    merges = [("▁", "a"), ("▁", "r"), ("▁r", "e"), ("▁re", "d"), ("l", "l"), ("▁", "b"), ("▁b", "a"), ("▁ba", "ll")]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *signs, *map("".join, merges)]
    vocabulary = {one: place for place, one in enumerate(dict.fromkeys(words))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _bytes_alone():
    """A token for each byte and no other."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {one: place for place, one in enumerate(["<s>", "</s>", *letters])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


TOKENIZERS = {
    "byte level": _byte_level,
    "sentence piece": _sentence_piece,
    "merged pieces": _merged_pieces,
    "bytes alone": _bytes_alone,
}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("text", TEXTS)
def test_every_character_is_spelled_and_spans_are_in_order(kind, text):
    tokenizer = TOKENIZERS[kind]()
    ids = tokenizer(" " + text, add_special_tokens=False)["input_ids"]
    found = spell(tokenizer, [*ids, tokenizer.eos_token_id])
    assert found.text == text
    assert found.tokens[-1] == "</s>"
    assert found.spans[-1] == (len(text), len(text))
    covered = [False] * len(text)
    last = (0, 0)
    for (start, end), token in zip(found.spans[:-1], found.tokens[:-1], strict=True):
        assert start >= last[0]
        assert end >= last[1]
        last = (start, end)
        # A token's span is the token without the blanks in front.
        assert token.endswith(text[start:end])
        assert token.removesuffix(text[start:end]).strip() == ""
        covered[start:end] = [True] * (end - start)
    assert all(done or one.isspace() for done, one in zip(covered, text, strict=True))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_any_ids_at_all_give_the_decoders_own_text(kind):
    """Random ids: invalid bytes, characters cut in two, special tokens in the middle."""
    tokenizer = TOKENIZERS[kind]()
    rng, sound = random.Random(kind), 0
    for _ in range(1500):
        ids = [rng.randrange(len(tokenizer)) for _ in range(rng.randint(1, 12))]
        found = spell(tokenizer, ids)
        plain = tokenizer.decode(ids, skip_special_tokens=True)
        if (
            "\ufffd" not in plain
        ):  # a decoder may take back valid bytes when an invalid one follows; then only spans are asked
            assert found.text == plain.lstrip(), ids
            sound += 1
        assert len(found.tokens) == len(found.spans) == len(ids)
        place = 0
        for (start, end), one in zip(found.spans, ids, strict=True):
            assert 0 <= start <= end <= len(found.text)
            assert end >= place
            place = end
            if one in tokenizer.all_special_ids:
                assert start == end
    assert sound > 100


def test_bytes_that_a_decoder_takes_back_do_not_end_in_an_error():
    tokenizer = _sentence_piece()
    byte = tokenizer.convert_tokens_to_ids
    ids = [byte("▁red"), byte("<0x4D>"), byte("<0x80>"), byte("<0xFF>"), byte("▁ball"), byte("<0xF0>")]
    found = spell(tokenizer, ids)
    assert found.text == "redM\ufffd ball\ufffd"
    assert [found.text[slice(*one)] for one in found.spans] == ["red", "M", "\ufffd", "\ufffd", "ball", "\ufffd"]


def test_a_truncated_character_is_marked_and_belongs_to_its_bytes():
    tokenizer = _byte_level()
    ids = tokenizer(" dogs 🐺", add_special_tokens=False)["input_ids"]
    assert spell(tokenizer, ids).text == "dogs 🐺"
    cut = spell(tokenizer, ids[:-1])
    assert cut.text == "dogs \ufffd"
    assert cut.text[slice(*cut.spans[-1])].strip() == "\ufffd"


def test_tokens_of_one_emoji_share_its_span():
    tokenizer = _sentence_piece()
    ids = tokenizer("a 🐶", add_special_tokens=False)["input_ids"]
    found = spell(tokenizer, ids)
    emoji = [span for span in found.spans if found.text[slice(*span)] == "🐶"]
    assert len(emoji) == 4
    assert len(set(emoji)) == 1


def test_leading_blanks_are_taken_from_text_and_spans_together():
    tokenizer = _byte_level()
    ids = tokenizer("  \n a dog", add_special_tokens=False)["input_ids"]
    found = spell(tokenizer, ids)
    assert found.text == "a dog"
    assert next(found.text[slice(*one)] for one in found.spans if one[1] > one[0]) == "a"
    assert "".join(found.text[slice(*one)] for one in found.spans) == "adog"


def test_a_blank_in_front_of_a_character_in_bytes_is_no_part_of_it():
    tokenizer = _sentence_piece()
    ids = tokenizer("🐶 a", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids[0]) == "▁"
    found = spell(tokenizer, ids)
    assert (found.text, found.spans[:5]) == ("🐶 a", ((0, 0), *[(0, 1)] * 4))


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(ModelError, match="object is not a fast tokenizer, so its tokens cannot be aligned"):
        spell(object(), [1])
