"""Encoder, actor, critics, reward classifier."""
