"""Other people's chat templates: the same text as transformers makes, nothing outside the sandbox, never for ever."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from athanor.base.errors import TokenizerError
from athanor.tokenizer.templates import CHAT_TEMPLATE, read_template, render_template

MESSAGES = [{"role": "user", "content": "你好 <b>"}, {"role": "assistant", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "<b> & 'q'"}}]
FOREIGN = [
    "{% for m in messages %}[{{ m['role'] }}] {{ m.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}>{% endif %}\n",
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{{ m.content }}"
    "{% endfor %}",
    "{% for m in messages %}\n    {% generation %}{{ m.content }}{% endgeneration %}\n{% endfor %}",
    "{{ tools | tojson(indent=2) }}{{ messages | tojson }}",
    "{% macro show(m) %}<{{ m.content }}>{% endmacro %}{% for m in messages | reverse %}{{ show(m) }}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for i in range(9) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n * 2 ~ '-' * 5 }}",
]


@pytest.mark.parametrize("template", FOREIGN)
@pytest.mark.parametrize("prompt", [False, True])
def test_same_text_as_transformers(template: str, prompt: bool) -> None:
    theirs, _ = render_jinja_template(
        [MESSAGES], tools=TOOLS, chat_template=template, add_generation_prompt=prompt, bos_token="<s>"
    )
    assert render_template(template, MESSAGES, TOOLS, prompt, bos_token="<s>") == theirs[0]


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for a in range(10 ** 9) %}{% endfor %}",
        "{{ 'x' * 10 ** 10 }}",
        "{{ [0] * 10 ** 10 }}",
        "{{ 10 ** (10 ** 10) }}",
        "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set big = 'x' * 999999 %}{% for i in range(999) %}{{ big }}{% endfor %}",
        "{{ 'x'.center(3000000000) }}",
        "{{ 'x' | center(3000000000) }}",
        "{{ '%3000000000d' % 1 }}",
        "{{ '%*d' % (3000000000, 1) }}",
        "{{ '%3000000000d' | format(1) }}",
        "{{ '{:3000000000}'.format(1) }}",
        "{{ ('x' * 4000000).replace('', 'y' * 4000000) }}",
        "{{ ('x,' * 1000000).split(',') | join('y' * 1000000) }}",
        "{{ ('y' * 1000000).join(('x,' * 1000000).split(',')) }}",
        "{{ lipsum(1000000) }}",
        "{% set big = 'x' * 16000000 %}{% for i in range(90000) %}{{ (big | upper)[0] }}{% endfor %}",
        "x" * 300_000,
    ],
)
def test_templates_that_would_run_for_ever(template: str) -> None:
    start = time.monotonic()
    with pytest.raises(TokenizerError):
        render_template(template, MESSAGES)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ raise_exception.__globals__.json }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ open('/etc/passwd') }}",
        "{% for m in messages %}",
        "{{ 1 / 0 }}",
        "{{ nothing.at.all }}",
        "{{ raise_exception('roles must alternate') }}",
    ],
)
def test_what_a_template_may_not_do(template: str) -> None:
    with pytest.raises(TokenizerError, match="chat template"):
        render_template(template, MESSAGES)


def test_formats_filters_and_methods_that_templates_use() -> None:
    template = (
        "{{ '%05.2f|%s' % (3.14159, 'a') }} {{ '%s!' | format('b') }} {{ ['c', 'd'] | map('upper') | join('-') }} "
        "{{ 'e-f'.replace('-', '_').split('_')[1] }} {{ ' '.join(['g', 'h']) }} {{ [1, 2] | length }}"
    )
    assert render_template(template, MESSAGES) == "03.14|a b! C-D f g h 2"


def test_refusal_carries_the_reason() -> None:
    with pytest.raises(TokenizerError, match="roles must alternate"):
        render_template("{{ raise_exception('roles must alternate') }}", MESSAGES)
    with pytest.raises(TokenizerError, match="system, user, assistant or tool"):
        render_template(CHAT_TEMPLATE, [{"role": "robot", "content": "x"}])


def test_read_template(folder: Path, tmp_path: Path) -> None:
    assert read_template(folder) == CHAT_TEMPLATE
    config = tmp_path / "tokenizer_config.json"
    config.write_text("{}", encoding="utf-8")
    assert read_template(tmp_path) is None
    several = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    config.write_text(json.dumps({"chat_template": several}), encoding="utf-8")
    assert read_template(tmp_path) == "d"
    for broken in ("{", json.dumps({"chat_template": 5})):
        config.write_text(broken, encoding="utf-8")
        with pytest.raises(TokenizerError):
            read_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("own file", encoding="utf-8")
    assert read_template(tmp_path) == "own file"
