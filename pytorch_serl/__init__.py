"""HIL-SERL (human-in-the-loop, sample-efficient robot reinforcement learning) in plain PyTorch."""
