"""Training: objectives, packed batches, optimizers, schedules, and the one loop that all of them share."""
