"""Inference: the KV cache, sampling, batched decoding, and the language model that chat, rollouts and evaluation
use.
"""
