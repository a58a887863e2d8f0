"""`athanor ablate`: arms of one experiment, trained for equal time, tokens or steps, seed by seed.

`runs/NAME/` holds `data/` (text, tokenizer and shards, once for all arms that share them), `ARM/seed-N/` (each a run
with the stages `pretrain` and `score`), and the result. Seeds vary weights and order; the text is that of the recipe's
seed, and every trial is scored on the same held-out documents. A finished trial is not run again, a half-done one
continues.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

import athanor
from athanor.base.errors import AthanorError, RecipeError, RunError
from athanor.base.files import fingerprint, read_json, write_json, write_text
from athanor.base.machine import Machine, describe
from athanor.base.progress import duration, quantity, say
from athanor.base.run import Run, Stage
from athanor.corpus.shards import Shards
from athanor.evaluation.bits_per_byte import bits_per_byte, choose_documents, document_nats, held_out
from athanor.models.folder import load_decoder
from athanor.pipeline.arms import BASELINE, Arm, Extent, merge
from athanor.pipeline.calibration import calibrate, use_threads
from athanor.pipeline.data_stages import corpus_stage, fetch_sources, shards_stage, tokenizer_stage
from athanor.pipeline.life import PRETRAIN_LENGTH, Life, Work
from athanor.pipeline.planning import growth_of, plan_pretraining
from athanor.pipeline.plans import PretrainPlan, RunPlan, StagePlans
from athanor.pipeline.recipe import Recipe
from athanor.pipeline.recipe_files import make_recipe
from athanor.pipeline.training_stages import pretrain_stage
from athanor.science import ablation, planner
from athanor.science.ablation import Trial
from athanor.training.parallel import ALONE, place

_SCORED_TOKENS = 50_000
_MOVES_HELD_OUT = ("sources", "limit_bytes", "held_out_share")  # whatever else they do, found before the text is read
_PREVIEWS = 12  # of the held-out figure while training, for the curves


@dataclass(frozen=True)
class Data:
    """The stages that trials read from, and the life they were made in."""

    life: Life
    corpus: Stage
    tokenizer: Stage
    shards: Stage

    @property
    def held_out_text(self) -> str:
        """Identifies the held-out documents."""
        return str(self.corpus.record["outputs"]["documents/heldout.jsonl"]["sha256"])

    def open(self, split: str) -> Shards:
        return Shards.open(self.shards.folder / split)


@dataclass
class Experiment:
    """One experiment in its folder. settings: what the recipe's file says, unchecked; title: the recipe's name."""

    folder: Path
    title: str
    settings: Mapping[str, Any]
    extent: Extent
    machine: Machine = field(default_factory=describe)
    _made: dict[str, Data] = field(default_factory=dict)

    def run(self, baseline: Arm, arms: Sequence[Arm], seeds: int, command: str) -> dict[str, Any]:
        """Trains what is not yet trained; returns the result, which is also in results.json and results.md.

        Raises AthanorError for arms that cannot be carried out, before any training. An arm that fails while it is
        trained is reported and does not take the others with it.
        """
        recipes = {arm.name: arm.recipe(self.settings) for arm in (baseline, *arms)}
        start = recipes[BASELINE]
        for name, recipe in recipes.items():
            if any(getattr(recipe.corpus, key) != getattr(start.corpus, key) for key in _MOVES_HELD_OUT):
                raise _changes_held_out(name)
        self._open(start)
        measured = self._budgeted(start)
        use_threads(measured)
        self.group = replace(ALONE, device=place(start.device))
        self.rates, self.speed, _ = calibrate(measured, self.folder, self.group.device)
        data = {name: self._data(recipe) for name, recipe in recipes.items()}
        _check_held_out(data)
        decided = self._decide(start, data[BASELINE])
        everything = merge(self.settings, decided)
        recipes = {arm.name: self._budgeted(arm.recipe(everything)) for arm in (baseline, *arms)}
        plans = {arm.name: self._plan(arm, recipes[arm.name], data[arm.name]) for arm in (baseline, *arms)}
        scored = choose_documents(data[BASELINE].open("heldout"), _scored_tokens(start), start.seed)
        trials: dict[str, dict[int, Trial]] = {name: {} for name in recipes}
        failed = []
        order = ablation.alternate((baseline, *arms), range(start.seed, start.seed + seeds))
        for number, (arm, seed) in enumerate(order, start=1):
            say(f"Trial {number} of {len(order)}: {arm.name}, seed {seed}.")
            try:
                trials[arm.name][seed] = self._trial(
                    arm, recipes[arm.name].model_copy(update={"seed": seed}), plans[arm.name], data[arm.name], scored
                )
            except AthanorError as error:
                say(f"{arm.name}, seed {seed}, has failed: {error}")
                failed.append({"arm": arm.name, "seed": seed, "error": str(error)})
        if not trials[BASELINE]:
            raise RunError(f"The baseline has failed with every seed: {failed[0]['error']}")
        trials = {name: dict(sorted(found.items())) for name, found in trials.items()}
        tokens = int(np.diff(data[BASELINE].open("heldout").offsets)[scored].sum()) - len(scored)
        result = {
            "schema_version": 1,
            "name": self.folder.name,
            "command": command,
            "athanor": athanor.__version__,
            "recipe": self.title,
            "by": self.extent.by,
            "amount": self.extent.amount,
            "extent": str(self.extent),
            "seeds": sorted({seed for _, seed in order}),
            "scored_tokens": tokens,
            "machine": self.machine.as_dict(),
            "changes": {arm.name: dict(arm.changes) for arm in (baseline, *arms)},
            "folders": {arm.name: arm.folder for arm in (baseline, *arms)},
            "arms": ablation.summarise(trials),
            "failed": failed,
        }
        write_json(self.folder / "results.json", result)
        write_text(self.folder / "results.md", ablation.markdown(result))
        return result

    def _open(self, recipe: Recipe) -> None:
        """Notes what every trial shares; a folder with other trials is refused."""
        if (self.folder / "run.json").exists():
            raise RecipeError(f"{self.folder} is a run.", "Choose another --name for the experiment.")
        about = {
            "recipe": recipe.model_dump(mode="json"),
            "by": self.extent.by,
            "amount": self.extent.amount,
        }
        path = self.folder / "experiment.json"
        if not path.exists():
            write_json(path, about)
        elif read_json(path) != about:
            raise RecipeError(
                f"{self.folder} holds an experiment with another baseline, --by or --budget.",
                "Choose another --name; arms and seeds may be added to an experiment, its baseline stays.",
            )

    def _budgeted(self, recipe: Recipe) -> Recipe:
        """The recipe with the experiment's extent in place of its own."""
        budget = f"{self.extent.amount:g}s" if self.extent.by == "time" else None
        return recipe.model_copy(update={"budget": budget})

    def _data(self, recipe: Recipe) -> Data:
        """Text, tokenizer and shards; arms with the same settings of these share a folder."""
        recipe = self._budgeted(recipe)
        key = fingerprint([recipe.corpus.model_dump(), recipe.tokenizer.model_dump()])[:8]
        if key in self._made:
            return self._made[key]
        fetch_sources(recipe.model_copy(update={"sft": recipe.sft.model_copy(update={"sources": []})}))
        with self._run(self.folder / "data" / key, recipe, ()) as run:
            life = self._life(run, recipe)
            corpus = corpus_stage(life)
            tokenizer = tokenizer_stage(life, corpus)
            self._made[key] = Data(life, corpus, tokenizer, shards_stage(life, corpus, tokenizer))
        return self._made[key]

    def _run(self, root: Path, recipe: Recipe, models: Sequence[str]) -> Run:
        return Run(root, recipe.model_dump(mode="json"), athanor.__version__, models, made_from=self.title)

    def _life(self, run: Run, recipe: Recipe, repeated: RunPlan | None = None) -> Life:
        return Life(run, recipe, self.machine, self.rates, self.speed, 0.0, repeated, self.group)

    def _decide(self, recipe: Recipe, data: Data) -> dict[str, Any]:
        """What planning decides for the baseline, once: the settings that all arms keep unless they change them."""
        path = self.folder / "decided.json"
        if not path.exists():
            if self.extent.by == "tokens" and recipe.pretrain.rows is None:
                length = recipe.pretrain.length or min(recipe.model.max_seq_len, PRETRAIN_LENGTH)
                rows = max(1, planner.batch_tokens(self.extent.amount) // length)
                recipe = recipe.model_copy(update={"pretrain": recipe.pretrain.model_copy(update={"rows": rows})})
            plan = self._planned(self._budgeted(recipe), data)
            sizes = {"d_model": plan.model.d_model, "n_layers": plan.model.n_layers}
            batch = {"rows": plan.rows, "length": plan.length, "ngram_targets": plan.ngram_targets}
            plain = {"compile": "none"} if plan.compile == "none" else {}  # else each arm sees whether it pays
            write_json(path, {"model": sizes, "pretrain": batch | plain})
        decided = read_json(path)
        try:
            make_recipe(merge(self.settings, decided))
        except (AttributeError, RecipeError):
            raise RunError(f"{path} is damaged.", "Remove it so that it is made again.") from None
        return dict(decided)

    def _plan(self, arm: Arm, recipe: Recipe, data: Data) -> PretrainPlan:
        """The arm's plan, decided once, whatever the seed."""
        path = self.folder / arm.folder / "plan.json"
        asked = fingerprint([recipe.model_dump(mode="json"), self.extent.by, self.extent.amount])
        if path.exists():
            found = read_json(path)
            try:
                if found["asked"] == asked:
                    return PretrainPlan.model_validate(found["plan"])
            except (KeyError, TypeError, ValidationError):
                raise RunError(f"{path} is damaged.", "Remove it so that it is made again.") from None
        plan = self._planned(recipe, data)
        every = recipe.pretrain.evaluate_every or max(1, plan.expected_steps // _PREVIEWS)
        plan = plan.model_copy(update={"evaluate_every": every})
        write_json(path, {"asked": asked, "plan": plan.model_dump(mode="json")})
        return plan

    def _planned(self, recipe: Recipe, data: Data) -> PretrainPlan:
        """Raises RecipeError for what cannot be planned."""
        steps = self._steps(recipe)
        recipe = recipe.model_copy(update={"pretrain": recipe.pretrain.model_copy(update={"steps": steps})})
        seconds = self.extent.amount if self.extent.by == "time" else None
        life, text = replace(data.life, recipe=recipe), data.open("train")
        return plan_pretraining(life, text.index.vocab_size, text.n_tokens, seconds)

    def _steps(self, recipe: Recipe) -> int | None:
        pretrain = recipe.pretrain
        if self.extent.by == "time":
            return None
        if self.extent.by == "steps":
            return int(self.extent.amount)
        length = pretrain.length or min(recipe.model.max_seq_len, PRETRAIN_LENGTH)
        rows = pretrain.rows or 1
        growth = growth_of("rows", pretrain.first_rows, rows)
        return math.ceil(self.extent.amount * (growth.stretch if growth else 1.0) / (rows * length))

    def _trial(self, arm: Arm, recipe: Recipe, plan: PretrainPlan, data: Data, scored: np.ndarray) -> Trial:
        """Trains and scores, as far as that is not done."""
        use_threads(recipe)
        repeated = RunPlan(recipe=recipe, stages=StagePlans(pretrain=plan))
        with self._run(self.folder / arm.folder / f"seed-{recipe.seed}", recipe, ("pretrain",)) as run:
            life = self._life(run, recipe, repeated)
            pretrain = pretrain_stage(life, data.tokenizer, data.shards)
            score = _score_stage(life, pretrain, data, scored)
        timing = pretrain.record["timing"]
        bits = float(score.metrics["bits_per_byte"])
        say(
            f"{arm.name}, seed {recipe.seed}: {bits:.4f} bits per byte after {quantity(pretrain.metrics['tokens'])} "
            f"tokens, {duration(timing['seconds'])}."
        )
        return Trial(
            bits,
            int(pretrain.metrics["tokens"]),
            float(timing["tokens_per_second"]),
            int(pretrain.metrics["parameters"]),
            float(timing["seconds"]),
        )


def _score_stage(life: Life, pretrain: Stage, data: Data, scored: np.ndarray) -> Stage:
    """Held-out bits per byte in fp32, whatever was trained in; no part of the time that arms are given."""

    def work(stage: Stage) -> Work:
        documents = held_out(data.open("heldout"), scored)
        length = PretrainPlan.of(pretrain).length
        nats = document_nats(load_decoder(pretrain.folder / "model"), documents, length)
        return {"bits_per_byte": bits_per_byte(nats, documents), "documents": len(documents)}, [], {}

    inputs = {"pretrain": pretrain.output_fingerprint, "shards": data.shards.output_fingerprint}
    return life.perform("score", {"documents": fingerprint(scored.tolist())}, inputs, work)


def _scored_tokens(recipe: Recipe) -> int:
    return recipe.evaluate.held_out_tokens or _SCORED_TOKENS


def _check_held_out(data: Mapping[str, Data]) -> None:
    for name, found in data.items():
        if found.held_out_text != data[BASELINE].held_out_text:
            raise _changes_held_out(name)


def _changes_held_out(arm: str) -> RecipeError:
    return RecipeError(
        f"Arm {arm} changes the held-out documents, so its bits per byte cannot be compared.",
        "Of the corpus, arms may change the weights. A setting for all arms belongs into a recipe file, or into the "
        "table [baseline] of --arms; each --set is an arm.",
    )
