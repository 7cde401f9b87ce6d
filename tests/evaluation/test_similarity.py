"""How alike words are: the offline encoders by hand, and BERT's pooling against transformers itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probe.errors import InputError, ModelError
from probe.evaluation import similarity
from probe.evaluation.similarity import BertEncoder, ExactEncoder, WordEncoder, similarities


def test_shared_words_by_hand():
    found = similarities(WordEncoder(), ["a red circle"], ["the circles", "red square", "Red Circle", "dog", "the"])
    assert found == pytest.approx(np.array([[2 / 5**0.5, 0.2, 1, 0, 0]]), abs=1e-9)
    exact = similarities(ExactEncoder(), ["a red circle"], ["red circles", "circle", "big red circle"])
    assert exact.tolist() == [[1, 0, 0]]
    assert similarities(WordEncoder(), [], ["dog"]).shape == (0, 1)


@pytest.mark.parametrize("given", [np.ones(2), np.ones((3, 2)), np.full((2, 2), np.nan)])
def test_an_encoder_that_gives_something_else_is_refused(given):
    with pytest.raises(InputError, match="for 2 phrases; it has to give one finite vector for each"):
        similarities(lambda texts: given, ["a"], ["b"])


@pytest.fixture
def bert(tmp_path):
    """A folder with a random BERT and its tokeniser."""
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "circle", "dog", "big"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    torch.manual_seed(0)
    settings = BertConfig(
        vocab_size=9,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.5,
    )
    BertModel(settings).save_pretrained(tmp_path)
    return tmp_path


def test_bert_is_the_mean_over_all_tokens(bert, monkeypatch):
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(bert), AutoModel.from_pretrained(bert).eval()
    texts = ["red circle", "big red dog", "red circle", "dog " * 600]
    encoder = BertEncoder(str(bert))
    assert encoder.name == str(bert)
    found = encoder(texts)
    for text, vector in zip(texts, found, strict=True):
        ids = [2, *tokenizer(text, add_special_tokens=False)["input_ids"][:510], 3]
        with torch.inference_mode():
            states = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        assert vector == pytest.approx(states.mean(0).numpy(), abs=1e-5)
    assert not np.allclose(found[0], found[1], atol=0.01)
    # What was encoded before is not encoded again, and old phrases make room for new ones.
    monkeypatch.setattr(encoder, "_encoded", lambda text: pytest.fail(f"{text!r} was encoded again"))
    assert (encoder(texts[:2]) == found[:2]).all()
    monkeypatch.undo()
    monkeypatch.setattr(similarity, "KEPT", 2)
    assert (encoder(["dog", "red circle"])[1] == found[0]).all()
    assert set(encoder._kept) == {"dog", "red circle"}


def test_an_absent_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"The text encoder .*none.* cannot be loaded .*score with WordEncoder"):
        BertEncoder(str(tmp_path / "none"))(["dog"])
