"""The report card: complete, calm about gaps, safe against hostile text, and the same bytes for the same numbers."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from athanor.base.errors import AthanorError
from athanor.base.files import write_json
from athanor.base.randomness import generator
from athanor.evaluation.report import check_report, not_measured, summary, write_report
from athanor.evaluation.report.__main__ import main
from athanor.evaluation.report.curves import curve, read_log
from athanor.evaluation.report.schema import Report, parse_report

HOSTILE = (
    '<script>alert(1)</script> ]]> " onerror="x" <img src=x onerror=alert(1)> ``` ```` | &amp; </p></style> '
    "\x00\x1b[31m\u202e $x$ {{ 7*7 }}"
)
SECTIONS = (
    "What this model is", "Training curves", "Held-out bits per byte", "Supervised fine-tuning",
    "Reinforcement learning", "Samples", "Machine, plan and time", "Tokenizer", "Corpus", "Lineage",
)  # fmt: skip


def proportion(value: float, n: int = 200) -> dict[str, Any]:
    half = 1.96 * math.sqrt(value * (1 - value) / n) + 0.005
    return {"value": value, "ci95": [max(0.0, value - half), min(1.0, value + half)], "n": n}


def by_stage(base: float, sft: float, rl: float) -> dict[str, float]:
    return {"base": base, "sft": sft, "rl": rl}


def made_up_report() -> dict[str, Any]:
    """Invented figures of a ten-minute run; every key of the schema is there."""
    return json.loads((Path(__file__).parent / "made_up_report.json").read_text(encoding="utf-8"))


def write_logs(folder: Path) -> None:
    random = generator(0, "made-up curves")

    def write(path: str, rows: list[dict[str, Any]]) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("".join(json.dumps(row) + "\n" for row in rows))

    noise = random.normal(size=4000)
    pretrain = [
        {"step": s, "loss": 4.6 + 4.2 * math.exp(-s / 45) - 0.0025 * s + 0.05 * noise[s], "rate": 1.0}
        for s in range(1, 316)
    ]
    for row in pretrain[39::40]:
        row["bits_per_byte"] = 1.86 + 1.1 * math.exp(-row["step"] / 75)
    write("pretrain/metrics.jsonl", pretrain)
    write(
        "pretrain/timing.jsonl",
        [{"step": s, "tokens_per_second": 7100 + 160 * noise[s + 400], "share_of_peak": 0.47} for s in range(1, 316)],
    )
    write(
        "sft/metrics.jsonl",
        [{"step": s, "loss": 1.1 + 1.8 * math.exp(-s / 20) + 0.05 * noise[s + 800]} for s in range(1, 160)],
    )
    write(
        "control/metrics.jsonl", [{"step": s, "loss": 1.06 - 0.0011 * s + 0.05 * noise[s + 1200]} for s in range(1, 81)]
    )
    rl = [
        {
            "step": s, "reward": 0.53 - 0.22 * math.exp(-s / 25) + 0.025 * noise[s + 1600],
            "zero_variance": 0.3 + 0.0015 * s + 0.05 * noise[s + 1800],
            "entropy": 0.3 + 0.4 * math.exp(-s / 30) + 0.02 * noise[s + 2000],
            "length": 9 - 0.02 * s + 0.3 * noise[s + 2200], "kl": 0.0009 * s, "loss": 0.01 * noise[s],
        }
        for s in range(1, 81)
    ]  # fmt: skip
    write("rl/metrics.jsonl", rl)


class PageReader(HTMLParser):
    """What a browser would see: elements with their attributes, and text; void elements have no end."""

    VOID = frozenset({"meta", "img", "link", "br", "input", "hr"})

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.mistakes: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.mistakes.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())


def written(folder: Path, report: dict[str, Any]) -> tuple[str, str]:
    write_report(report, folder)
    return (folder / "report.html").read_text(encoding="utf-8"), (folder / "report.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with its report; tests only read it."""
    folder = tmp_path_factory.mktemp("finished")
    write_logs(folder)
    write_report(made_up_report(), folder)
    return folder


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run folder that has logs and no report yet."""
    write_logs(tmp_path)
    return tmp_path


def test_the_page_is_whole_and_needs_nothing_else(finished: Path) -> None:
    page = (finished / "report.html").read_text(encoding="utf-8")
    reader = PageReader(page)
    assert reader.open == []
    assert reader.mistakes == []
    assert not re.search(r"https?:|//\w|@import|url\((?!#)", page)
    tags = {tag for tag, _ in reader.elements}
    assert not tags & {"script", "img", "link", "iframe", "object", "form"}
    assert not [a for _, attributes in reader.elements for a in attributes if a == "style" or a.startswith("on")]
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {a["href"] for _, a in reader.elements if "href" in a} | {
        a["clip-path"] for _, a in reader.elements if "clip-path" in a
    }
    assert {re.sub(r"^(url\()?#|\)$", "", str(target)) for target in targets} <= set(ids)
    assert all(title in reader.words for title in SECTIONS)
    assert "我是用 Athanor 训练的小语言模型。" in reader.words


def test_markdown_has_every_section_and_its_plots(finished: Path) -> None:
    text = (finished / "report.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \d+\. (.*)$", text, re.M) == list(SECTIONS)
    shown = re.findall(r"!\[[^]]*\]\((plots/[a-z0-9-]+\.svg)\)", text)
    assert sorted(shown) == sorted(p.relative_to(finished).as_posix() for p in (finished / "plots").iterdir())
    assert len(shown) == 15
    for name in shown:
        ElementTree.parse(finished / name)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_equal_reports_give_equal_bytes(finished: Path, run_folder: Path) -> None:
    write_report(made_up_report(), run_folder)

    def contents(folder: Path) -> dict[Path, bytes]:
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    assert contents(finished) == contents(run_folder)
    assert json.loads((run_folder / "report.json").read_text(encoding="utf-8")) == made_up_report()


def test_only_the_section_on_time_depends_on_the_clock(finished: Path, run_folder: Path) -> None:
    def without_time(text: str) -> str:
        return re.sub(r"^## 7\..*?(?=^## 8\.)", "", text, flags=re.M | re.S)

    report = made_up_report()
    report["timing"] |= {"seconds": 999.0, "peak_memory_bytes": 12345}
    report["timing"]["rates"]["bf16"] = 1e9
    for stage in report["timing"]["stages"].values():
        stage |= {"seconds": 77.0, "tokens_per_second": None, "share_of_peak": None}
    before, after = (finished / "report.md").read_text(encoding="utf-8"), written(run_folder, report)[1]
    assert before != after
    assert without_time(before) == without_time(after)


def test_hostile_text_stays_text(run_folder: Path) -> None:
    report = made_up_report()
    report["name"] = HOSTILE
    report["samples"]["completions"] = [{"language": HOSTILE, "stage": HOSTILE, "prompt": HOSTILE, "text": HOSTILE}]
    report["samples"]["chats"] = [
        {"language": "zh", "stage": "rl", "messages": [{"role": HOSTILE, "content": HOSTILE}]}
    ]
    report["recipe"] = {HOSTILE: HOSTILE}
    for table in (
        report["heldout_bits_per_byte"]["by_source"],
        report["corpus"]["by_source"],
        report["rl"]["by_task"],
        report["lineage"],
    ):
        table[HOSTILE] = table.pop(next(iter(table)))
    report["sft"]["exact_match"] = {HOSTILE: {HOSTILE: proportion(0.5)}}
    page, text = written(run_folder, report)
    reader = PageReader(page)
    assert not {tag for tag, _ in reader.elements} & {"script", "img"}
    assert not [a for _, attributes in reader.elements for a in attributes if a.startswith("on")]
    assert reader.mistakes == []
    assert "<script>alert(1)</script>" in reader.words
    assert "{{ 7*7 }}" in reader.words
    assert not set("\x00\x1b\u202e") & set(page + text)
    outside, fence = [], ""
    for line in text.splitlines():
        if marks := re.match(r"`{3,}", line):
            if not fence:
                fence = marks[0]
            elif line == fence:
                fence = ""
        elif not fence:
            outside.append(line)
    assert not fence
    assert not re.search(r"<(?!/?details>|/?summary>)", "\n".join(outside))
    for plot in (run_folder / "plots").iterdir():
        assert not {e.tag.split("}")[1] for e in ElementTree.parse(plot).iter()} & {"script", "img"}


def remove_rl(report: dict[str, Any]) -> None:
    report["rl"] = None
    report["heldout_bits_per_byte"]["rl"] = None
    for results in (
        *report["heldout_bits_per_byte"]["by_source"].values(),
        *report["heldout_bits_per_byte"]["by_language"].values(),
    ):
        results["rl"] = None
    for results in (*report["sft"]["exact_match"].values(), report["sft"]["overall"]):
        del results["rl"]
    for part in (report["stages"], report["timing"]["stages"], report["lineage"]):
        del part["rl"], part["control"]


def remove_everything(report: dict[str, Any]) -> None:
    report |= {"sft": None, "rl": None, "heldout_bits_per_byte": None, "stages": {}, "lineage": {}}
    report["timing"] |= {"stages": {}, "budget_seconds": None, "seconds": 0.0}
    report["samples"] = {"completions": [], "chats": []}
    report["tokenizer"] |= {"bytes_per_token": {}, "tokens_per_character": {"en": None}, "unused_share": None}
    report["corpus"] |= {"by_source": {}, "dropped_by_rule": {}}
    report["model"] = dict.fromkeys(report["model"], 0)
    report["baselines"] = dict.fromkeys(report["baselines"])


def remove_baseline(report: dict[str, Any]) -> None:
    report["baselines"]["kneser_ney_all_text"] = report["baselines"]["all_text_tokens"] = None


def remove_control(report: dict[str, Any]) -> None:
    for found in (report["rl"]["pass_at_1"], report["rl"]["pass_at_8"]):
        found["control"] = found["difference_ci95"]["after_minus_control"] = None
    for task in report["rl"]["by_task"].values():
        task |= {"control": None, "before": None}


@pytest.mark.parametrize("remove", [remove_rl, remove_everything, remove_baseline, remove_control])
def test_what_is_missing_is_said(tmp_path: Path, remove: Callable[[dict[str, Any]], None]) -> None:
    report = made_up_report()
    remove(report)
    assert check_report(report) == []
    page, text = written(tmp_path, report)
    assert PageReader(page).mistakes == []
    assert "not measured" in text
    assert "not measured" in page
    for key in not_measured(report):
        assert key in page


def test_a_whole_report_has_no_gaps() -> None:
    assert check_report(made_up_report()) == []
    assert not_measured(made_up_report()) == []


def test_the_command_says_whether_a_report_is_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.json"
    report = made_up_report()
    outcomes = []
    for change in (lambda: None, lambda: remove_baseline(report), lambda: report.pop("seed")):
        change()
        write_json(path, report)
        outcomes.append((main([str(path)]), capsys.readouterr().out.splitlines()))
    assert outcomes == [
        (0, [f"{path} is complete."]),
        (2, ["baselines.all_text_tokens: not measured", "baselines.kneser_ney_all_text: not measured"]),
        (2, ["seed: Field required"]),
    ]
    assert main([str(tmp_path / "missing.json")]) == 2


def leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The paths of keys whose names the schema fixes."""
    free = {
        ("recipe",),
        ("plan",),
        ("lineage",),
        ("timing", "stages"),
        ("stages",),
        ("samples",),
        ("sft", "exact_match"),
        ("sft", "conversations", "by_task"),
        ("sft", "conversations", "skipped"),
        ("sft", "overall"),
        ("rl", "by_task"),
    }
    free |= {("heldout_bits_per_byte", "by_source"), ("heldout_bits_per_byte", "by_language"), ("corpus", "by_source")}
    free |= {("corpus", "dropped_by_rule"), ("tokenizer", "bytes_per_token"), ("tokenizer", "tokens_per_character")}
    if isinstance(value, dict) and path not in free:
        return [path] * bool(path) + [leaf for key, inner in value.items() for leaf in leaves(inner, (*path, key))]
    return [path]


def test_every_missing_key_is_named() -> None:
    for path in leaves(made_up_report()):
        report = made_up_report()
        part = report
        for key in path[:-1]:
            part = part[key]
        del part[path[-1]]
        assert [problem.split(":")[0] for problem in check_report(report)] == [".".join(path)]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("timing.seconds", float("nan")),
        ("heldout_bits_per_byte.base", float("inf")),
        ("rl.pass_at_1.after", 1.2),
        ("seed", "0"),
        ("baselines.kneser_ney_same_tokens", -1.0),
        ("sft.stop_rate.ci95", [0.1]),
        ("schema_version", 2),
        ("model.typo", 1),
        ("samples.chats", [{"language": "en", "stage": "rl", "messages": [{"role": "user"}]}]),
        ("samples.completions", [{"language": "en", "stage": "rl", "prompt": "\ud800", "text": ""}]),
        ("recipe", {"x": {1, 2}}),
    ],
)
def test_a_wrong_value_is_found_and_nothing_is_written(tmp_path: Path, path: str, value: Any) -> None:
    report = copy.deepcopy(made_up_report())
    part = report
    *parents, last = path.split(".")
    for key in parents:
        part = part[key]
    part[last] = value
    assert len(check_report(report)) == 1
    with pytest.raises(AthanorError, match="does not follow its schema"):
        write_report(report, tmp_path)
    assert list(tmp_path.iterdir()) == []


def paragraph(report: dict[str, Any]) -> str:
    checked, problems = parse_report(report)
    assert checked is not None, problems
    return summary.paragraph(checked)


def test_a_gain_is_claimed_only_above_chance() -> None:
    report = made_up_report()
    assert "a gain over both its start and fine-tuning continued" in paragraph(report)
    report["rl"]["pass_at_1"]["difference_ci95"]["after_minus_control"] = [-0.01, 0.09]
    assert "a gain over its start; the other comparison shows none" in paragraph(report)
    report["rl"]["pass_at_1"]["difference_ci95"]["after_minus_before"] = [-0.01, 0.09]
    assert "a difference that may be chance" in paragraph(report)
    report["rl"]["pass_at_1"]["difference_ci95"]["after_minus_control"] = [-0.09, -0.01]
    assert "which is worse than fine-tuning continued" in paragraph(report)


def test_the_model_is_praised_only_where_it_beats_counting() -> None:
    report = made_up_report()
    assert "so it has learnt more than" in paragraph(report)
    report["plan"]["pretrain"]["ngram_targets"] = True
    report["baselines"]["kneser_ney_all_text"] = report["heldout_bits_per_byte"]["base"] - 0.1
    assert "whose n-grams were among its targets" in paragraph(report)
    assert "so it has learnt a part of what n-grams say" in paragraph(report)
    report["heldout_bits_per_byte"]["base"] = 2.1
    assert "so it predicts no better than counting" in paragraph(report)


def test_logs_with_rubbish_and_very_many_steps_still_draw(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 5.0}) for step in range(5000)]
    path.write_text(
        "\n".join(
            [*lines, "not json", "[1]", '{"step": "x", "loss": 1}', '{"step": 9, "loss": NaN}', '{"step": 9}', '{"ste']
        )
    )
    found = curve(read_log(path), "loss")
    assert len(found.steps) == len(found.trend) == 400
    assert found.trend == pytest.approx(5.0)
    assert found.steps.mean() == pytest.approx(2499.5, abs=1)
    assert not curve(read_log(tmp_path / "missing.jsonl"), "loss")


def test_the_documentation_names_every_key() -> None:
    text = (Path(__file__).parents[2] / "docs" / "report.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `([^`]+)`", text, re.M))
    schema = Report.model_json_schema(by_alias=True)

    def keys(part: dict[str, Any], path: str) -> set[str]:
        if "$ref" in part:
            return keys(schema["$defs"][part["$ref"].split("/")[-1]], path)
        found = {path} if path else set()
        for choice in part.get("anyOf", ()):
            found |= keys(choice, path)
        for key, inner in part.get("properties", {}).items():
            found |= keys(inner, f"{path}.{key}" if path else key)
        if isinstance(inner := part.get("additionalProperties"), dict):
            found |= keys(inner, f"{path}.NAME")
        if isinstance(inner := part.get("items"), dict):
            found |= keys(inner, f"{path}[]")
        return found

    assert documented == keys(schema, "")
