"""The report in brief: the strip of key numbers, and one honest paragraph on what such a model can and cannot do.

The paragraph is put together from the run's own figures. It claims a gain only where the 95 % interval lies above zero,
and places the model beside SmolLM2-135M (Allal et al. 2025: 135 M parameters, 2 trillion tokens).
"""

from __future__ import annotations

from athanor.base.progress import duration, quantity, size
from athanor.evaluation.report.blocks import KeyNumber, Value
from athanor.evaluation.report.schema import Report
from athanor.evaluation.report.words import (
    NOT_MEASURED,
    bits,
    joined,
    language,
    number,
    percent,
    percent_interval,
    points_interval,
)  # fmt: skip

_PEER_PARAMETERS, _PEER_TOKENS = 135e6, 2e12


def key_numbers(report: Report) -> tuple[KeyNumber, ...]:
    return (_bits(report), _reinforcement(report), _stop_rate(report), _speed(report), _time(report))


def _missing(label: str, detail: str = "", clock: bool = False) -> KeyNumber:
    return KeyNumber(label, (Value(NOT_MEASURED),), detail, clock)


def _bits(report: Report) -> KeyNumber:
    found = report.heldout_bits_per_byte
    stages = (("base", "base"), ("sft", "after SFT"), ("rl", "after RL"))
    values = tuple(
        Value(bits(getattr(found, stage)), label, stage)
        for stage, label in stages
        if found is not None and getattr(found, stage) is not None
    )
    if not values:
        return _missing("Held-out bits per byte")
    baseline = report.baselines.kneser_ney_same_tokens
    whole = report.baselines.kneser_ney_all_text
    counted = f"{bits(baseline)}" + ("" if whole is None else f", on all text: {bits(whole)}")
    detail = f"Kneser-Ney 5-gram on the same tokens: {counted}. Lower is better."
    return KeyNumber("Held-out bits per byte", values, detail)


def _reinforcement(report: Report) -> KeyNumber:
    label = "Problems solved, pass@1"
    if report.rl is None:
        return _missing(label, "No reinforcement learning in this run.")
    found = report.rl.pass_at_1
    values = (Value(percent(found.before), "before RL", "sft"), Value(percent(found.after), "after RL", "rl"))
    if found.control is None:
        return KeyNumber(label, values, f"Control: {NOT_MEASURED}.")
    gain = points_interval(found.difference_ci95.after_minus_control)
    return KeyNumber(label, values, f"Control of equal compute: {percent(found.control)}. Gain over it: {gain}.")


def _stop_rate(report: Report) -> KeyNumber:
    if report.sft is None:
        return _missing("Stop rate", "No fine-tuning in this run.")
    found = report.sft.stop_rate
    detail = f"{percent_interval(found.ci95)} (95 % interval)"
    return KeyNumber("Stop rate", (Value(percent(found.value), f"of {number(found.n)} answers"),), detail)


def _speed(report: Report) -> KeyNumber:
    stage = report.timing.stages.get("pretrain")
    if stage is None or stage.tokens_per_second is None:
        return _missing("Pre-training speed", clock=True)
    detail = f"{percent(stage.share_of_peak)} of the measured peak" if stage.share_of_peak is not None else ""
    value = Value(number(stage.tokens_per_second), "tokens a second")
    return KeyNumber("Pre-training speed", (value,), detail, clock=True)


def _time(report: Report) -> KeyNumber:
    timing = report.timing
    budget = f"of a budget of {duration(timing.budget_seconds)}" if timing.budget_seconds else "without a budget"
    memory = f"At most {size(timing.peak_memory_bytes)} of memory"
    return KeyNumber("Time in all", (Value(duration(timing.seconds), budget),), memory, clock=True)


def subtitle(report: Report) -> str:
    parts = [f"{quantity(report.model.parameters)} parameters"]
    if tokens := _tokens(report, "pretrain"):
        parts.append(f"{quantity(tokens)} tokens")
    if languages := _languages(report):
        parts.append(joined(languages))
    return " · ".join([*parts, f"seed {report.seed}", f"Athanor {report.athanor}"])


def paragraph(report: Report) -> str:
    if not _tokens(report, "pretrain"):
        return f"{_what(report)} that has not been trained yet."
    sentences = [
        _made(report), _beside_a_peer(report), _prediction(report), _abilities(report), _answers(report), _gain(report),
        _limits(report),
    ]  # fmt: skip
    return " ".join(filter(None, sentences))


def _tokens(report: Report, stage: str) -> int:
    work = report.stages.get(stage)
    return (work.tokens or 0) if work else 0


def _languages(report: Report) -> list[str]:
    used = (source for source in report.corpus.by_source.values() if source.documents)
    codes = {code for source in used for code in source.language.split(", ")}
    return [language(code) for code in sorted(codes - {"und"})]


def _what(report: Report) -> str:
    return f"{report.name} is a language model of {quantity(report.model.parameters)} parameters"


def _made(report: Report) -> str:
    text = joined(_languages(report)) or "text"
    steps = [f"read {quantity(_tokens(report, 'pretrain'))} tokens of {text}"]
    if tokens := _tokens(report, "sft"):
        steps.append(f"was fine-tuned on {quantity(tokens)} tokens of conversations and answers")
    if tokens := _tokens(report, "rl"):
        steps.append(f"was then rewarded for right answers over {quantity(tokens)} tokens of its own")
    return f"{_what(report)} that {joined(steps)}."


def _beside_a_peer(report: Report) -> str:
    larger = _PEER_PARAMETERS / max(1, report.model.parameters)
    longer = _PEER_TOKENS / _tokens(report, "pretrain")
    if larger < 1.5:
        return ""
    return (
        f"SmolLM2-135M, a small model in practical use, has {_times(larger)} its parameters and read {_times(longer)} "
        "its tokens."
    )


def _times(ratio: float) -> str:
    return f"about {float(f'{ratio:.2g}'):,.0f} times" if ratio >= 10 else f"{ratio:.1f} times"


def _prediction(report: Report) -> str:
    base = report.heldout_bits_per_byte.base if report.heldout_bits_per_byte else None
    baseline, whole = report.baselines.kneser_ney_same_tokens, report.baselines.kneser_ney_all_text
    if base is None:
        return ""
    needs = f"It needs {base:.3f} bits for a byte of text it has never seen"
    if baseline is None:
        return f"{needs}."
    needs += f", a 5-gram counted on the same tokens {baseline:.3f}"
    taught = report.plan.pretrain.get("ngram_targets") and whole is not None
    if taught:  # by more text than it read, so that the 5-gram of that text is what it has to beat
        needs += f", one counted on all text, whose n-grams were among its targets, {whole:.3f}"
    if base < (whole if taught and whole is not None else baseline):
        verdict = "so it has learnt more than which short phrases are frequent"
    elif base < baseline:
        verdict = "so it has learnt a part of what n-grams say and predicts better than counting what it read would"
    else:
        verdict = "so it predicts no better than counting short phrases would"
    return f"{needs}, {verdict}."


def _small(report: Report) -> bool:
    return report.model.parameters < 30e6 or _tokens(report, "pretrain") < 300e6


def _abilities(report: Report) -> str:
    if _tokens(report, "pretrain") < 1e6:
        return "Expect frequent words and pieces of phrases: it has read too little for more."
    if _small(report):
        return "Expect words that are spelt right, short phrases that sound right, and the form of a dialogue."
    return "Expect fluent sentences, short coherent texts, and facts that were frequent in its corpus."


def _answers(report: Report) -> str:
    if report.sft is None:
        return ""
    ends = f"It ends {percent(report.sft.stop_rate.value)} of its answers by itself"
    last = {task: results.get("rl") or results.get("sft") for task, results in report.sft.exact_match.items()}
    rates = sorted((found.value, task) for task, found in last.items() if found is not None)
    if not rates:
        return f"{ends}."
    (worst_rate, worst), (best_rate, best) = rates[0], rates[-1]
    if best_rate == 0:
        return f"{ends} and solves none of the exercises it was taught."
    tasks = f"of the exercises it was taught, its best is {best} ({percent(best_rate)} right)"
    return f"{ends}; {tasks}" + (f", its worst {worst} ({percent(worst_rate)})." if len(rates) > 1 else ".")


def _gain(report: Report) -> str:
    if report.rl is None or report.rl.pass_at_1.before is None or report.rl.pass_at_1.after is None:
        return ""
    found = report.rl.pass_at_1
    if not _tokens(report, "rl"):
        return "Reinforcement learning found nothing to learn from and changed nothing."
    if found.before == found.after:
        return f"Reinforcement learning left it at {percent(found.after)} of held-out problems."
    change = (
        f"Reinforcement learning took it from {percent(found.before)} to {percent(found.after)} of held-out problems"
    )
    comparisons = (
        ("its start", found.difference_ci95.after_minus_before),
        ("fine-tuning continued for the same compute", found.difference_ci95.after_minus_control),
    )
    gains = [name for name, interval in comparisons if interval is not None and interval[0] > 0]
    losses = [name for name, interval in comparisons if interval is not None and interval[1] < 0]
    if losses:
        return f"{change}, which is worse than {joined(losses)}."
    if len(gains) == 2:
        return f"{change}, a gain over both {joined(gains)} that chance does not explain."
    if gains:
        return f"{change}, a gain over {gains[0]}; the other comparison shows none."
    return f"{change}, a difference that may be chance."


def _limits(report: Report) -> str:
    if _small(report):
        return (
            "Do not expect knowledge, reasoning, or answers to questions of a kind it was not taught: what it says "
            "about the world is mostly invented, and it loses the thread after a sentence or two. It is here to be "
            "understood, not to be relied on."
        )
    return (
        "Do not expect dependable facts, arithmetic or reasoning beyond what is measured below: it says wrong things "
        "as fluently as right ones. Check what it says before you use it."
    )
