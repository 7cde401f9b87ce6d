"""Records as LLaVA writes them: what is read, and every reason for which one cannot be used."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from probe.errors import FileError, InputError
from probe.training.conversations import read_conversations
from tests.training.tiny_training import conversation, write_records


def read(where, prompt="conversation"):
    return read_conversations(where["data"], where["images"], prompt=prompt)


def changed(number: int = 0, **fields: Any) -> dict[str, Any]:
    return conversation(number) | fields


def said(*turns: tuple[Any, Any]) -> list[dict[str, Any]]:
    return [{"from": role, "value": text} for role, text in turns]


ASKED, ANSWERED = ("human", "<image>\nWhat?"), ("gpt", "a ball")
WRONG = {
    "a missing image": changed(image="nowhere.png"),
    "an image outside the images folder": changed(image="../data.json"),
    "an image that is no file name": changed(image=["0.png", "1.png"]),
    "an unknown role": changed(conversations=said(ASKED, ("robot", "hello"))),
    "no image token": changed(conversations=said(("human", "What?"), ANSWERED)),
    "an image token but no image": conversation(0) | {"image": None},
    "an image token that is not once in the first question": changed(
        conversations=said(ASKED, ANSWERED, ("human", "<image> and now?"), ANSWERED)
    ),
    "turns out of order": changed(conversations=said(ASKED, ANSWERED, ANSWERED)),
    "no answer": changed(conversations=said(ASKED)),
    "an empty answer": changed(conversations=said(ASKED, ("gpt", " \n"))),
    "no list of turns": changed(conversations="hello"),
    "a turn that is no text": changed(conversations=said(ASKED, ("gpt", 7))),
    "no object": ["not", "a", "record"],
}


@pytest.mark.parametrize("reason", WRONG)
def test_each_bad_record_is_counted_and_named(reason, tmp_path):
    where = write_records(tmp_path, [conversation(0), conversation(1)])
    records = [conversation(0), WRONG[reason], conversation(1), WRONG[reason]]
    (tmp_path / "data.json").write_text(json.dumps(records))
    good, bad = read(where)
    assert len(good) == 2
    assert bad.counts() == {reason: 2}
    with pytest.raises(InputError) as found:
        bad.refuse("Correct them.")
    name = "at position 1" if reason == "no object" else "'pair-0'"
    assert f"data.json': 2 of 4 records cannot be used: 2 with {reason} ({name}, " in str(found.value)
    assert str(found.value).endswith(". Correct them.")


def test_half_characters_and_null_bytes_are_not_passed_on(tmp_path):
    where = write_records(tmp_path, 1)
    records = [
        changed(conversations=said(ASKED, ("gpt", "\ud800"))),
        changed(image="a\0b.png"),
        changed(image="\udfff.png"),
    ]
    (tmp_path / "data.json").write_text(json.dumps(records))
    assert read(where)[1].counts() == {"a turn that is no text": 1, "an image that is no file name": 2}


def test_absolute_names_links_that_lead_out_folders_and_pipes_are_no_images(tmp_path):
    where = write_records(tmp_path / "set", 1)
    outside = tmp_path / "outside.png"
    outside.write_bytes((tmp_path / "set/images/0.png").read_bytes())
    images = tmp_path / "set/images"
    (images / "link.png").symlink_to(outside)
    (images / "folder.png").mkdir()
    os.mkfifo(images / "pipe.png")
    names = [str(outside), "C:\\0.png", "link.png", "folder.png", "pipe.png"]
    (tmp_path / "set/data.json").write_text(json.dumps([changed(image=name) for name in names]))
    assert read(where)[1].counts() == {"an image outside the images folder": 3, "a missing image": 2}


def test_what_is_read(tmp_path):
    records = [
        conversation(0, turns=2),
        changed(1, conversations=said(("human", "What is this?\n<image>"), ANSWERED)),
        {"id": 7, "conversations": said(("gpt", "Hello!"), ("human", "Hi"), ANSWERED, ("human", "unanswered"))},
    ]
    good, bad = read(write_records(tmp_path, records))
    assert not bad.found
    assert good[0].turns == (("Describe the image.", "a red ball"), ("and the 1 dogs?", "two dogs on the grass"))
    assert good[0].image == str(tmp_path / "images" / "0.png")
    assert good[1].turns == (("What is this?", "a ball"),)
    assert good[2].turns == (("Hi", "a ball"),)
    assert good[2].image is None
    assert good[2].name.endswith("data.json', record 7")


def test_the_plain_prompt_needs_an_image_and_one_answer(tmp_path):
    where = write_records(tmp_path, [conversation(0), conversation(1, turns=2), conversation(2, image=False)])
    good, bad = read(where, "plain")
    assert len(good) == 1
    assert list(bad.counts().values()) == [2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2", "is not valid JSON"),
        ('{"a": 1}', "a JSON list of conversations is needed"),
        ("[]", "holds no record"),
        ("[NaN]", "NaN is not a JSON number"),
        ("[" * 100000, "nested too deeply|is not valid JSON"),
    ],
)
def test_broken_files(content, message, tmp_path):
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_conversations(tmp_path / "data.json", None, prompt="plain")


def test_absent_files_and_folders(tmp_path):
    with pytest.raises(FileError, match="cannot be read"):
        read_conversations(tmp_path / "none.json", None, prompt="plain")
    where = write_records(tmp_path, 2)
    with pytest.raises(InputError, match="There is no folder of images"):
        read_conversations(where["data"], tmp_path / "none", prompt="plain")
    _, bad = read_conversations(where["data"], None, prompt="plain")
    assert bad.counts() == {"an image although no images folder is given": 2}


def test_a_message_names_the_first_three(tmp_path):
    where = write_records(tmp_path, [conversation(number) | {"image": None} for number in range(9)])
    with pytest.raises(InputError, match=r"9 of 9 records .*\('pair-0', 'pair-1', 'pair-2', \.\.\.\)\. Cure"):
        read(where)[1].refuse("Cure.")
