"""Simulators behind the environment contract, one file each; each needs its package."""
