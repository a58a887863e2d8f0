"""What the report says, section by section, as blocks that know nothing of HTML or Markdown.

All that depends on the clock stands in the section "time", so that everything else is equal between two runs alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from athanor.base.files import to_json
from athanor.base.progress import duration, quantity, size
from athanor.evaluation.report import summary
from athanor.evaluation.report.blocks import (
    Block,
    Chat,
    Completion,
    Facts,
    Page,
    Panels,
    Paragraph,
    Samples,
    Section,
    Table,
    Verbatim,
)  # fmt: skip
from athanor.evaluation.report.figures import Plot
from athanor.evaluation.report.schema import ByStage, FineTuning, PassAtK, Report, StageWork
from athanor.evaluation.report.words import (
    NOT_MEASURED,
    STAGE_LABELS,
    bits,
    flop_rate,
    flops,
    in_order,
    joined,
    language,
    number,
    percent,
    percent_figures,
    points,
    points_interval,
    proportion,
    shown,
)  # fmt: skip

_SHORT = 12  # characters of a fingerprint that are shown


def page(report: Report, plots: Mapping[str, Plot], missing: list[str]) -> Page:
    """missing: keys of the report that were not measured."""
    sections = (
        Section("model", "What this model is", "", (Paragraph(summary.paragraph(report)), _dimensions(report))),
        _training(plots),
        _held_out(report, plots),
        _fine_tuning(report, plots),
        _reinforcement(report, plots),
        _samples(report),
        _time(report, plots),
        _tokenizer(report),
        _corpus(report),
        _lineage(report),
    )
    closing = "Every figure is in report.json; docs/report.md of Athanor says what each key means."
    if missing:
        closing += f" Not measured in this run: {', '.join(missing)}."
    return Page(report.name, summary.subtitle(report), summary.key_numbers(report), sections, closing)


def _panels(plots: Mapping[str, Plot], *names: str, small: bool = False) -> tuple[Block, ...]:
    found = tuple(plots[name] for name in names if name in plots)
    return (Panels(found, small),) if found else ()


def _dimensions(report: Report) -> Facts:
    model = report.model
    heads = f"{model.n_heads}, each {model.head_dim} wide"
    if model.n_kv_heads != model.n_heads:
        heads += f", sharing {model.n_kv_heads} key-value head{'s' * (model.n_kv_heads > 1)}"
    rows = (
        ("Parameters", f"{number(model.parameters)}, of which {number(model.matrix_parameters)} in matrices"),
        ("Layers", f"{model.n_layers}, width {model.d_model}, feed-forward {model.d_ff}"),
        ("Attention heads", heads),
        ("Vocabulary", f"{number(model.vocab_size)} tokens"),
        ("Context", f"{number(model.max_seq_len)} tokens"),
    )
    return Facts("", rows)


def _training(plots: Mapping[str, Plot]) -> Section:
    lead = "Every step's value is drawn faint, the trend strong."
    found = _panels(plots, "pretrain-loss", "pretrain-bits", "sft-loss", "rl-reward")
    found += _panels(plots, "rl-zero-variance", "rl-entropy", "rl-length", "rl-kl", small=True)
    return Section("training", "Training curves", lead, found or (Paragraph(f"Training curves: {NOT_MEASURED}."),))


def _held_out(report: Report, plots: Mapping[str, Plot]) -> Section:
    title, found, baselines = "Held-out bits per byte", report.heldout_bits_per_byte, report.baselines
    if found is None:
        return Section("held-out", title, "", (Paragraph(f"Held-out bits per byte: {NOT_MEASURED}."),))
    lead = (
        "How many bits the model needs for a byte of documents it has never seen, whatever the tokenizer; lower is "
        f"better. Measured on {quantity(found.tokens)} tokens ({size(found.bytes)})."
    )
    rows = [(STAGE_LABELS[stage], bits(getattr(found, stage))) for stage in ("base", "sft", "rl")]
    for text, value, tokens in (
        ("same tokens", baselines.kneser_ney_same_tokens, baselines.same_tokens),
        ("all text", baselines.kneser_ney_all_text, baselines.all_text_tokens),
    ):
        amount = "" if tokens is None else f" ({quantity(tokens)})"
        rows.append((f"Kneser-Ney 5-gram, {text}{amount}", bits(value)))
    overall = Table("Overall", ("", "bits per byte"), tuple(rows))
    drawn = tuple(plots[name] for name in ("bits-by-source", "bits-by-language") if name in plots)
    parts = {**{language(code): value for code, value in found.by_language.items()}, **found.by_source}
    return Section("held-out", title, lead, (Panels((overall, *drawn)), _by_stage("By language and source", parts)))


def _by_stage(title: str, values: Mapping[str, ByStage]) -> Table:
    rows = tuple((name, bits(value.base), bits(value.sft), bits(value.rl)) for name, value in values.items())
    return Table(title, ("", "base", "after SFT", "after RL"), rows)


def _fine_tuning(report: Report, plots: Mapping[str, Plot]) -> Section:
    title = "Supervised fine-tuning"
    if report.sft is None:
        return Section("fine-tuning", title, "", (Paragraph(f"Fine-tuning: {NOT_MEASURED}."),))
    tasks = {**report.sft.exact_match, "all tasks": report.sft.overall}
    stages = in_order({stage for results in tasks.values() for stage in results})
    stop = report.sft.stop_rate
    lead = (
        "Held-out problems, answered greedily; an answer counts only if it is exactly right. "
        f"{proportion(stop)} of {number(stop.n)} answers ended by themselves (stop rate). {_conversations(report.sft)}"
    )
    rows = []
    for task, results in tasks.items():
        problems = max((result.n for result in results.values()), default=0)
        rows.append((task, *(percent_figures(results.get(stage)) for stage in stages), number(problems)))
    head = ("Task", *(f"{STAGE_LABELS.get(stage, stage)}, %" for stage in stages), "n")
    drawn = (plots["exact-match"],) if "exact-match" in plots else ()
    return Section("fine-tuning", title, lead, (Panels((*drawn, Table("In figures", head, tuple(rows)))),))


def _conversations(sft: FineTuning) -> str:
    """A sentence on what was trained on and what was left out."""
    found = sft.conversations
    left_out = [f"{number(found.too_long)} longer than a row"] if found.too_long else []
    left_out += [f"{number(lines)} of your own: {reason}" for reason, lines in sorted(found.skipped.items())]
    made = f"{number(sum(found.by_task.values()) - found.too_long)} conversations were there to train on"
    return f"{made}; left out were {joined(left_out)}." if left_out else f"{made}."


def _reinforcement(report: Report, plots: Mapping[str, Plot]) -> Section:
    title, found = "Reinforcement learning", report.rl
    if found is None:
        return Section("reinforcement", title, "", (Paragraph(f"Reinforcement learning: {NOT_MEASURED}."),))
    lead = (
        f"{number(found.problems)} held-out problems, {number(found.samples)} sampled answers each. The control is "
        "fine-tuning continued for the same compute. Differences are in percentage points with 95 % intervals (paired "
        "bootstrap over problems)."
    )
    rates = (_pass_row("pass@1", found.pass_at_1), _pass_row("pass@8", found.pass_at_8))
    tasks = tuple(
        (name, percent(task.before), percent(task.control), percent(task.after), number(task.n))
        for name, task in found.by_task.items()
    )
    content = (
        Table("Problems solved", ("", "before", "control", "after", "after − before", "after − control"), rates),
        *_panels(plots, "rl-gains", "rl-by-task"),
        Table("pass@1 by task", ("Task", "before", "control", "after", "problems"), tasks),
    )
    return Section("reinforcement", title, lead, content)


def _pass_row(name: str, found: PassAtK) -> tuple[str, ...]:
    intervals = found.difference_ci95
    differences = []
    for start, interval in (
        (found.before, intervals.after_minus_before),
        (found.control, intervals.after_minus_control),
    ):
        if found.after is None or start is None or interval is None:
            differences.append(points_interval(interval))
        else:
            differences.append(f"{points(found.after - start)} ({points(interval[0])} to {points(interval[1])})")
    return name, percent(found.before), percent(found.control), percent(found.after), *differences


def _samples(report: Report) -> Section:
    lead = "What the model wrote, unedited; the beginning that it was given is set apart. None of it need be true."
    content: list[Block] = []
    found = report.samples
    for code in sorted({c.language for c in found.completions} | {c.language for c in found.chats}):
        completions = tuple(
            Completion(code, STAGE_LABELS.get(sample.stage, sample.stage), sample.prompt, sample.text)
            for sample in found.completions
            if sample.language == code
        )
        chats = tuple(
            Chat(code, STAGE_LABELS.get(chat.stage, chat.stage), tuple((m.role, m.content) for m in chat.messages))
            for chat in found.chats
            if chat.language == code
        )
        if completions:
            content.append(Samples(f"Completions, {language(code)}", completions))
        if chats:
            content.append(Samples(f"Conversations, {language(code)}", chats))
    return Section("samples", "Samples", lead, tuple(content) or (Paragraph(f"Samples: {NOT_MEASURED}."),))


def _time(report: Report, plots: Mapping[str, Plot]) -> Section:
    timing, machine = report.timing, report.machine
    budget = f"of a budget of {duration(timing.budget_seconds)}" if timing.budget_seconds else "without a budget"
    rates = timing.rates
    speeds = f"fp32 {flop_rate(rates.fp32)}, bf16 {flop_rate(rates.bf16)}, memory {size(rates.read)}/s"
    facts = Facts(
        "Machine",
        (
            ("Processor", f"{machine.processor}, {machine.cores} cores"),
            ("Features", ", ".join(machine.features) or "none of those that matter here"),
            ("Memory", f"{size(machine.memory)}; at most {size(timing.peak_memory_bytes)} used"),
            (
                "Accelerator",
                f"{machine.accelerator}, {size(machine.accelerator_memory)}" if machine.accelerator else "none",
            ),
            ("Software", f"{machine.system}, Python {machine.python}, PyTorch {machine.torch}"),
            ("Measured rates", speeds),
            ("Time", f"{duration(timing.seconds)} {budget}"),
        ),
    )
    lead = "Time is active time. Share of peak is against the machine's own measured matrix rate."
    plan = Verbatim("The whole plan", to_json(report.plan.model_dump(mode="json")))
    content = (facts, *_panels(plots, "time", "speed"), _work(report), _plan(report), plan)
    return Section("time", "Machine, plan and time", lead, content)


def _work(report: Report) -> Table:
    rows = []
    for name in in_order({*report.stages, *report.timing.stages}):
        work, timing = report.stages.get(name), report.timing.stages.get(name)
        rows.append(
            (
                name,
                _steps(work),
                _or_dash(work and work.tokens, quantity),
                _or_dash(work and work.flops, flops),
                _or_dash(timing and timing.tokens_per_second, number),
                _or_dash(timing and timing.share_of_peak, percent),
                NOT_MEASURED if timing is None else duration(timing.seconds),
            )
        )
    head = ("Stage", "steps", "tokens", "FLOPs", "tokens/s", "share of peak", "time")
    return Table("Work by stage", head, tuple(rows))


def _steps(work: StageWork | None) -> str:
    if work is None or work.steps is None:
        return "–"
    left_out = (work.skipped_steps or 0) + (work.spike_steps or 0)
    return number(work.steps) + (f" ({number(left_out)} skipped)" if left_out else "")


def _or_dash(value: Any, write: Any) -> str:
    """A stage that does not train has no steps: that is no gap in the measurement."""
    return "–" if value is None else write(value)


def _plan(report: Report) -> Facts:
    plan = report.plan
    parts = {"model": plan.model, "pretrain": plan.pretrain, "sft": plan.sft, "rl": plan.rl, "control": plan.control}
    rows = [("precision", plan.precision)]
    for name, settings in parts.items():
        flat = [f"{key} {_plain(value)}" for key, value in settings.items() if isinstance(value, str | int | float)]
        rows.append((name, ", ".join(flat) or "none"))
    return Facts("Plan", tuple(rows))


def _plain(value: Any) -> str:
    if isinstance(value, bool | str):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"


def _tokenizer(report: Report) -> Section:
    found = report.tokenizer
    compression, fertility = found.bytes_per_token, found.tokens_per_character
    rows = tuple(
        (language(code), *(shown(values.get(code), "{:.2f}".format) for values in (compression, fertility)))
        for code in sorted({*compression, *fertility})
    )
    lead = (
        f"Byte-level BPE with {number(found.vocab_size)} tokens, trained on this corpus; any text can be written in it "
        f"and read back exactly. Tokens that the measured text never used: {percent(found.unused_share)}."
    )
    table = Table("", ("Language", "bytes per token", "tokens per character"), rows)
    return Section("tokenizer", "Tokenizer", lead, (table,))


def _corpus(report: Report) -> Section:
    found = report.corpus
    lead = (
        f"{number(found.documents.kept)} documents were kept for training, {number(found.documents.heldout)} held out "
        f"for measuring and {number(found.documents.dropped)} dropped; {size(found.bytes.read)} came in, "
        f"{size(found.bytes.kept)} stayed."
    )
    sources = tuple(
        (name, language(s.language), s.licence, number(s.documents), size(s.bytes), number(s.dropped))
        for name, s in found.by_source.items()
    )
    head = ("Source", "Language", "Licence", "documents", "size", "dropped")
    content = [Table("Sources", head, sources, text_columns=3)]
    if found.dropped_by_rule:
        rules = sorted(found.dropped_by_rule.items(), key=lambda item: (-item[1], item[0]))
        rows = tuple((rule, number(count)) for rule, count in rules)
        content.append(Table("Dropped documents by rule", ("Rule", "documents"), rows))
    return Section("corpus", "Corpus", lead, tuple(content))


def _lineage(report: Report) -> Section:
    rows, files = [], []
    for name in in_order(report.lineage):
        stage = report.lineage[name]
        files += [f"{digest[:_SHORT]}  {name}/{path}" for path, digest in sorted(stage.outputs.items())]
        inputs = joined(f"{key} {str(value)[:_SHORT]}" for key, value in stage.inputs.items()) or "none"
        rows.append((name, stage.fingerprint[:_SHORT], inputs, number(len(stage.outputs))))
    lead = "A stage's fingerprint covers its settings and its inputs; two runs with the same one made the same files."
    table = Table("", ("Stage", "Fingerprint", "Made from", "files"), tuple(rows), text_columns=3)
    recipe = Verbatim("The recipe", to_json(report.recipe))
    return Section(
        "lineage", "Lineage", lead, (table, Verbatim("Files and the start of their sha256", "\n".join(files)), recipe)
    )
