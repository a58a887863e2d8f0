"""What an answer may look like: JSON, a JSON Schema, a regular expression, one of some choices, or a grammar.

llguidance says which tokens may come next; its regular expressions are those of Rust's `regex`, its grammars Lark's.
JSON has a blank after each comma and colon and no other, so that it ends. Whatever could take unbounded time or memory
has a bound: the text of a constraint here, its automata and each step by the library's own limits.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np

from athanor.base.errors import AthanorError
from athanor.tokenizer import Tokenizer
from athanor.tokenizer.foreign import ForeignTokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

Kind = Literal["json_schema", "regex", "choices", "grammar"]
KEYWORDS = ("any_json", "json_schema", "regex", "choices", "grammar")

_MOST_CHARACTERS = 32_768  # the library takes seconds for the worst of this length, and minutes for three times as much
_MOST_COMPILED = 64
_STACK = 256 << 20  # bytes: the library descends into grammars recursively
_MESSAGE = 200
_ANY_JSON = {"type": ["object", "array"]}
_BLANKS: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

T = TypeVar("T")


@dataclass(frozen=True)
class Constraint:
    """source: the schema or the list of choices as JSON, the expression, or the grammar in Lark's notation."""

    kind: Kind
    source: str

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise AthanorError(f"There is no constraint {self.kind!r}.", f"Accepted: {', '.join(get_args(Kind))}.")
        if not isinstance(self.source, str) or len(self.source) > _MOST_CHARACTERS:
            raise AthanorError(
                f"The {_NAMES[self.kind]} is no text of at most {_MOST_CHARACTERS:,} characters.", "Make it simpler."
            )
        if self.kind == "choices":
            choices = _parsed(self.source)
            if not isinstance(choices, list) or not choices or not all(isinstance(c, str) and c for c in choices):
                raise AthanorError("The choices are no list of texts that are not empty.", "Give at least one.")


_NAMES = {
    "json_schema": "JSON Schema",
    "regex": "regular expression",
    "choices": "list of choices",
    "grammar": "grammar",
}


def constraint_of(wanted: Mapping[str, Any]) -> Constraint | None:
    """The one that keywords ask for: any_json=True (an object or array), json_schema (as an object or as JSON), regex,
    choices (texts) or grammar; None without any. Raises AthanorError for several.
    """
    given = {name: value for name, value in wanted.items() if value is not None and value is not False}
    if not given:
        return None
    if len(given) > 1:
        raise AthanorError(f"{' and '.join(given)} cannot both hold.", "Give one constraint.")
    ((name, value),) = given.items()
    if name == "any_json":
        return Constraint("json_schema", json.dumps(_ANY_JSON))
    if name == "choices" or (name == "json_schema" and not isinstance(value, str)):
        return Constraint("choices" if name == "choices" else "json_schema", _dumped(value))
    return Constraint(name, value)  # type: ignore[arg-type]


def _dumped(value: Any) -> str:
    try:
        return json.dumps(list(value) if isinstance(value, tuple | set) else value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise AthanorError(f"A constraint is not JSON ({error}).") from None


def _parsed(source: str) -> Any:
    try:
        return json.loads(source)
    except (ValueError, RecursionError) as error:
        raise AthanorError(f"A constraint is not JSON ({error}).") from None


class Guidance:
    """A tokenizer as the library sees it, and the constraints that were compiled for it.

    vocab_size: of the model; ids that the tokenizer does not know are never allowed, and control tokens neither.
    """

    def __init__(self, tokenizer: Tokenizer | ForeignTokenizer, vocab_size: int) -> None:
        from llguidance import LLTokenizer, TokenizerWrapper

        self.vocab_size = vocab_size
        # The library wants a token for the end; it is none of the model's, for each request has its own.
        words = LLTokenizer(TokenizerWrapper(_Words(tokenizer, vocab_size)))
        self._tokenizer, self._compiled = words, OrderedDict[Constraint, Guide]()
        self._lock = threading.Lock()

    def guide(self, constraint: Constraint) -> Guide:
        """A new answer's. Raises AthanorError for what is invalid or too complex."""
        with self._lock:
            if constraint in self._compiled:
                self._compiled.move_to_end(constraint)
            else:
                self._compiled[constraint] = self._compile(constraint)
                if len(self._compiled) > _MOST_COMPILED:
                    self._compiled.popitem(last=False)
            return self._compiled[constraint].copy()

    def _compile(self, constraint: Constraint) -> Guide:
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(verbose_errors=False)
        matcher = _with_room(lambda: LLMatcher(self._tokenizer, _grammar(constraint), log_level=0, limits=limits))
        name = _NAMES[constraint.kind]
        if not matcher.is_error():
            matcher.compute_bitmask()  # what allows nothing, or is too complex, shows here
        if matcher.stop_reason() == "InternalError" and "NoExtension" in matcher.get_error():
            raise AthanorError(f"The {name} allows nothing that this model could write.", "Mend it.")
        if matcher.is_error():
            raise AthanorError(f"The {name} cannot be used: {_shortened(matcher.get_error())}.")
        return Guide(matcher, self.vocab_size)


class Guide:
    """Where one answer stands within its constraint."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    def copy(self) -> Guide:
        return Guide(self._matcher.deep_copy(), self._vocab_size)

    @property
    def accepts(self) -> bool:
        """Whether the answer may end here."""
        return self._matcher.is_accepting()

    @property
    def is_complete(self) -> bool:
        """Whether it has to."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def allowed(self) -> np.ndarray:
        """(vocab_size,) bool: the tokens that may come next; the end is not among them."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._raise_error()
        return np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(bool)

    def forced(self) -> list[int]:
        """The tokens of the text that has to come next, cut as the tokenizer would; as far as the cut is certain."""
        tokens = self._matcher.compute_ff_tokens()
        return tokens[: self._matcher.validate_tokens(tokens)] if tokens else []

    def takes(self, token: int) -> bool:
        return self._matcher.validate_tokens([token]) == 1

    def push(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._raise_error()

    def _raise_error(self) -> None:
        if self._matcher.is_error():
            raise AthanorError(
                f"The constraint cannot be followed: {_shortened(self._matcher.get_error())}.", "Make it simpler."
            )


def _grammar(constraint: Constraint) -> str:
    from llguidance import LLMatcher

    if constraint.kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(constraint.source, overrides=_BLANKS)
    if constraint.kind == "regex":
        return LLMatcher.grammar_from_regex(constraint.source)
    if constraint.kind == "choices":
        choices = dict.fromkeys(json.loads(constraint.source))
        return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(choice) for choice in choices))
    return LLMatcher.grammar_from_lark(constraint.source)


def _shortened(message: str) -> str:
    """The line that says what is wrong, without what the library quotes."""
    lines = [line.strip() for line in message.splitlines() if line.strip() and not line.startswith("<")]
    said = next(
        (line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0] if lines else ""
    )
    return said.rstrip(".")[:_MESSAGE] or "it is too complex"


def _with_room(make: Callable[[], T]) -> T:
    """The result of `make`, called with a large stack. Raises AthanorError for what the library objects to."""
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(make())
        except BaseException as error:  # the library's panics are no Exception
            failures.append(error)

    with _STARTING:
        before = threading.stack_size(_STACK)
        try:
            thread = threading.Thread(target=run)
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if failures:
        raise AthanorError(f"The constraint cannot be used: {_shortened(str(failures[0]))}.") from None
    return results[0]


_STARTING = threading.Lock()  # the size of a stack is a setting of the whole process


class _Words:
    """What the library wants to know of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer | ForeignTokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        hidden = tokenizer.control_ids
        known = [b"" if i in hidden else _bytes(tokenizer, i) for i in range(tokenizer.vocab_size)]
        self.tokens = [*known, *[b""] * (vocab_size - len(known)), b"end"]
        self.eos_token_id = vocab_size
        self.special_token_ids = [vocab_size]

    def __call__(self, text: bytes | str) -> Sequence[int]:
        """How a text that goes on from another is cut."""
        text = text.decode(errors="replace") if isinstance(text, bytes) else text
        ids, data = self._tokenizer.encode(text), text.encode()
        if self._spell(ids) == data:
            return ids
        ids = self._tokenizer.encode(f"\n{text}")  # some put a blank before the first word
        for start in range(1, min(4, len(ids))):
            if self._spell(ids[:start]).endswith(b"\n") and self._spell(ids[start:]) == data:
                return ids[start:]
        return self._longest(data)

    def _spell(self, ids: Iterable[int]) -> bytes:
        return b"".join(self.tokens[i] for i in ids)

    def _longest(self, data: bytes) -> list[int]:
        """The longest token first; up to the first byte that no token begins with."""
        known, ids = {token: i for i, token in enumerate(self.tokens[:-1]) if token}, list[int]()
        while data:
            size = next((n for n in range(min(len(data), 32), 0, -1) if data[:n] in known), 0)
            if not size:
                break
            ids.append(known[data[:size]])
            data = data[size:]
        return ids


def _bytes(tokenizer: Tokenizer | ForeignTokenizer, token: int) -> bytes:
    try:
        return tokenizer.token_bytes(token)
    except AthanorError:  # a gap in the vocabulary
        return b""
