"""How good a model is: held-out bits per byte, exact match, pass rates, and the report card."""
