"""XLM-RoBERTa (Conneau et al. 2019): RoBERTa with a vocabulary of a hundred languages."""

from __future__ import annotations

from athanor.models.families import roberta

FAMILY = roberta.family(
    "xlm-roberta", "XLMRobertaForMaskedLM", "XLMRobertaModel", "XLMRobertaForSequenceClassification"
)
