"""LeRobot datasets: read as demos, and written from demos and runs."""
