"""Inference: the engine with its scheduler, paged cache and sampling, the rungs that compute its steps, and the
language model that chat, rollouts and evaluation use.
"""
