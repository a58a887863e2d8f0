"""Conversations made from licensed texts and from our own templates."""
