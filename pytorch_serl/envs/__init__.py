"""The built-in task, a simulated arm, their scripted experts and human, and the recorder of demonstrations.

Importing this package registers both, so a Gymnasium id that names the package is enough:
`gym.make('pytorch_serl.envs:pytorch_serl/Tabletop-v0', setup_mode='dual-arm-learned-gripper')`.
"""

import gymnasium as gym

ENV_ID = "pytorch_serl/Tabletop-v0"
PANDA_ID = "pytorch_serl/PandaPickCube-v0"  # needs requirements/sim.txt

if ENV_ID not in gym.registry:
    gym.register(
        id=ENV_ID,
        entry_point="pytorch_serl.envs.tabletop.task:TabletopEnv",
        kwargs={"setup_mode": "single-arm-learned-gripper"},
    )

if PANDA_ID not in gym.registry:
    gym.register(id=PANDA_ID, entry_point="pytorch_serl.envs.simulators.panda:PandaPickCubeEnv")

SIMULATORS = "pytorch_serl.envs.simulators"
for _name in ("Lift", "PickPlaceCan", "Door", "TwoArmPegInHole", "TwoArmLift"):
    if f"pytorch_serl/Robosuite{_name}-v0" not in gym.registry:
        gym.register(
            id=f"pytorch_serl/Robosuite{_name}-v0",
            entry_point=f"{SIMULATORS}.robosuite:RobosuiteEnv",
            kwargs={"task": _name},
        )
for _task in ("assembly", "box-close", "coffee-push", "stick-pull", "button-press-topdown", "drawer-open"):
    _name = _task.title().replace("-", "")
    if f"pytorch_serl/MetaWorld{_name}-v0" not in gym.registry:
        gym.register(
            id=f"pytorch_serl/MetaWorld{_name}-v0",
            entry_point=f"{SIMULATORS}.metaworld:MetaWorldEnv",
            kwargs={"task": _task},
        )
