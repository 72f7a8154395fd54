"""Humans beside the robot: scripted, at a keyboard, with a gamepad."""
