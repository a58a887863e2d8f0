"""Every family against its reference in transformers: logits, padding on both sides, the cache, and the way back."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import athanor.models as models
from athanor.base.errors import ModelError
from athanor.models.cache import Cache
from athanor.models.config import (
    AttentionConfig,
    ConvolutionConfig,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    NormConfig,
)
from athanor.models.disentangled import DistanceTable
from athanor.models.families import read_config
from athanor.models.position_config import Disentangled
from athanor.models.sentences import embed
from tests.models.family_rows import (
    ALBERT,
    BOUND,
    COMPARED,
    DEBERTA,
    DECODERS,
    ENCODERS,
    FAIRSEQ,
    MODERNBERT,
    PAIRS,
    PLAIN,
    ROBERTA,
    T5,
)

transformers = pytest.importorskip("transformers")


def reference(architecture: str, settings: dict[str, Any], seed: int = 0) -> Any:
    """A small model with every parameter perturbed, so that none is neutral."""
    torch.manual_seed(seed)
    kind = getattr(transformers, architecture)
    model = kind(kind.config_class(**settings)).eval()
    saved = model.state_dict()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        frozen = isinstance(tensor, torch.nn.Parameter) and not tensor.requires_grad  # Marian's sinusoids
        if tensor.is_floating_point() and name in saved and "scale" not in name and not frozen:
            tensor.data += 0.1 * torch.randn_like(tensor)
    return model


@pytest.fixture(scope="module", params=DECODERS)
def pair(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """Theirs, ours, and the folder between them."""
    architecture, settings = DECODERS[request.param]
    folder = tmp_path_factory.mktemp("model")
    theirs = reference(architecture, settings)
    theirs.save_pretrained(folder)
    return theirs, models.load(folder), folder


def tokens(rows: int = 2, time: int = 24) -> Tensor:
    return torch.randint(3, 96, (rows, time), generator=torch.Generator().manual_seed(1))


def assert_close(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert ours.shape == theirs.shape
    difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    assert difference <= BOUND
    return difference


@pytest.fixture
def compare(record_property: Callable[[str, object], None]) -> Callable[[Tensor, Tensor, str], None]:
    """`assert_close`, noted under a word of `COMPARED` for the page of families (benchmarks/families_page.py)."""

    def compared(ours: Tensor, theirs: Tensor, what: str) -> None:
        assert what in COMPARED
        record_property(what, assert_close(ours, theirs))

    return compared


@torch.inference_mode()
def test_logits(pair: Any, compare: Any) -> None:
    theirs, ours, _ = pair
    compare(ours(tokens()), theirs(tokens()).logits, "logits")


@torch.inference_mode()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(pair: Any, side: str, compare: Any) -> None:
    theirs, ours, _ = pair
    ids, mask = tokens(), torch.ones(2, 24, dtype=torch.long)
    mask[0, slice(0, 5) if side == "left" else slice(19, None)] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    accepted = {"position_ids": positions} if "position_ids" in inspect.signature(theirs.forward).parameters else {}
    wanted = theirs(ids, attention_mask=mask, **accepted).logits
    kept = mask.bool()
    compare(ours(ids, attention_mask=mask)[kept], wanted[kept], side)


@torch.inference_mode()
def test_the_cache_step_by_step(pair: Any, compare: Any) -> None:
    """Against the full forward; where the angles depend on the length so far, against the reference's own steps."""
    theirs, ours, _ = pair
    ids, cache = tokens(), Cache(ours.config.n_layers)
    pieces = [ids[:, :9], *ids[:, 9:].split(1, dim=1)]
    parts = [ours(piece, cache=cache) for piece in pieces]
    scaling = getattr(ours.config.layers[0].attention.position, "scaling", None)
    if scaling is None or scaling.kind not in ("dynamic", "longrope"):
        wanted = ours(ids)
    else:
        past, steps = transformers.DynamicCache(config=theirs.config), []
        for piece in pieces:
            steps.append(theirs(piece, past_key_values=past, use_cache=True).logits)
        wanted = torch.cat(steps, 1)
    compare(torch.cat(parts, 1), wanted, "cache")


@torch.inference_mode()
def test_there_and_back(pair: Any, tmp_path: Path, compare: Any) -> None:
    theirs, ours, _ = pair
    models.save(ours, tmp_path)
    again = type(theirs).from_pretrained(tmp_path)
    compare(again(tokens()).logits, theirs(tokens()).logits, "saved")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == [type(theirs).__name__]


@pytest.fixture(scope="module", params=ENCODERS)
def encoders(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    architecture, settings = ENCODERS[request.param]
    folder = tmp_path_factory.mktemp("model")
    theirs = reference(architecture, settings)
    theirs.save_pretrained(folder)
    return theirs, models.load(folder)


@torch.inference_mode()
@pytest.mark.parametrize("side", [None, "left", "right", "inside"])
def test_encoders(encoders: Any, side: str | None, tmp_path: Path, compare: Any) -> None:
    """States, heads and the pooled first token, with padding; and back. inside: padding tokens that are attended to."""
    theirs, ours = encoders
    ids, mask, types = tokens(), torch.ones(2, 24, dtype=torch.long), torch.arange(24).expand(2, 24) // 12
    padding, accepted = theirs.config.pad_token_id, inspect.signature(theirs.forward).parameters
    if side == "inside":
        ids[0, 5:7] = padding
    elif side:
        mask[0, slice(0, 5) if side == "left" else slice(19, None)] = 0
        ids[0, mask[0] == 0] = padding
    types = types.clamp(max=max(getattr(theirs.config, "type_vocab_size", 1) - 1, 0))
    segments = {"token_type_ids": types} if "token_type_ids" in accepted else {}
    kept = mask.bool()
    for model in (theirs, None):
        if model is None:
            models.save(ours, tmp_path)
            model = type(theirs).from_pretrained(tmp_path)
            assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [type(theirs).__name__]
        wanted = model(ids, attention_mask=mask, output_hidden_states=True, **segments)
        states = ours.encode(ids, mask, types)
        compare(states[kept], wanted.hidden_states[-1][kept], "saved" if model is not theirs else side or "states")
        if (last := wanted.get("last_hidden_state")) is not None:
            assert_close(states[kept], last[kept])
        logits = wanted.get("logits", wanted.get("prediction_logits"))
        if logits is not None:
            compare(ours(ids, mask, types=types)[kept].squeeze(-1), logits[kept], "logits")
        if ours.pooler is not None and side != "left":
            if (pooled := wanted.get("pooler_output")) is not None:
                compare(ours.pool(states), pooled, "pooled")
            following = wanted.get("seq_relationship_logits", wanted.get("sop_logits"))
            assert (following is None) == (ours.next_sentence is None)
            if following is not None:
                compare(ours.next_sentence(ours.pool(states)), following, "next sentence")


@torch.inference_mode()
@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "RobertaForMaskedLM", "AlbertForMaskedLM"])
def test_weights_beside_a_masked_word_head(architecture: str, tmp_path: Path) -> None:
    """bert-base-uncased, roberta-base and albert-base-v2 keep a pooler that is not used, BERT old names of norms."""
    theirs = reference(
        architecture, {"BertForMaskedLM": PLAIN, "RobertaForMaskedLM": ROBERTA}.get(architecture, ALBERT)
    )
    theirs.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    if architecture == "BertForMaskedLM":
        old = {".LayerNorm.weight": ".LayerNorm.gamma", ".LayerNorm.bias": ".LayerNorm.beta"}
        weights = {next((n.replace(a, b) for a, b in old.items() if a in n), n): t for n, t in weights.items()}
        assert "bert.embeddings.LayerNorm.gamma" in weights
        weights["cls.seq_relationship.weight"] = torch.ones(2, 48)
    pooler = f"{theirs.base_model_prefix}.pooler" + (".dense" if architecture != "AlbertForMaskedLM" else "")
    weights |= {f"{pooler}.weight": torch.ones(48, 48), f"{pooler}.bias": torch.ones(48)}
    weights[f"{theirs.base_model_prefix}.embeddings.position_ids"] = torch.arange(64)[None]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_close(models.load(tmp_path)(tokens()), theirs(tokens()).logits)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"inner_group_num": 2, "num_hidden_groups": 6}, "inner_group_num"),
        ({"inner_group_num": 0}, "groups of 0"),
        ({"inner_group_num": 2000}, "groups of 2000"),
        ({"num_hidden_groups": 7}, "7 groups"),
        ({"gap_size": 1}, "gap_size"),
    ],
)
def test_albert_refuses_what_it_would_compute_otherwise(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ModelError, match=word):
        read_config({"architectures": ["AlbertModel"], **ALBERT, **changes}, "config.json")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"pos_att_type": "c2p|p2p"}, "pos_att_type"),
        ({"pos_att_type": []}, "pos_att_type"),
        ({"pos_att_type": 3}, "pos_att_type"),
        ({"relative_attention": False}, "relative_attention"),
        ({"norm_rel_ebd": "rms"}, "norm_rel_ebd"),
        ({"position_buckets": 40}, "position_buckets"),
        ({"position_buckets": 1}, "position_buckets"),
        ({"attention_head_size": 16}, "attention_head_size"),
        ({"conv_kernel_size": 4}, "conv_kernel_size"),
        ({"conv_kernel_size": 3, "conv_groups": 5}, "conv_groups"),
        ({"embedding_size": 20, "position_biased_input": True}, "embedding_size"),
        ({"num_hidden_layers": 0}, "n_layers"),
    ],
)
def test_deberta_refuses_what_it_would_compute_otherwise(changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ModelError, match=word):
        read_config({"architectures": ["DebertaV2Model"], **DEBERTA, **changes}, "config.json")


@torch.inference_mode()
def test_deberta_as_the_hub_has_it(tmp_path: Path) -> None:
    """microsoft/deberta-v3-base: no architecture, heads of pre-training, a table of positions that nothing uses."""
    theirs = reference("DebertaV2ForMaskedLM", {**DEBERTA, "legacy": False})
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["architectures"], config["legacy"], config["pooler_hidden_size"]
    config |= {"pos_att_type": "p2c|c2p", "attention_head_size": 12, "position_buckets": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / "model.safetensors")
    assert "lm_predictions.lm_head.dense.weight" in weights
    weights["mask_predictions.classifier.weight"] = torch.ones(1, 48)
    weights["deberta.embeddings.position_embeddings.weight"] = torch.ones(16, 48)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ours = models.load(tmp_path)
    assert ours.head is None
    assert_close(ours.encode(tokens()), theirs(tokens(), output_hidden_states=True).hidden_states[-1])
    weights |= {"cls.predictions.bias": torch.ones(96)}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="more than once"):
        models.load(tmp_path)


def test_parts_that_do_not_go_together() -> None:
    layer = LayerConfig(
        AttentionConfig(4, 4, 12, Disentangled(16)), MlpConfig(80), placement="post", convolution=ConvolutionConfig(3)
    )
    other = replace(layer, attention=AttentionConfig(4, 4, 12, Disentangled(17)))
    for layers, more, word in (
        ((layer,), {}, "encoder"),
        ((layer, other), {"causal": False}, "one table"),
        ((layer, layer), {"causal": False, "sharing": (0, 2)}, "share the weights"),
        ((layer, layer), {"causal": False, "sharing": (0,)}, "share the weights"),
    ):
        with pytest.raises(ModelError, match=word):
            ModelConfig(96, 48, 64, layers, **more)
    with pytest.raises(ModelError, match="key head"):
        AttentionConfig(4, 2, 12, Disentangled(16))
    with pytest.raises(ModelError, match="post-norm"):
        replace(layer, placement="pre")


@pytest.mark.parametrize(("buckets", "farthest"), [(256, 512), (8, 16), (5, 30), (2, 24), (33, 512), (7, 6)])
def test_buckets_of_distances(buckets: int, farthest: int) -> None:
    """To both sides of what is told apart, and as they round."""
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    distance = torch.arange(-700, 701)
    table = DistanceTable(4, Disentangled(farthest, buckets), NormConfig())
    wanted = make_log_bucket_position(distance, buckets, farthest).long().clamp(-buckets, buckets - 1)
    found = table(distance).rows
    assert torch.equal(found - found.min(), wanted - wanted.min())


@torch.inference_mode()
@pytest.mark.parametrize(
    ("architecture", "settings"),
    [("BertModel", PLAIN), ("RobertaModel", ROBERTA), ("XLMRobertaModel", ROBERTA), ("AlbertModel", ALBERT)],
)
def test_a_bare_model_without_a_pooler(architecture: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """As models of sentences are saved."""
    kind = getattr(transformers, architecture)
    torch.manual_seed(0)
    theirs = kind(kind.config_class(**settings), add_pooling_layer=False).eval()
    theirs.save_pretrained(tmp_path)
    ours = models.load(tmp_path)
    assert ours.pooler is None
    assert_close(ours.encode(tokens()), theirs(tokens()).last_hidden_state)
    models.save(ours, tmp_path / "again")
    again = kind.from_pretrained(tmp_path / "again", add_pooling_layer=False)
    assert_close(again(tokens()).last_hidden_state, theirs(tokens()).last_hidden_state)
    assert models.load(tmp_path / "again").pooler is None


HEADED = {name: row for name, row in ENCODERS.items() if row[0].endswith("ForMaskedLM")}


@torch.inference_mode()
@pytest.mark.parametrize("name", {row[0]: name for name, row in HEADED.items()}.values())
def test_a_bare_model_beside_its_head(name: str, tmp_path: Path) -> None:
    """Saved with a head for masked words, and named a bare model by hand."""
    architecture, settings = HEADED[name]
    theirs = reference(architecture, settings)
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    bare = architecture.replace("ForMaskedLM", "Model")
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": [bare]}))
    ours = models.load(tmp_path)
    assert ours.head is ours.pooler is None
    assert_close(ours.encode(tokens()), theirs(tokens(), output_hidden_states=True).hidden_states[-1])


@torch.inference_mode()
def test_modernbert_as_the_hub_has_it(tmp_path: Path) -> None:
    """The keys of answerdotai/ModernBERT-base: thetas and the pattern of layers under their old names."""
    theirs = reference("ModernBertForMaskedLM", {**MODERNBERT, "global_attn_every_n_layers": 2})
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["layer_types"], config["rope_parameters"]
    old = {"global_rope_theta": 160000.0, "local_rope_theta": 10000.0, "global_attn_every_n_layers": 2}
    more = {"position_embedding_type": "absolute", "layer_norm_eps": 1e-5, "repad_logits_with_grad": False}
    (tmp_path / "config.json").write_text(json.dumps(config | old | more))
    ours = models.load(tmp_path)
    assert [layer.attention.window for layer in ours.config.layers] == [None, 8, None, 8]
    assert_close(ours(tokens()), theirs(tokens()).logits)


@torch.inference_mode()
@pytest.mark.parametrize("architecture", ["BertModel", "RobertaModel"])
@pytest.mark.parametrize("side", [None, "left", "right"])
def test_sentences(architecture: str, side: str | None, tmp_path: Path) -> None:
    """Means over what is no padding, of length one, from a folder laid out as sentence-transformers does."""
    theirs = reference(architecture, PLAIN if architecture == "BertModel" else ROBERTA)
    theirs.save_pretrained(tmp_path)
    kinds = ["Transformer", "Pooling", "Normalize"]
    modules = [{"idx": i, "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    ours = models.load(tmp_path)
    ids, mask = tokens(3), torch.ones(3, 24, dtype=torch.long)
    if side:
        mask[0, slice(0, 5) if side == "left" else slice(19, None)] = 0
        mask[1, slice(0, 23) if side == "left" else slice(1, None)] = 0
        ids[mask == 0] = theirs.config.pad_token_id
    found = embed(ours, ids, mask if side else None)
    for row, vector in enumerate(found):  # each sentence alone, without padding
        mean = theirs(ids[row : row + 1, mask[row].bool()]).last_hidden_state[0].double().mean(0)
        if side != "left" or architecture == "RobertaModel":  # BERT's places begin at the padding
            assert_close(vector, (mean / mean.square().sum().sqrt()).float())
    states = theirs(ids, attention_mask=mask).last_hidden_state
    means = torch.stack([row[kept.bool()].mean(0) for row, kept in zip(states, mask, strict=True)])
    assert_close(found, means / means.norm(dim=1, keepdim=True))
    nothing = embed(ours, ids, torch.zeros_like(mask))
    assert torch.equal(nothing, torch.zeros(3, 48))


@pytest.fixture(scope="module", params=PAIRS)
def pairs(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    architecture, settings = PAIRS[request.param]
    folder = tmp_path_factory.mktemp("model")
    theirs = reference(architecture, settings)
    theirs.save_pretrained(folder)
    return theirs, models.load(folder)


@torch.inference_mode()
@pytest.mark.parametrize("side", [None, "left", "right"])
def test_encoder_decoders(pairs: Any, side: str | None, tmp_path: Path, compare: Any) -> None:
    """States of the source, logits of the target, the cache step by step, and back."""
    theirs, ours = pairs
    source, target, mask = tokens(), tokens(time=15), torch.ones(2, 24, dtype=torch.long)
    capacity = getattr(theirs.config, "expert_capacity", 64)
    if side == "left" and capacity < 24:
        pytest.skip("padding on the left fills experts, and what padding holds is nobody's promise")
    if side:
        mask[0, slice(0, 5) if side == "left" else slice(19, None)] = 0
        source = source.masked_fill(mask == 0, theirs.config.pad_token_id)
    wanted = theirs(source, attention_mask=mask, decoder_input_ids=target)
    compare(ours.encode(source, mask)[mask.bool()], wanted.encoder_last_hidden_state[mask.bool()], side or "states")
    logits = ours(source, target, mask)
    compare(logits, wanted.logits, side or "logits")
    read, cache = ours.read(ours.encode(source, mask)), Cache(ours.config.decoder.n_layers)
    steps = torch.cat([ours.decode(target[:, i : i + 1], read, mask, cache=cache) for i in range(15)], 1)
    if capacity < 15:  # an expert that is full at once is not so token by token
        logits = _steps(theirs, wanted.encoder_last_hidden_state, mask, target)
        assert not torch.allclose(logits, wanted.logits, atol=1e-3)
    compare(steps, logits, "cache")
    models.save(ours, tmp_path)
    again = type(theirs).from_pretrained(tmp_path)
    compare(again(source, attention_mask=mask, decoder_input_ids=target).logits, wanted.logits, "saved")
    assert_close(models.load(tmp_path)(source, target, mask), wanted.logits)


def _steps(theirs: Any, states: Tensor, mask: Tensor, target: Tensor) -> Tensor:
    """Their logits, token by token with their cache."""
    from transformers.modeling_outputs import MoEModelOutput

    encoded = MoEModelOutput(last_hidden_state=states)
    past, logits = None, []
    for i in range(target.shape[1]):
        out = theirs(
            encoder_outputs=encoded, attention_mask=mask, decoder_input_ids=target[:, i : i + 1],
            past_key_values=past, use_cache=True,
        )  # fmt: skip
        past = out.past_key_values
        logits.append(out.logits)
    return torch.cat(logits, 1)


@torch.inference_mode()
@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("architecture", ["T5ForConditionalGeneration", "MT5ForConditionalGeneration"])
def test_heads_that_are_tied_only_on_paper(architecture: str, said: bool, tmp_path: Path) -> None:
    """T5 1.1 and mT5 have a head of their own; their makers say so, transformers 5 writes that it is tied."""
    theirs = reference(architecture, {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False})
    theirs.lm_head.weight = torch.nn.Parameter(torch.randn(96, 48))
    theirs.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "tie_word_embeddings": said}))
    source, target = tokens(), tokens(time=15)
    wanted = theirs(source, decoder_input_ids=target).logits
    ours = models.load(tmp_path)
    assert_close(ours(source, target), wanted)
    models.save(ours, tmp_path / "again")
    again = type(theirs).from_pretrained(tmp_path / "again")
    assert_close(again(source, decoder_input_ids=target).logits, wanted)


@torch.inference_mode()
def test_bart_without_a_head(tmp_path: Path) -> None:
    """As facebook/bart-base is published; transformers reads it with a head that is tied and has no bias."""
    reference("BartModel", FAIRSEQ).save_pretrained(tmp_path)
    source, target = tokens(), tokens(time=15)
    ours = models.load(tmp_path)
    wanted = transformers.BartForConditionalGeneration.from_pretrained(tmp_path)(source, decoder_input_ids=target)
    assert_close(ours(source, target), wanted.logits)
    models.save(ours, tmp_path / "again")
    assert_close(models.load(tmp_path / "again")(source, target), wanted.logits)
    again = transformers.BartModel.from_pretrained(tmp_path / "again")
    assert_close(again(source, decoder_input_ids=target).encoder_last_hidden_state, wanted.encoder_last_hidden_state)


@torch.inference_mode()
def test_m2m_100_counts_a_padded_target(tmp_path: Path) -> None:
    theirs = reference("M2M100ForConditionalGeneration", FAIRSEQ)
    theirs.save_pretrained(tmp_path)
    source, target, mask = tokens(), tokens(time=15), torch.ones(2, 15, dtype=torch.long)
    mask[0, :4] = 0
    target = target.masked_fill(mask == 0, 1)
    wanted = theirs(source, decoder_input_ids=target, decoder_attention_mask=mask).logits
    ours, kept = models.load(tmp_path), mask.bool()
    assert_close(ours(source, target, target_mask=mask)[kept], wanted[kept])
    read, cache = ours.read(ours.encode(source)), Cache(3)
    steps = [ours.decode(target[:, i : i + 1], read, target_mask=mask[:, : i + 1], cache=cache) for i in range(15)]
    assert_close(torch.cat(steps, 1)[kept], wanted[kept])


def test_what_these_families_cannot_be(tmp_path: Path) -> None:
    reference("M2M100ForConditionalGeneration", FAIRSEQ).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    for changed, said in (({"decoder_start_token_id": 1}, "no position"), ({"d_model": 45}, "odd")):
        (tmp_path / "config.json").write_text(json.dumps({**settings, **changed}))
        with pytest.raises(ModelError) as raised:
            models.load(tmp_path)
        assert said in str(raised.value) + str(raised.value.hint)
    from athanor.models.families.switch_transformers import _step

    for places in ([2], [0, 2]):
        with pytest.raises(ModelError, match="cannot be written"):
            _step(places, 3)
