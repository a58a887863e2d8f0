"""What answers may look like: judged by others' validators, over random schemas, expressions and a random model."""

from __future__ import annotations

import json
import re
import string
import time
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from athanor.base.errors import AthanorError
from athanor.engine.constraint import Constraint, Guidance, Guide, constraint_of
from athanor.engine.engine import Engine
from athanor.engine.language_model import LanguageModel
from athanor.engine.requests import Completion, Request
from athanor.engine.sampling import Sampling
from athanor.engine.speculation import Lookup
from athanor.models.decoder import Decoder
from athanor.tokenizer import Tokenizer
from athanor.tokenizer.documents import BLANK, added_token, sentencepiece_bpe, unigram
from athanor.tokenizer.foreign import ForeignTokenizer
from tests.engine.conftest import RUNGS, random_model

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
BOB = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def long_model(tokenizer: Tokenizer) -> Decoder:
    return random_model(5, tokenizer.vocab_size, max_seq_len=400)


@pytest.fixture(scope="module")
def engine(long_model: Decoder, tokenizer: Tokenizer) -> Engine:
    return Engine.of(long_model, tokenizer)


def sampling(tokenizer: Tokenizer | ForeignTokenizer, seed: int = 0, **wanted: Any) -> Sampling:
    own = {name: wanted.pop(name) for name in list(wanted) if name in Sampling.__dataclass_fields__}
    usual: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 250, "seed": seed}
    settings = Sampling(constraint=constraint_of(wanted), **{**usual, **own})
    return replace(settings, suppress_tokens=(*settings.suppress_tokens, *tokenizer.never_said))


def say(engine: Engine, seed: int = 0, prompt: list[int] | None = None, **wanted: Any) -> Completion:
    assert engine.tokenizer is not None
    request = Request(
        prompt or [5, 6, 7], sampling(engine.tokenizer, seed, **wanted), frozenset(engine.tokenizer.stop_ids)
    )
    return engine.generate([request])[0][0]


def text_of(said: Completion, tokenizer: Tokenizer | ForeignTokenizer) -> str:
    stop = said.tokens[-1:] if said.tokens and said.tokens[-1] in tokenizer.stop_ids else []
    assert tokenizer.decode_bytes(said.tokens[: len(said.tokens) - len(stop)]).decode() == said.text
    return said.text


words = st.text(string.ascii_letters + ' é炉"\\\n', min_size=1, max_size=6)
leaves = st.one_of(
    st.builds(lambda n: {"type": "string", "maxLength": n}, st.integers(0, 12)),
    st.builds(
        lambda a, b: {"type": "integer", "minimum": min(a, b), "maximum": max(a, b)}, *[st.integers(-300, 300)] * 2
    ),
    st.builds(
        lambda choices: {"enum": choices}, st.lists(st.one_of(words, st.integers(-9, 9)), min_size=1, unique_by=str)
    ),
    st.sampled_from(
        [
            {"type": "boolean"},
            {"type": "null"},
            {"const": {"a": [1, "x"]}},
            {"pattern": "^[ab]{2,4}$", "type": "string"},
        ]
    ),
)
schemas = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(lambda items, n: {"type": "array", "items": items, "maxItems": n}, inner, st.integers(0, 3)),
        st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(
            lambda properties: {
                "type": "object",
                "properties": properties,
                "required": sorted(properties)[::2],
                "additionalProperties": False,
            },
            st.dictionaries(words, inner, max_size=3),
        ),
    ),
    max_leaves=5,
)


@FEW
@given(schema=schemas, seed=st.integers(0, 99))
def test_what_ends_is_as_the_schema_has_it(engine: Engine, tokenizer: Tokenizer, schema: Any, seed: int) -> None:
    said = say(engine, seed, json_schema=schema)
    if said.finish_reason == "stop":
        jsonschema.validate(json.loads(text_of(said, tokenizer)), schema)
    assert engine.free_blocks == engine.blocks


parts = st.sampled_from(["[a-f]", "x", "é", "[0-9]{1,3}", "(ab|ba)", ".", "[^a]", "\\.", "火"])
expressions = st.recursive(
    parts,
    lambda inner: st.one_of(
        st.builds("({}|{})".format, inner, inner),
        st.builds("({}){}".format, inner, st.sampled_from(["?", "{0,3}", "{2}"])),
        st.builds("{}{}".format, inner, inner),
    ),
    max_leaves=6,
)


@FEW
@given(expression=expressions, seed=st.integers(0, 99))
def test_what_ends_is_matched_by_the_expression(
    engine: Engine, tokenizer: Tokenizer, expression: str, seed: int
) -> None:
    said = say(engine, seed, regex=expression)
    assert said.finish_reason == "stop"
    assert re.fullmatch(expression, text_of(said, tokenizer))


@FEW
@given(choices=st.lists(st.text(string.printable + "é炉🔥", min_size=1, max_size=8), min_size=1, max_size=4))
def test_one_of_the_choices_is_said(engine: Engine, choices: list[str]) -> None:
    said = say(engine, len(choices), choices=choices, max_tokens=60)
    assert said.finish_reason == "stop"
    assert said.text in choices


def test_all_choices_are_drawn_as_often_as_the_model_likes_them(engine: Engine, tokenizer: Tokenizer) -> None:
    """Of single tokens, so that the unconstrained probabilities, made to sum to one, say how often."""
    choices = ["a", "b", "c"]
    ids = [tokenizer.encode(c)[0] for c in choices]
    settings = sampling(tokenizer, choices=choices, n=2000)
    free = replace(settings, constraint=None, allowed_tokens=tuple(ids), max_tokens=1)
    said, expected = ([c.text for c in engine.generate([Request([9, 8], s)])[0]] for s in (settings, free))
    assert said == expected


def test_json_of_any_kind_and_a_grammar(engine: Engine) -> None:
    found = [say(engine, seed, any_json=True) for seed in range(8)]
    ended = [json.loads(said.text) for said in found if said.finish_reason == "stop"]
    assert ended
    assert all(isinstance(value, dict | list) for value in ended)
    grammar = 'start: "(" inner ")"\ninner: "[" inner "]" | LETTER\nLETTER: /[a-z]/'
    texts = {say(engine, seed, grammar=grammar).text for seed in range(8)}
    assert len(texts) > 1
    assert all(re.fullmatch(r"\(\[*[a-z]\]*\)", text) and text.count("[") == text.count("]") for text in texts)


def test_what_is_forced_is_not_computed(
    long_model: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine.of(long_model, tokenizer)
    wanted, forward = list[int](), engine.rung.forward
    monkeypatch.setattr(engine.rung, "forward", lambda s: (wanted.extend(x.wanted for x in s), forward(s))[1])
    schema = {"const": {"a rather long name": "and a rather long text"}}
    said = say(engine, json_schema=schema)
    assert json.loads(said.text) == schema["const"]
    assert sum(wanted) < len(said.tokens) / 3
    assert said.logprobs.count(0.0) > len(said.tokens) / 2
    told = say(engine, json_schema=schema, logprobs=2)
    assert told.tokens == said.tokens, "asking for probabilities changes nothing else"
    assert 0.0 not in told.logprobs
    assert len(told.top) == len(told.tokens)


def constrained(tokenizer: Tokenizer) -> list[Request]:
    rng = np.random.default_rng(2)
    shared = rng.integers(0, 256, 50).tolist()
    kinds: list[dict[str, Any]] = [
        {"json_schema": BOB}, {"any_json": True}, {"regex": "[a-z]{4,60}\\."}, {"choices": ["yes", "no", "never"]}, {},
    ]  # fmt: skip
    made = []
    for i in range(15):
        more = {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "min_tokens": 9} if i % 3 == 0 else {}
        settings = sampling(tokenizer, i, **kinds[i % 5], n=1 + i % 2, max_tokens=90, logprobs=2 * (i % 4 == 0), **more)
        prompt = [*shared, *rng.integers(0, 256, 1 + 7 * i).tolist()]
        made.append(Request(prompt, settings, frozenset(tokenizer.stop_ids)))
    return made


@pytest.mark.parametrize(
    "limits",
    [{}, {"most_tokens": 7}, {"blocks": 30}, {"most_running": 3}],
    ids=["together", "chunked", "pre-empted", "queued"],
)
@pytest.mark.parametrize("rung", RUNGS)
def test_what_is_said_is_the_same_as_alone(
    rung: Any, long_model: Decoder, tokenizer: Tokenizer, limits: dict[str, Any]
) -> None:
    def make(**limits: Any) -> Engine:
        return Engine(rung(long_model), long_model.config, tokenizer, **limits)

    some = constrained(tokenizer)
    alone = [make().generate([request])[0] for request in some]
    engine = make(**limits)
    for _ in range(2):  # the second time with every beginning in the cache
        said = engine.generate(some)
        assert [[(c.tokens, c.logprobs, c.text) for c in each] for each in said] == [
            [(c.tokens, c.logprobs, c.text) for c in each] for each in alone
        ]
    assert engine.free_blocks == engine.blocks
    assert bool(engine.preemptions) == ("blocks" in limits)


def test_length_comes_first_and_says_so(engine: Engine, tokenizer: Tokenizer) -> None:
    short = say(engine, json_schema=BOB, max_tokens=4)
    assert (len(short.tokens), short.finish_reason) == (4, "length")


def test_stop_tokens_count_where_the_answer_may_end(engine: Engine, tokenizer: Tokenizer) -> None:
    digits = say(engine, regex="[0-9]{3,}", stop_ids=tuple(range(48, 53)))
    assert re.fullmatch("[5-9]{3,}", digits.text)
    assert digits.finish_reason == "stop"
    some = [say(engine, seed, regex="[0-9]{3,}", max_tokens=200) for seed in range(10)]
    assert {said.finish_reason for said in some} <= {"stop", "length"}
    assert all(len(said.text) >= 3 for said in some)
    late = say(engine, 1, regex="[0-9]{3,}", min_tokens=30, max_tokens=60)
    assert len(late.tokens) >= 30


def test_contradictions_end_with_a_reason(engine: Engine, tokenizer: Tokenizer) -> None:
    done = say(engine, choices=["yes"], min_tokens=50)
    assert (done.text, done.finish_reason) == ("yes", "stop"), "what is complete ends, however little it is"
    assert say(engine, regex="(a)?", min_tokens=9, suppress_tokens=(97,)).tokens == []
    with pytest.raises(AthanorError, match="Nothing is left to be said"):
        say(engine, regex="a", suppress_tokens=(97,))
    with pytest.raises(AthanorError, match="Nothing is left to be said"):
        say(engine, json_schema=BOB, allowed_tokens=(97, 98))
    with pytest.raises(AthanorError, match="stop does not go with a constraint"):
        say(engine, json_schema=BOB, stop=('"age"',))
    with pytest.raises(AthanorError, match="does not go with beams"):
        say(engine, json_schema=BOB, beams=2, temperature=0.0)
    forced = say(engine, choices=["the old furnace"]).tokens
    with pytest.raises(AthanorError, match="Nothing is left to be said"):
        say(engine, choices=["the old furnace"], suppress_tokens=(forced[-1],))
    assert engine.free_blocks == engine.blocks


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"json_schema": {"type": "strin"}}, "Invalid type: strin"),
        ({"json_schema": "{"}, "not JSON|EOF"),
        ({"json_schema": "[1]"}, "object"),
        ({"json_schema": "false"}, "cannot be used"),
        ({"json_schema": {"type": "integer", "minimum": 5, "maximum": 3}}, "Unsatisfiable"),
        ({"json_schema": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"json_schema": {"$ref": "http://example.com/x.json"}}, "example.com"),
        ({"json_schema": {"$ref": "#"}}, "allows nothing"),
        ({"json_schema": {"enum": [f"w{i}" for i in range(9000)]}}, "characters"),
        ({"json_schema": {"a": {1, 2}}}, "not JSON"),
        ({"regex": "(a"}, "unclosed group"),
        ({"regex": r"(a)\1"}, "backreferences"),
        ({"regex": "a?b?" * 3000}, "too many"),
        ({"regex": "(" * 15000 + "a" + ")" * 15000}, "nest|deep"),
        ({"regex": "[^\\x00-\\U0010FFFF]"}, "allows nothing"),
        ({"regex": 7}, "no text"),
        ({"grammar": 'start: "a" b'}, 'unknown name: "b"'),
        ({"grammar": "start: start"}, "allows nothing"),
        ({"grammar": "start: <|im_end|>"}, "special token"),
        ({"choices": []}, "at least one"),
        ({"choices": "yes"}, "no list"),
        ({"regex": "a", "any_json": True}, "cannot both hold"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_with_a_sentence(engine: Engine, wanted: dict[str, Any], message: str) -> None:
    start = time.perf_counter()
    with pytest.raises(AthanorError, match=message) as caught:
        say(engine, **wanted)
    assert len(str(caught.value)) < 400
    assert time.perf_counter() - start < 20
    assert engine.free_blocks == engine.blocks


@pytest.mark.parametrize(
    "asked", [{"regex": "[a-z]{60}"}, {"regex": "(the old furnace [a-z]){20}", "logprobs": 2}], ids=["free", "forced"]
)
def test_one_that_becomes_too_complex_fails_alone(
    long_model: Decoder, tokenizer: Tokenizer, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine.of(long_model, tokenizer, drafter=Lookup())
    free = Request([4, 5], sampling(tokenizer, 3, max_tokens=40))
    expected = engine.generate([free])[0][0].tokens
    for method in ("allowed", "push"):
        with monkeypatch.context() as patch:
            calls, before = list[int](), getattr(Guide, method)

            def failing(self: Guide, *token: int, calls: list[int] = calls, before: Any = before) -> Any:
                calls.append(1)
                if len(calls) > 9:
                    raise AthanorError("The constraint cannot be followed: too many states.")
                return before(self, *token)

            patch.setattr(Guide, method, failing)
            held = engine.submit(Request([1], sampling(tokenizer, 1, max_tokens=390, **asked)))
            other = engine.submit(free)
            with pytest.raises(AthanorError, match="too many states"):
                held.result()
            assert other.result()[0].tokens == expected
        assert engine.free_blocks == engine.blocks


@pytest.mark.parametrize("kind", ["rules", "definitions"])
def test_deep_grammars_do_not_end_the_process(engine: Engine, kind: str) -> None:
    if kind == "rules":
        wanted: dict[str, Any] = {
            "grammar": "start: a0\n" + "\n".join(f"a{i}:a{i + 1}" for i in range(2400)) + '\na2400:"x"'
        }
    else:
        chain = {f"a{i}": {"type": "array", "items": {"$ref": f"#/$defs/a{i + 1}"}} for i in range(500)}
        wanted = {"json_schema": {"$ref": "#/$defs/a0", "$defs": {**chain, "a500": {"type": "null"}}}}
    said = say(engine, **wanted)
    assert said.text[0] in "x["


def foreign(kind: str) -> ForeignTokenizer:
    letters = [BLANK, *string.printable[:95].replace(" ", "")]
    words = [f"{BLANK}a", "am", '"n', "name", '":', f'{BLANK}"', '{"', f"{BLANK}{{"]
    control = ["<unk>", "<s>", "</s>"]
    single = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = [*control, *single, *dict.fromkeys([*letters, *words])]
    if kind == "sentencepiece":
        merges = [[w[:i], w[i:]] for w in words for i in (1, 2, 3) if w[:i] in tokens and w[i:] in tokens]
        document = sentencepiece_bpe(tokens, merges, unknown="<unk>", space_prefix=True)
    else:
        scores = [0.0] * len(control) + [-9.0] * 256 + [-float(9 - len(t)) for t in tokens[259:]]
        document = unigram(
            tokens, scores, unknown_id=0, byte_fallback=True, characters=b"", space_prefix=True, merge_spaces=False
        )
    document["added_tokens"] = [added_token(i, name, True) for i, name in enumerate(control)]
    return ForeignTokenizer(document, stop_ids=(2,), template=None, names={})


@pytest.mark.parametrize("kind", ["sentencepiece", "unigram"])
def test_tokenizers_of_others(kind: str) -> None:
    tokenizer = foreign(kind)
    engine = Engine.of(random_model(4, tokenizer.vocab_size + 5, max_seq_len=400), tokenizer)
    beyond = (*range(tokenizer.vocab_size, tokenizer.vocab_size + 5),)
    for seed in range(6):
        said = say(engine, seed, json_schema=BOB)
        jsonschema.validate(json.loads(text_of(said, tokenizer)), BOB)
        assert not set(said.tokens[:-1]) & {0, 1, 2, *beyond}
    forced = Guidance(tokenizer, tokenizer.vocab_size).guide(Constraint("choices", '["a name"]')).forced()
    assert tokenizer.decode_bytes(forced) == b"a name"[: len(tokenizer.decode_bytes(forced))]
    assert len(forced) < 6, "cut as the tokenizer would"


def test_keywords_of_a_language_model(lm: LanguageModel) -> None:
    messages = [{"role": "user", "content": "?"}]
    for reply in lm.chat_many([messages] * 2, choices=["ja", "nein"], n=3, seed=1):
        assert reply.text in ("ja", "nein")
    assert "".join(piece.text for piece in lm.stream("x", regex="[ab]{3}", seed=2)) in {
        a + b + c for a in "ab" for b in "ab" for c in "ab"
    }
    with pytest.raises(AthanorError, match=r"Known: .*json_schema"):
        lm.generate("x", json_scheme={})


def test_without_a_tokenizer(model: Decoder) -> None:
    with pytest.raises(AthanorError, match="tokenizer"):
        Engine.of(model).submit(Request([1], Sampling(constraint=Constraint("regex", "a"))))
