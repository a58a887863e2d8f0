"""Chat templates in jinja2: ours, which travels with a model, and a safe renderer for other people's.

Our own code lays conversations out with `chat.render`, which also gives the loss mask; the template gives the same ids.
A template that came with a downloaded model is a program, so it runs in jinja2's immutable sandbox without access to
files or Python objects, and with limits on loops, time and output.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, wraps
from pathlib import Path
from typing import Any

from athanor.base.errors import AthanorError, TokenizerError
from athanor.base.files import read_json

CHAT_TEMPLATE = r"""
{%- set tool_list = namespace(text='# Tools') -%}
{%- for tool in tools or [] -%}
  {%- set tool_list.text = tool_list.text + '\n' + (tool | tojson) -%}
{%- endfor -%}
{%- if tools and messages[0].role != 'system' -%}
  {{- '<|im_start|>system\n' + tool_list.text + '<|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages -%}
  {{- '<|im_start|>' + message.role + '\n' -}}
  {%- if message.role == 'system' -%}
    {{- message.content -}}
    {%- if tools and loop.first -%}{{- '\n\n' + tool_list.text -}}{%- endif -%}
  {%- elif message.role == 'user' -%}
    {{- message.content -}}
  {%- elif message.role == 'assistant' -%}
    {{- message.content or '' -}}
    {%- for call in message.tool_calls or [] -%}
      {%- if message.content or not loop.first -%}{{- '\n' -}}{%- endif -%}
      {{- '<tool_call>\n{"name": ' + (call.function.name | tojson) + ', "arguments": ' -}}
      {%- if call.function.arguments is string -%}
        {{- call.function.arguments -}}
      {%- else -%}
        {{- call.function.arguments | tojson -}}
      {%- endif -%}
      {{- '}\n</tool_call>' -}}
    {%- endfor -%}
  {%- elif message.role == 'tool' -%}
    {{- '<tool_response>\n' + message.content + '\n</tool_response>' -}}
  {%- else -%}
    {{- raise_exception('The role must be system, user, assistant or tool.') -}}
  {%- endif -%}
  {{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\n' -}}
{%- endif -%}
""".strip()

MAX_STEPS = 100_000
MAX_SECONDS = 2.0
MAX_CHARACTERS = 16 * 2**20
MAX_SOURCE = 2**18  # characters; the longest in use have a tenth of it

_FILTERS = """
abs attr batch capitalize count d default dictsort e escape first float format groupby int items join last length list
lower map max min reject rejectattr replace reverse round safe select selectattr slice sort string sum title tojson trim
unique upper
"""
_TEXT_METHODS = """
capitalize count endswith find index isalnum isalpha isdecimal isdigit islower isnumeric isspace istitle isupper join
lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit rstrip split splitlines
startswith strip swapcase title upper
"""
"""What templates need; the others make texts of any width."""
_WIDE = re.compile(r"%[^a-zA-Z%]*(\*|[0-9]{4})")


def as_json(value: Any) -> str:
    """JSON as chat templates write it: one line, keys in their own order, no escapes for other alphabets."""
    return json.dumps(value, ensure_ascii=False)


def read_template(folder: Path | str) -> str | None:
    """The chat template of a model folder (`chat_template.jinja` before `tokenizer_config.json`), None if it has none.

    Where the folder has several by name, the one called `default`.
    """
    folder = Path(folder)
    try:
        if (folder / "chat_template.jinja").exists():
            return (folder / "chat_template.jinja").read_text(encoding="utf-8")
        config = read_json(folder / "tokenizer_config.json")
    except (AthanorError, OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"The chat template of {folder} cannot be read ({error}).") from None
    template = config.get("chat_template") if isinstance(config, dict) else None
    if isinstance(template, list):
        named = {str(entry.get("name")): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise TokenizerError(f"{folder / 'tokenizer_config.json'}: chat_template is not text.")
    return template


def render_template(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    **variables: Any,
) -> str:
    """The text that a (foreign) chat template makes of a conversation; `variables` are its others, such as bos_token.

    Loop rounds, filters and calls together are limited to 100,000 and two seconds, the output and what operations make
    to 16 M characters, the filters and the methods of texts to those that templates need. Memory and time are bounded
    by these only roughly: run a stranger's template under limits of the system. The date
    is not offered (`strftime_now`), so that the same conversation always gives the same text.
    Raises TokenizerError when the template is broken, refuses the messages or exceeds a limit.
    """
    if len(template) > MAX_SOURCE:
        raise _limit(f"has more than {MAX_SOURCE:,} characters")
    try:
        source = _environment_class()()
        compiled = source.compile_limited(template)
        pieces: list[str] = []
        length = 0
        for piece in compiled.generate(
            messages=messages, tools=tools, add_generation_prompt=add_generation_prompt, **variables
        ):
            length += len(piece)
            if length > MAX_CHARACTERS:
                raise _limit(f"writes more than {MAX_CHARACTERS:,} characters")
            pieces.append(piece)
    except TokenizerError:
        raise
    except Exception as error:  # whatever the template's own code does wrong is the template's fault
        raise TokenizerError(f"The chat template failed ({type(error).__name__}: {error}).") from None
    return "".join(pieces)


def _limit(what: str) -> TokenizerError:
    return TokenizerError(f"The chat template {what}.", "It is broken or hostile; use another one.")


def _too_large() -> TokenizerError:
    return _limit("makes a value that is too large")


def _raise_exception(message: object) -> None:
    raise TokenizerError(f"The chat template refuses the conversation: {message}")


@cache
def _environment_class() -> type[Any]:
    """The sandbox, defined on first use because jinja2 is imported late."""
    from jinja2 import Template, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationTag(Extension):
        """transformers' `{% generation %}…{% endgeneration %}` around what the assistant says: here only the body."""

        tags = {"generation"}  # noqa: RUF012 - declared as an instance variable by jinja2

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**", "+", "%"})

        def __init__(self) -> None:
            super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationTag])
            self.filters["tojson"] = _to_json_filter
            self.filters = {name: self._counted(name, self.filters[name]) for name in _FILTERS.split()}
            for name in ("lipsum", "cycler", "joiner"):
                del self.globals[name]
            self.globals["raise_exception"] = _raise_exception
            self.steps = 0
            self.deadline = time.monotonic() + MAX_SECONDS

        def step(self) -> str:
            self.steps += 1
            if self.steps > MAX_STEPS or time.monotonic() > self.deadline:
                raise _limit(f"runs for more than {MAX_STEPS:,} steps or {MAX_SECONDS} s")
            return ""

        def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(function)  # with the marks that jinja2 leaves on its filters
            def counted(*values: Any, **options: Any) -> Any:
                self.step()
                _check_call(name, values[bool(getattr(function, "jinja_pass_arg", None)) :])
                return function(*values, **options)

            return counted

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            allowed = not isinstance(obj, str) or attr in _TEXT_METHODS.split()
            return allowed and bool(super().is_safe_attribute(obj, attr, value))

        def wrap_str_format(self, value: Any) -> None:
            """`format` is no method that templates have here."""

        def call(self, context: Any, function: Any, /, *values: Any, **options: Any) -> Any:
            self.step()
            _check_call(getattr(function, "__name__", ""), (getattr(function, "__self__", None), *values))
            return super().call(context, function, *values, **options)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            self.step()
            if _result_size(operator, left, right) > MAX_CHARACTERS:
                raise _too_large()
            return super().call_binop(context, operator, left, right)

        def compile_limited(self, template: str) -> Template:
            """Compiles with a call of `step` at the head of every loop and macro body."""
            tree = self.parse(template)
            repeated: list[nodes.For | nodes.Macro] = [*tree.find_all(nodes.For), *tree.find_all(nodes.Macro)]
            for node in repeated:
                call = nodes.Call(nodes.EnvironmentAttribute("step"), [], [], None, None)
                node.body.insert(0, nodes.Output([call]).set_lineno(node.lineno))
            tree.set_environment(self)
            return self.from_string(tree)

    return Sandbox


def _to_json_filter(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The arguments that transformers gives this filter; jinja2's own escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _check_call(name: str, values: Sequence[Any]) -> None:
    """Raises TokenizerError where a filter or a text's method would make a value that is too large."""
    text = next((value for value in values if isinstance(value, str)), "")
    if name == "join":
        for parts in values:
            if isinstance(parts, list | tuple) and sum(_length(part) + len(text) for part in parts) > MAX_CHARACTERS:
                raise _too_large()
    elif name == "format" and _WIDE.search(text):
        raise _too_large()
    elif name == "replace" and len(values) > 2 and text is values[0]:
        old, new = str(values[1]), str(values[2])
        found = text.count(old)  # of nothing: one more than there are characters
        if len(text) + found * len(new) > MAX_CHARACTERS:
            raise _too_large()


def _result_size(operator: str, left: Any, right: Any) -> int:
    """Length of the text or list, or bits of the number, that an operation would make."""
    if operator == "%":
        return MAX_CHARACTERS + 1 if isinstance(left, str) and _WIDE.search(left) else 0
    if isinstance(left, int) and isinstance(right, int):
        return left.bit_length() * max(0, right) if operator == "**" else 0
    if operator == "+":
        return _length(left) + _length(right)
    if isinstance(left, int):
        left, right = right, left
    return _length(left) * right if isinstance(right, int) else 0


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 0
