"""Beyond one process: a learner in another process, on Ray, and torchrun."""
