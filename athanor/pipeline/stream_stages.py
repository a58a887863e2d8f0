"""The first three stages of a run that reads a streamed corpus: what was made with it is brought here, but for the
training text, which stays where it is.
"""

from __future__ import annotations

from athanor.base.errors import AthanorError, DataError
from athanor.base.files import fingerprint, read_json, write_json
from athanor.base.progress import quantity, say
from athanor.base.run import Stage
from athanor.base.storage import Storage
from athanor.corpus.shards import Shards
from athanor.corpus.stream_cache import TextStream
from athanor.corpus.streams import StreamIndex, fetch_beside, read_index
from athanor.pipeline.life import Life, Work
from athanor.pipeline.recipe import Recipe
from athanor.pipeline.stage_batches import STREAM
from athanor.tokenizer import Tokenizer
from athanor.tokenizer.inspection import compression_by_language


def with_stream(recipe: Recipe) -> Recipe:
    """The recipe with what its streamed corpus, where it has one, has decided. Raises DataError where that cannot be
    read.
    """
    if recipe.corpus.stream is None:
        return recipe
    index = read_index(Storage(recipe.corpus.stream))
    tokenizer = recipe.tokenizer.model_copy(update={"vocab_size": index.vocab_size})
    return recipe.model_copy(update={"tokenizer": tokenizer})


def stream_stages(life: Life) -> tuple[Stage, Stage]:
    """Tokenizer, and shards: the held-out ones, and where the others are. Of the corpus there is the report."""
    recipe = life.recipe.corpus
    assert recipe.stream is not None
    text = TextStream(recipe.stream, cache_bytes=recipe.cache_bytes)
    inputs = {"stream": fingerprint(text.index.to_json())}
    say(f"Streaming {quantity(text.n_tokens)} tokens in {len(text.index.shards):,} shards from {text.storage.address}.")
    life.perform("corpus", {}, inputs, lambda stage: _corpus(stage, text.storage, text.index))
    shards = life.perform("shards", {}, inputs, lambda stage: _shards(stage, text))
    tokenizer = life.perform("tokenizer", {}, inputs, lambda stage: _tokenizer(stage, shards, text))
    place = {"address": text.storage.address, "cache_bytes": recipe.cache_bytes}
    write_json(shards.folder / STREAM, {**place, "index": text.index.to_json()})  # it may have moved
    return tokenizer, shards


def _corpus(stage: Stage, storage: Storage, index: StreamIndex) -> Work:
    fetch_beside(storage, index, "corpus", stage.folder / "made")
    metrics = read_json(stage.folder / "made" / "report.json")
    if not isinstance(metrics, dict) or "sources" not in metrics:
        raise DataError(f"{storage.address} has no report of its corpus.", "Make it again with athanor corpus stream.")
    return metrics, ["made"], {}


def _tokenizer(stage: Stage, shards: Stage, text: TextStream) -> Work:
    fetch_beside(text.storage, text.index, "tokenizer", stage.folder / "model")
    tokenizer, held_out = Tokenizer.load(stage.folder / "model"), Shards.open(shards.folder / "heldout")
    by_language: dict[str, list[str]] = {}
    for number in range(len(held_out)):
        said = tokenizer.decode(held_out.document(number)[:-1].tolist())
        by_language.setdefault(held_out.source_of(number).language, []).append(said)
    return {"fingerprint": tokenizer.fingerprint, **compression_by_language(tokenizer, by_language)}, ["model"], {}


def _shards(stage: Stage, text: TextStream) -> Work:
    fetch_beside(text.storage, text.index, "heldout", stage.folder / "heldout")
    held_out = Shards.open(stage.folder / "heldout")
    if held_out.index.vocab_size != text.index.vocab_size:
        raise AthanorError(f"{text.storage.address} is no whole.", "Make it again with athanor corpus stream.")
    counts = {
        "train": {"tokens": text.n_tokens, "documents": text.index.n_documents},
        "heldout": {
            "tokens": held_out.n_tokens, "documents": len(held_out), "bytes": held_out.index.n_bytes,
        },
    }  # fmt: skip
    return counts, ["heldout"], {}
