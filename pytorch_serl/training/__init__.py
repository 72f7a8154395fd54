"""What the scripts share: checkpoints, evaluation, logs, loops."""
