"""The built-in task, a simulated arm, their scripted experts and human, and the recorder of demonstrations.

Importing this package registers both, so a Gymnasium id that names the package is enough:
`gym.make('pytorch_serl.envs:pytorch_serl/Tabletop-v0', setup_mode='dual-arm-learned-gripper')`.
"""

import re

import gymnasium as gym

NAMESPACE = "pytorch_serl"
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

SHORT = {ENV_ID: "built-in", PANDA_ID: "panda"}  # the others' follow from their ids


def short_names() -> dict[str, str]:
    """Short name -> Gymnasium id with its package, of all environments that are registered here.

    `pytorch_serl/RobosuiteTwoArmLift-v0` is `robosuite-two-arm-lift`.
    """
    ids = [name for name, spec in gym.registry.items() if spec.namespace == NAMESPACE]
    return {SHORT.get(name) or _short(gym.registry[name].name): f"{__name__}:{name}" for name in ids}


def _short(name):
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name.replace("MetaWorld", "Metaworld")).lower()
