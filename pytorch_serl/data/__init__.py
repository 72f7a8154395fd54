"""The replay buffer, and the reading and checking of demo and classifier files."""
