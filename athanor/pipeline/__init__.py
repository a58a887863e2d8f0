"""The whole life of a model: recipes, the plan made from a budget, and the stages of `athanor run`."""
