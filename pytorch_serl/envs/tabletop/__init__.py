"""The built-in task, its cameras and its expert."""
