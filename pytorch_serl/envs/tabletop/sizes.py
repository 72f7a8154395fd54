"""Sizes and limits of the built-in task, which the task and its expert share."""

TRANSLATION_STEP = 0.025  # m per unit of action and step
ROTATION_STEP = 0.15  # rad per unit of action and step
REACH = 0.15  # m, half the side of an arm's square workspace
Z_MAX = 0.16  # m
ANGLE_MAX = 0.5  # rad, roll, pitch and yaw are limited to this
SQUARE_ANGLE = 0.3  # rad, a grasp or an insertion needs roll, pitch and yaw below this
SLOW_ZONE = 0.075  # m, with the tip below this height an arm moves sideways
SLOW_FACTOR = 0.1  # at this share of its speed, as near-contact speed limits do on real arms
OBJECT_RANGE = 0.12  # m, cube and hole lie within +-this of the arm's centre in x and y
CUBE_HALF = 0.02  # m
GRASP_HEIGHT = 0.025  # m, the tip must be below this to grasp
LIFT_HEIGHT = 0.08  # m, the tip's height with the cube at success
HOLE_BOTTOM = -0.03  # m
INSERT_DEPTH = -0.025  # m, the peg's tip at success
GRASP_TOLERANCE = 0.010  # m, lateral error allowed in x and in y
INSERT_TOLERANCE = 0.005
GRASP_PENALTY = -0.02  # for each command that changes a gripper's state
