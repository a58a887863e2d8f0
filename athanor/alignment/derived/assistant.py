"""How the assistant behaves, in our own words: small talk, what it cannot know, system prompts, several turns.

Each public function draws one conversation: (random, split) -> conversation. Problems inside a conversation come from
the environments' own split, so that a held-out problem cannot be learnt here either. Small talk is held out by wording:
the replies are the same on both sides on purpose.
"""

from __future__ import annotations

import re

import numpy as np

from athanor.alignment.derived.phrases import SMALL_TALK, UNKNOWABLE, Table
from athanor.alignment.messages import Conversation, exchange
from athanor.environments.base import LANGUAGES, Language, Problem, Split, is_held_out, pick
from athanor.environments.identity import NAME_REPLIES
from athanor.environments.language import number_in_chinese, number_in_english
from athanor.environments.registry import load_environment
from athanor.environments.vocabulary import NAMES, NAMES_ZH, WORDS, WORDS_ZH

_HELLO: dict[Language, str] = {language: table[0][0] for language, table in SMALL_TALK.items()}


def _language(random: np.random.Generator) -> Language:
    return LANGUAGES[int(random.integers(len(LANGUAGES)))]


def _entry(random: np.random.Generator, table: Table, language: Language) -> tuple[str, str, str]:
    """(reply, saying, addition) from a table."""
    reply, sayings, additions = table[language][int(random.integers(len(table[language])))]
    return reply, pick(random, sayings), pick(random, additions)


def _small_talk(random: np.random.Generator, split: Split, language: Language) -> tuple[str, str]:
    """(saying, reply); the wording is of this split, also when it is one turn of several."""
    while True:
        reply, saying, addition = _entry(random, SMALL_TALK, language)
        text = saying + addition
        if is_held_out(f"small_talk:{text.casefold()}") == (split == "heldout"):
            return (text.lower() if random.random() < 0.2 else text), reply


def small_talk(random: np.random.Generator, split: Split) -> Conversation:
    language = _language(random)
    return Conversation(exchange(*_small_talk(random, split, language)), "small_talk", language)


def unknowable(random: np.random.Generator, split: Split) -> Conversation:
    """A polite no to what a model without clock, senses or memory of the user cannot know."""
    language = _language(random)
    reply, question, before = _entry(random, UNKNOWABLE, language)
    text = before + question
    return Conversation(exchange(text[0].upper() + text[1:], reply), "unknowable", language)


def number_facts(random: np.random.Generator, split: Split) -> Conversation:
    """Zero to nineteen in words: facts to learn by heart, from which larger numbers are built (held out by wording)."""
    language = _language(random)
    number = int(random.integers(20))
    words = number_in_english(number) if language == "en" else number_in_chinese(number)
    ask = {
        "en": (
            "Write {} in words.",
            "{} in words?",
            "How do you say {} in English?",
            "Spell out the number {}.",
            "{} is which word?",
        ),
        "zh": ("用汉字写出{}。", "{}用中文怎么说？", "把{}写成汉字。", "{}怎么写成汉字？", "{}的汉字是什么？"),
    }
    back = {
        "en": (
            "Write {} in digits.",
            "{} in digits?",
            "Which number is {}?",
            "{} as a number?",
            "What is {} in digits?",
        ),
        "zh": ("把{}写成数字。", "{}是哪个数字？", "用数字写出{}。", "{}是几？", "{}的数字是什么？"),
    }
    if random.integers(2):
        return Conversation(exchange(pick(random, ask[language]).format(number), words), "number_facts", language)
    return Conversation(exchange(pick(random, back[language]).format(words), str(number)), "number_facts", language)


def _easy_problem(
    random: np.random.Generator, split: Split, names: tuple[str, ...], language: Language | None = None
) -> Problem:
    """One of the easier problems of these environments, in this language if one is given."""
    environment = load_environment(pick(random, names))
    while True:
        level = environment.levels[int(random.integers(min(3, len(environment.levels))))]
        problem = environment.problem(int(random.integers(1 << 31)), level, 0, split)
        if language in (None, problem.language):
            return problem


def _asked_name(random: np.random.Generator, split: Split, language: Language) -> str:
    """A question whose plain answer is the assistant's name."""
    while (problem := _easy_problem(random, split, ("identity",), language)).meta["solution"] not in NAME_REPLIES:
        pass
    return problem.prompt


def _system_name(random: np.random.Generator, split: Split, language: Language) -> Conversation:
    if language == "en":
        name = pick(random, NAMES)
        system = pick(random, ("Your name is {}.", "You are called {}.", "You are {}, a helpful assistant.")).format(
            name
        )
        question, reply = _asked_name(random, split, language), f"My name is {name}."
        return Conversation(exchange(question, reply, system=system), "system", language)
    name = pick(random, NAMES_ZH)
    system = pick(random, ("你的名字是{}。", "你叫{}。", "你是{}，一个有用的助手。")).format(name)
    question, reply = _asked_name(random, split, language), f"我叫{name}。"
    return Conversation(exchange(question, reply, system=system), "system", language)


def _system_language(random: np.random.Generator, split: Split, language: Language) -> Conversation:
    """The system prompt names the language of the reply, the question comes in either."""
    orders = {
        "en": ("Answer in English.", "Always reply in English.", "请用英文回答。", "只说英文。"),
        "zh": ("Answer in Chinese.", "Always reply in Chinese.", "请用中文回答。", "只说中文。"),
    }
    asked = _language(random)
    question, reply = _asked_name(random, split, asked), NAME_REPLIES[LANGUAGES.index(language)]
    if random.integers(2):
        while True:
            question, usual = _small_talk(random, split, asked)
            if usual == _HELLO[asked]:
                break
        reply = _HELLO[language]
    return Conversation(exchange(question, reply, system=pick(random, orders[language])), "system", language)


def _system_brief(random: np.random.Generator, split: Split, language: Language) -> Conversation:
    """Only the answer, without the working or the label that would stand before it."""
    orders = {
        "en": ("Give only the answer.", "Answer with the result only.", "Be brief."),
        "zh": ("只给出答案。", "只回答结果。", "请简短回答。"),
    }
    names = ("reversing", "sorting_letters", "spelling", "sorting_numbers", "reading", "comparing")
    problem = _easy_problem(random, split, names, language)
    return Conversation(
        exchange(problem.prompt, problem.answer, system=pick(random, orders[language])), "system", language
    )


def _system_opening(random: np.random.Generator, split: Split, language: Language) -> Conversation:
    """A word to begin every answer with."""
    word = pick(random, WORDS if language == "en" else WORDS_ZH)
    order = {"en": "Begin every answer with the word {}.", "zh": "每次回答都以“{}”开头。"}[language].format(word)
    problem = _easy_problem(random, split, ("copying", "comparing", "reading"), language)
    reply = f"{word[0].upper()}{word[1:]}: {problem.answer}" if language == "en" else f"{word}：{problem.answer}"
    return Conversation(exchange(problem.prompt, reply, system=order), "system", language)


def system_prompt(random: np.random.Generator, split: Split) -> Conversation:
    """Following a system prompt: a name, a language, brevity, an opening word."""
    kinds = (_system_name, _system_language, _system_brief, _system_opening)
    return kinds[int(random.integers(len(kinds)))](random, split, _language(random))


def _remember_name(random: np.random.Generator, split: Split, language: Language) -> tuple[str, ...]:
    between: tuple[str, ...] = ()
    if random.integers(2):
        problem = _easy_problem(random, split, ("copying", "addition", "comparing"), language)
        between = (problem.prompt, load_environment(problem.task).solution(problem))
    if language == "en":
        name = pick(random, NAMES)
        tell = pick(
            random, ("My name is {}.", "I am {}.", "Hello, I am {}.", "Call me {}.", "Hi, my name is {}.")
        ).format(name)
        ask = pick(random, ("What is my name?", "Who am I?", "Do you remember my name?", "What am I called?"))
        return (tell, f"Nice to meet you, {name}.", *between, ask, f"Your name is {name}.")
    name = pick(random, NAMES_ZH)
    tell = pick(random, ("我叫{}。", "我的名字是{}。", "你好，我是{}。", "叫我{}吧。")).format(name)
    ask = pick(random, ("我叫什么名字？", "我是谁？", "你记得我的名字吗？", "我叫什么？"))
    return (tell, f"很高兴认识你，{name}。", *between, ask, f"你叫{name}。")


def _follow_up(random: np.random.Generator, split: Split, language: Language) -> tuple[str, ...]:
    """A second sum that leans on the first: "And 3+4?"."""
    first, second = (_easy_problem(random, split, ("addition",), language) for _ in range(2))
    then = pick(random, ("And {}?", "What about {}?", "Now {}.") if language == "en" else ("那{}呢？", "再算{}。"))
    operands = "+".join(re.findall(r"\d+", second.prompt))
    solution = load_environment("addition").solution
    return (first.prompt, solution(first), then.format(operands), solution(second))


def _say_again(random: np.random.Generator, split: Split, language: Language) -> tuple[str, ...]:
    problem = _easy_problem(random, split, ("copying",), language)
    again = pick(
        random,
        ("Say it again.", "Once more, please.", "Repeat that.") if language == "en" else ("再说一遍。", "请重复一次。"),
    )
    return (problem.prompt, problem.answer, again, problem.answer)


def _mixed(random: np.random.Generator, split: Split, language: Language) -> tuple[str, ...]:
    """A greeting or a question about itself, one or two problems, perhaps thanks."""
    turns = list(_small_talk(random, split, language))
    if random.integers(2):
        problem = _easy_problem(random, split, ("identity",), language)
        turns = [problem.prompt, problem.meta["solution"]]
    names = ("addition", "subtraction", "reversing", "copying", "spelling", "comparing", "sorting_letters")
    for _ in range(int(random.integers(1, 3))):
        problem = _easy_problem(random, split, names, language)
        turns += [problem.prompt, load_environment(problem.task).solution(problem)]
    if random.integers(2):
        turns += {"en": ["Thank you!", "You are welcome!"], "zh": ["谢谢！", "不客气！"]}[language]
    return tuple(turns)


def several_turns(random: np.random.Generator, split: Split) -> Conversation:
    """Conversations in which later turns lean on earlier ones, or follow other matters."""
    language = _language(random)
    kinds = (_remember_name, _follow_up, _say_again, _mixed)
    turns = kinds[int(random.integers(len(kinds)))](random, split, language)
    return Conversation(exchange(*turns), "several_turns", language)
