"""The network: one configurable Transformer from small modules, families as data, and the Hugging Face folder as its
file format.
"""

from athanor.models.config import AttentionConfig, MlpConfig, ModelConfig, NormConfig, RopeConfig

__all__ = ["AttentionConfig", "MlpConfig", "ModelConfig", "NormConfig", "RopeConfig"]
