"""`athanor chat`: through a pipe, in a terminal, and its logic with a model that says what the test wants."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from athanor.base.errors import AthanorError
from athanor.engine.terminal_chat import TerminalChat, printable

Athanor = Callable[..., "subprocess.CompletedProcess[str]"]


class FakeModel:
    """Counts a token a character and answers from a list; an exception in the list is raised mid-answer."""

    def __init__(self, answers: list[Any], context: int = 1000) -> None:
        self.said, self.seen = iter(answers), []
        config = type("Config", (), {"max_seq_len": context})()
        self.model = type("Model", (), {"config": config})()

    def sampling(self, changes: dict[str, Any]) -> Any:
        return type("Sampling", (), {"max_tokens": changes.get("max_tokens", 256)})()

    def chat_prompt(self, messages: list[dict[str, str]]) -> list[int]:
        return [0] * sum(len(message["content"]) for message in messages)

    def stream(self, messages: list[dict[str, str]], **_: Any) -> Iterator[Any]:
        from athanor.engine.language_model import Piece, Reply

        self.seen.append([(message["role"], message["content"]) for message in messages])
        text = ""
        for part in next(self.said):
            if isinstance(part, BaseException):
                raise part
            text += part
            yield Piece(part)
        timings = {"prompt_tokens": 3, "completion_tokens": len(text), "seconds": 1.0, "first_token_seconds": 0.1}
        yield Piece("", Reply(text, [1] * len(text), "stop", timings | {"tokens_per_second": 10.0}))


def chat_with(
    answers: list[Any], context: int = 1000, **options: Any
) -> tuple[TerminalChat, FakeModel, io.StringIO, io.StringIO]:
    model, out, notes = FakeModel(answers, context), io.StringIO(), io.StringIO()
    loaded: Future[Any] = Future()
    loaded.set_result(model)
    return TerminalChat(loaded, options, "", out, notes), model, out, notes


def test_turns_follow_each_other() -> None:
    chat, model, out, _ = chat_with([["Hi", " there"], ["Fine"]])
    chat.answer_lines(["/system Be kind.\n", "Hello\n", "\n", "  How are you?\n"])
    assert out.getvalue() == "Hi there\nFine\n"
    assert model.seen[1] == [
        ("system", "Be kind."), ("user", "Hello"), ("assistant", "Hi there"), ("user", "How are you?"),
    ]  # fmt: skip


def test_a_stopped_answer_stays_as_far_as_it_went() -> None:
    chat, model, out, _ = chat_with([["One", " two", KeyboardInterrupt()], [KeyboardInterrupt()], ["ok"]])
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            chat.take("Count")
    chat.take("Go on")
    assert out.getvalue() == "One two\n\nok\n"
    assert model.seen[-1] == [("user", "Count"), ("assistant", "One two"), ("user", "Go on")]


def test_ctrl_c_at_the_prompt_leaves_the_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    chat, _, out, notes = chat_with([["a"], [KeyboardInterrupt()]])
    typed = iter([KeyboardInterrupt(), "x", "y", KeyboardInterrupt(), KeyboardInterrupt()])

    def type_next(_: str) -> str:
        value = next(typed)
        if isinstance(value, BaseException):
            raise value
        return value

    monkeypatch.setattr("builtins.input", type_next)
    chat.converse()
    assert next(typed, None) is None
    assert out.getvalue() == "a\n\n"
    assert notes.getvalue().count("leaves") == 2
    assert "(stopped)" in notes.getvalue()


def test_oldest_turns_are_left_out_and_kept_for_saving(tmp_path: Path) -> None:
    chat, model, _, notes = chat_with([["b" * 20]] * 6, context=100, max_tokens=30)
    chat.system = "s" * 10
    for letter in "uvwxyz":
        chat.take(letter * 15)
    for seen in model.seen:
        assert seen[0] == ("system", "s" * 10)
        assert seen[1][0] == "user"
        assert sum(len(text) for _, text in seen) <= 70
    assert model.seen[-1][-1] == ("user", "z" * 15)
    assert "left out" in notes.getvalue()
    chat.take(f"/save {tmp_path / 'talk.json'}")
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert len(saved) == 13
    assert saved[1] == {"role": "user", "content": "u" * 15}


def test_a_message_that_cannot_fit_is_refused_and_forgotten() -> None:
    chat, model, _, _ = chat_with([["b"], ["c"]], context=100)
    chat.take("first")
    with pytest.raises(AthanorError, match="takes 150 tokens"):
        chat.take("x" * 150)
    chat.take("second")
    assert model.seen[-1] == [("user", "first"), ("assistant", "b"), ("user", "second")]


def test_commands(tmp_path: Path) -> None:
    chat, model, _, notes = chat_with([["b"], ["c"], ["d"]])
    assert chat.take("/help")
    assert chat.take("/frobnicate now")
    assert "There is no command /frobnicate." in notes.getvalue()
    assert notes.getvalue().count("/save FILE") == 2
    chat.take("one")
    chat.take("/stats")
    assert "10 tokens/s" in notes.getvalue()
    assert "context: 4 of 1000" in notes.getvalue()
    chat.take("/system Be brief.")
    chat.take("/reset")
    chat.take("two")
    assert model.seen[-1] == [("system", "Be brief."), ("user", "two")]
    chat.take("/system")
    chat.take(" /not a command")
    assert model.seen[-1] == [("user", "two"), ("assistant", "c"), ("user", "/not a command")]
    assert not chat.take("/quit")


def test_saving_harms_no_other_file(tmp_path: Path) -> None:
    chat, _, _, notes = chat_with([["b"], ["c"]])
    precious = tmp_path / "notes.txt"
    precious.write_text("precious")
    chat.take("one")
    assert chat.take(f"/save {precious}"), "the conversation goes on"
    assert "exists already" in notes.getvalue()
    assert precious.read_text() == "precious"
    for name in ("", tmp_path, precious / "below"):
        assert chat.take(f"/save {name}")
    assert "Saved" not in notes.getvalue()
    mine = tmp_path / "mine.json"
    chat.take(f"/save {mine}")
    chat.take("two")
    chat.take(f"/save {mine}")
    assert len(json.loads(mine.read_text())) == 4


HOSTILE = "a\x1b[31mred\x1b]0;title\x07\x9b2J\r\x08b\x7f\u202egnp.exe\n\t炉👩‍🚀"


def test_nothing_printed_can_drive_the_terminal() -> None:
    assert printable(HOSTILE) == "a[31mred]0;title2Jbgnp.exe\n\t炉👩‍🚀"
    chat, model, out, notes = chat_with([list(HOSTILE)])
    chat.take("say \x1b[2Jthis")
    chat.take("/\x1b[2J")
    assert model.seen[0] == [("user", "say [2Jthis")]
    for text in (out.getvalue(), notes.getvalue()):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)


def test_piped_lines_are_answered_without_decoration(athanor: Athanor, model_folder: Path) -> None:
    import athanor as package

    done = athanor(
        "chat",
        model_folder,
        "--max-tokens",
        "8",
        "--seed",
        "1",
        "--system",
        "Be kind.",
        stdin="the old\n/stats\n炉火\n",
    )
    assert done.returncode == 0, done.stderr
    lm = package.load(model_folder)
    messages = [{"role": "system", "content": "Be kind."}]
    expected = ""
    for question in ("the old", "炉火"):
        messages.append({"role": "user", "content": question})
        text = lm.chat(messages, max_tokens=8, seed=1).text
        messages.append({"role": "assistant", "content": text})
        expected += printable(text) + "\n"
    assert done.stdout == expected
    assert "of 4096 tokens" in done.stderr


def test_chat_takes_the_latest_run(athanor: Athanor, model_folder: Path, tmp_path: Path) -> None:
    done = athanor("chat")
    assert done.returncode == 2
    assert "No run here" in done.stderr
    stage = tmp_path / "runs" / "first" / "pretrain"
    stage.mkdir(parents=True)
    (stage / "model").symlink_to(model_folder)
    (stage / "stage.json").write_text('{"status": "finished"}')
    (stage.parent / "run.json").write_text('{"models": ["pretrain", "sft"]}')
    done = athanor("chat", "--max-tokens", "2", stdin="x\n")
    assert done.returncode == 0, done.stderr


class Terminal:
    """A process on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        import pty

        self.parent, child = pty.openpty()
        command = [sys.executable, "-m", "athanor.cli.main", *arguments]
        self.process = subprocess.Popen(
            command, stdin=child, stdout=child, stderr=child, start_new_session=True, close_fds=True,
            env=os.environ | {"TERM": "dumb", "OMP_NUM_THREADS": "1"},
            # A background job's children ignore Ctrl-C; a terminal's do not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        os.close(child)
        self.text = ""

    def expect(self, pattern: str, seconds: float = 30) -> str:
        """Reads until `pattern` appears in what came since the last call."""
        import select

        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.text)):
            assert time.monotonic() < deadline, f"waited for {pattern!r}, got {self.text[-2000:]!r}"
            if select.select([self.parent], [], [], 0.2)[0]:
                try:
                    self.text += os.read(self.parent, 65536).decode("utf-8", "replace")
                except OSError as error:  # the other end is closed
                    raise AssertionError(f"ended before {pattern!r}: {self.text[-2000:]!r}") from error
        before, self.text = self.text[: found.end()], self.text[found.end() :]
        return before

    def send(self, text: str) -> None:
        os.write(self.parent, text.encode())

    def interrupt(self) -> None:
        time.sleep(0.3)  # between showing a prompt and waiting for keys, CPython notes a signal only at the next key
        os.killpg(self.process.pid, signal.SIGINT)


@pytest.fixture
def terminal(model_folder: Path) -> Iterator[Terminal]:
    pytest.importorskip("pty")
    # min-p leaves out the stop tokens, which are never likely here: the answer is long enough to be interrupted.
    sampling = ("--max-tokens", "4000", "--temperature", "1", "--min-p", "0.3", "--seed", "5")
    process = Terminal("chat", str(model_folder), *sampling)
    yield process
    process.process.kill()
    process.process.wait()
    os.close(process.parent)


def test_ctrl_c_stops_an_answer_then_leaves(terminal: Terminal) -> None:
    terminal.expect("> ")
    terminal.send("the old\n")
    terminal.expect("the old\r\n.{20}")
    terminal.interrupt()
    terminal.expect(r"\(stopped\)\r\n> ")
    terminal.send("/stats\n")
    used = terminal.expect(r"context: \d+ of 4096 tokens")
    assert int(re.findall(r"context: (\d+)", used)[0]) > 20
    terminal.expect("> ")
    terminal.interrupt()
    terminal.expect("Ctrl-C again")
    terminal.expect("> ")
    terminal.interrupt()
    assert terminal.process.wait(20) == 0


def test_the_speed_is_told_after_an_answer(terminal: Terminal) -> None:
    terminal.expect("> ")
    terminal.send("/system x\n")
    terminal.expect("> ")
    terminal.send("the old\n")
    assert "\x1b" not in terminal.expect(r"first token after \d+\.\d\d s, then \d+ tokens/s\r\n> ", 60)


def test_what_cannot_be_loaded_interrupts_the_prompt(model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("pty")
    process = Terminal("chat", str(model_folder), "--logit-bias", "100000=1")
    process.expect("error: logit_bias names ids that this model of 384 does not have")
    assert process.process.wait(20) == 2
    os.close(process.parent)


def test_ctrl_d_leaves(terminal: Terminal) -> None:
    terminal.expect("> ")
    terminal.send("\x04")
    assert terminal.process.wait(20) == 0
