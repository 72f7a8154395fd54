"""What is odd but usable in demos: one line each, with numbers."""

import itertools

import numpy as np

from pytorch_serl.data.actions import continuous_columns, gripper_columns
from pytorch_serl.data.rewards import SAME, describe, kind_of_rewards

NO_OP_SHARE = 0.10  # above this share of actions that move nothing, say so
NO_OP = 0.01  # a device that drifts reports numbers this small (of 1) when nobody touches it,
NO_OP_OF_LARGEST = 0.05  # or this share of the largest, where all are small
SMALL = 0.1  # commands that never leave this are in another unit than [-1, 1]
SMALL_COLUMN = 0.02  # likewise for one entry beside others that are larger
LARGE_STATE = 100.0  # the network takes the state as it is
HANGS = 3  # steps without a new frame; a camera at half the rate gives one
NEARLY_BLANK = 10  # of 255 grey levels: what is left of a picture behind a lid
SHOWN = 5  # episodes named in a line
MOSTLY = 0.8  # of penalties that go wrong in one way: no accident
TELLING = 3  # penalties from which on their places tell something; one alone may be an accident
START_EPISODES = 5  # of fewer, the first states say little about where an episode may start
START_MARGIN = 0.1  # of a state entry's range in the demos, beyond the spread of the first states
COMMANDS = (("close", -1), ("hold", 0), ("open", 1))


def find_oddities(path, demos, has_masks, has_penalty, snapped, mismatched):
    """Return one line per thing in one file that is odd but usable, with numbers.

    snapped: number of gripper entries moved to -1, 0 or 1. mismatched: transitions whose next_observations
    differ from the following observations.
    """
    actions = actions_of(demos)
    texts = _action_oddities(demos, actions) + _gripper_oddities(demos, actions, has_penalty, snapped)
    texts += _reward_oddities(demos) + _episode_oddities(demos, has_masks)
    if mismatched:
        texts.append(
            "next_observations differ from the following observations in "
            f"{share(len(mismatched), len(actions))} transitions inside episodes (first: transition "
            f"{mismatched[0]}); frames are missing or were stored apart"
        )
    texts += _next_episodes(demos.transitions)
    for key in demos.image_keys:
        texts += _image_oddities(demos, key) + _hanging(demos, key)
    first = [demos.transitions[rows[0]]["observations"] for rows in episodes_of(demos)]
    texts += same_cameras(first, demos.image_keys)
    if demos.state_dim:
        texts += _state_oddities(demos)
    return [f"{path}: {text}" for text in texts]


def same_cameras(observations, image_keys):
    """One line per pair of cameras that show the same picture in all of these observations."""
    return [
        f"cameras {one!r} and {other!r} give the same pictures; is one device opened twice?"
        for one, other in itertools.combinations(image_keys, 2)
        if all(np.ptp(obs[one]) > 0 and np.array_equal(obs[one], obs[other]) for obs in observations)
    ]


def unread_vectors(observation):
    """A line on the vectors among these named arrays or spaces where none is called `state`, else None."""
    vectors = [f"{key!r} {x.shape}" for key, x in observation.items() if len(getattr(x, "shape", None) or ()) == 1]
    if "state" in observation or not vectors:
        return None
    return (
        f"no 'state', and {', '.join(vectors)} is not read; join what the policy is to know beside the pictures into "
        "one vector 'state'"
    )


def _action_oddities(demos, actions):
    texts = []
    columns = continuous_columns(demos.action_dim, demos.setup_mode)
    still = [column for column in columns if np.ptp(actions[:, column]) == 0] if len(actions) > 1 else []
    if still:
        values = ", ".join(f"actions[{column}] = {actions[0, column]:g}" for column in still)
        texts.append(f"action dimensions that never change: {values}")
    largest = np.abs(actions[:, columns]).max(axis=0)  # (continuous,)
    if 0 < largest.max() <= SMALL:
        texts.append(
            f"actions: no continuous entry is above {largest.max():.4g} in size, of the 1 it may have; if they are "
            "metres or radians, divide them by the largest command"
        )
    else:
        small = [(c, x) for c, x in zip(columns, largest, strict=True) if 0 < x <= SMALL_COLUMN]
        if small:
            values = ", ".join(f"actions[{column}] within {size:.4g}" for column, size in small)
            texts.append(f"actions: {values}, others reach {largest.max():.4g}: another unit, or a device's drift")
    idle = no_ops(demos, actions)
    if idle.sum() > NO_OP_SHARE * len(actions):
        drift = np.abs(actions[idle]).max()
        size = f"all within {drift:.2g}: a device's drift" if drift else "all 0"
        texts.append(f"actions: {share(int(idle.sum()), len(actions))} are no-ops ({size}); they teach to stand still")
    resting = [number for number, rows in enumerate(episodes_of(demos)) if idle[rows].all()]
    if resting:
        texts.append(f"actions: nothing but no-ops in {_numbers('episode', resting)}; leave them out")
    return texts


def _gripper_oddities(demos, actions, has_penalty, snapped):
    texts = []
    columns = gripper_columns(demos.action_dim, demos.setup_mode)
    if snapped:
        texts.append(
            f"actions: {share(snapped, len(actions) * len(columns))} gripper entries were near -1, 0 or 1 "
            "and were set to it"
        )
    for column in columns:
        for name, value in (COMMANDS[0], COMMANDS[2]):
            if not (actions[:, column] == value).any():
                texts.append(f"actions[{column}]: the gripper never {name}s (0 of {len(actions)} actions are {value})")
    if columns and not has_penalty:
        texts.append("grasp_penalty: in no transition, taken as 0; nothing keeps the gripper from fluttering")
    return texts + (_penalty_oddities(demos, actions, columns) if has_penalty and columns else [])


def _penalty_oddities(demos, actions, columns):
    """Penalties mark the commands that make a gripper change its state; what they mark instead, if anything."""
    penalised = np.array([transition["grasp_penalty"] != 0 for transition in demos.transitions])
    if penalised.sum() < TELLING:
        return []
    idle = penalised & (actions[:, columns] == 0).all(axis=1)
    if idle.sum() > MOSTLY * penalised.sum():
        return [
            f"grasp_penalty: {share(int(idle.sum()), int(penalised.sum()))} penalties are at steps without a gripper "
            "command; wanted one for each command that makes the gripper change its state"
        ]
    if len(columns) > 1:  # a penalty does not say which of them
        return []
    first, changes, silent = [], 0, 0
    for rows in episodes_of(demos):
        commands = [(actions[row, columns[0]], penalised[row]) for row in rows if actions[row, columns[0]] != 0]
        first += [command for command, marked in commands if marked][:1]
        turns = [marked for (before, _), (command, marked) in zip(commands, commands[1:]) if command != before]
        changes, silent = changes + len(turns), silent + turns.count(False)
    texts, opening = [], sum(command > 0 for command in first)
    if opening > MOSTLY * len(first):
        texts.append(
            f"actions[{columns[0]}] and grasp_penalty: in {share(opening, len(first))} episodes the gripper's first "
            "change is an opening, so it was closed at the start; if it was open, the labels are swapped: wanted -1 "
            "close, +1 open"
        )
    if silent > MOSTLY * changes:
        texts.append(
            f"grasp_penalty: {share(silent, changes)} commands that turn the gripper from closing to opening or back "
            "have none; wanted one for each command that makes it change its state"
        )
    return texts


def _reward_oddities(demos):
    kind, rewards = kind_of_rewards(demos.transitions, demos.episode_ids), rewards_of(demos)
    texts = []
    if kind.shaped or kind.by_end:
        texts.append(f"rewards: {describe(kind, rewards)}")
    if np.abs(rewards).max() > 1:
        texts.append(
            f"rewards: {rewards.min():g} to {rewards.max():g}; the defaults (--clone_weight) are meant for 0 and 1 at "
            f"success: divide them by {np.abs(rewards).max():g}"
        )
    return texts


def _episode_oddities(demos, has_masks):
    texts, transitions = [], demos.transitions
    kind = kind_of_rewards(transitions, demos.episode_ids)
    last_rows = {int(rows[-1]): succeeds(demos, kind, rows) for rows in episodes_of(demos)}
    failed = [row for row, success in last_rows.items() if not success]
    if failed:
        texts.append(f"rewards: {share(len(failed), len(last_rows))} episodes without success")
    terminal = [row for row in failed if transitions[row]["dones"] and transitions[row]["masks"] == 0]
    if not kind.shaped:  # a reward below the ordinary one marks a failure, which is meant to end the episode
        terminal = [row for row in terminal if transitions[row]["rewards"] >= kind.ordinary - SAME]
    if terminal:
        source = "" if has_masks else "absent, taken as 1 - dones: "
        reward = "reward" if kind.ordinary == 0 and not kind.shaped else "success"
        texts.append(
            f"masks: {source}{len(terminal)} episodes end without {reward} as terminal; if they are timeouts, "
            "they count as terminal too, and their masks should be 1"
        )
    success = max(transition["rewards"] for transition in transitions) - SAME
    rewarded = [row for row, transition in enumerate(transitions) if transition["rewards"] >= success]
    held = [row for row in rewarded if transitions[row]["masks"] == 1 and row not in last_rows]
    if held and success > kind.ordinary and not kind.shaped:
        texts.append(
            f"rewards: {share(len(held), len(rewarded))} rewards of success come before the last step of their episode "
            f"(first: transition {held[0]}), and returns add them up; if it was held there, keep the first of an "
            "episode's, with mask 0 and done"
        )
    ends = [transitions[row] for row in last_rows if transitions[row]["dones"]]
    bootstrapped = sum(end["rewards"] > kind.ordinary + SAME and end["masks"] == 1 for end in ends)
    if bootstrapped and not kind.shaped and not kind.by_end:
        texts.append(f"masks: {bootstrapped} episodes end with reward and mask 1 (not terminal)")
    if not transitions[-1]["dones"]:
        texts.append(f"dones: the last transition, {len(transitions) - 1}, is not done; its episode is cut off")
    return texts


def _next_episodes(transitions):
    """Ends whose next observation is the one that the next episode begins with, as environments reset by themselves do.

    Arrays that are equal are one object here (`share_frames`).
    """
    rows = [
        row
        for row, (end, first) in enumerate(zip(transitions, transitions[1:], strict=False))
        if end["dones"] and all(end["next_observations"][key] is array for key, array in first["observations"].items())
    ]
    if not rows:
        return []
    limits = sum(transitions[row]["masks"] == 1 for row in rows)
    ends = sum(transition["dones"] for transition in transitions[:-1])
    return [
        f"next_observations at {share(len(rows), ends)} episode ends (first: transition {rows[0]}) are the next "
        f"episode's first observations; {limits} of them are time limits (mask 1), whose value is taken from there: "
        "record what the last step led to (Gymnasium: info['final_obs'])"
    ]


def _image_oddities(demos, key):
    images = [transition["observations"][key] for transition in demos.transitions]
    highest = np.array([image.max() for image in images], int)
    lowest = np.array([image.min() for image in images], int)
    blank, texts = highest == lowest, []
    if blank.any():
        texts.append(
            f"observations[{key!r}]: {share(int(blank.sum()), len(images))} images are blank (one value throughout; "
            f"first: transition {int(np.argmax(blank))})"
        )
    faint = (highest - lowest <= NEARLY_BLANK) & ~blank
    if highest.max() <= 1 and not blank.all():
        texts.append(f"observations[{key!r}]: no pixel above 1 in {len(images)} images; were they floats?")
    elif faint.any():
        texts.append(
            f"observations[{key!r}]: {share(int(faint.sum()), len(images))} images are almost blank (values within "
            f"{NEARLY_BLANK} of 255; first: transition {int(np.argmax(faint))})"
        )
    return texts


def _hanging(demos, key):
    """Observations that stay the same, bit for bit, while the actions move: of real sensors never for long."""
    name, what = f"observations[{key!r}]", "state" if key == "state" else "images"
    arrays = [transition["observations"][key] for transition in demos.transitions]
    if len(arrays) > 1 and all(np.array_equal(array, arrays[0]) for array in arrays):
        if key == "state":
            return [f"{name}: never changes in {len(arrays)} observations; nobody reads the robot"]
        return [f"{name}: all {len(arrays)} images are the same; the camera hangs"]
    moving = ~no_ops(demos, actions_of(demos), arm_only=True)
    runs = []
    for number, rows in enumerate(episodes_of(demos)):
        frames = [arrays[row] for row in rows] + [demos.transitions[rows[-1]]["next_observations"][key]]
        same = np.array([np.array_equal(a, b) for a, b in zip(frames, frames[1:], strict=False)])
        count, first = _longest_run(same, moving[rows])
        if count >= HANGS or (count > 1 and same.all()):
            runs.append((count, number, len(rows), int(rows[0]) + first))
    if not runs:
        return []
    shown = ", ".join(
        f"episode {number}: {count} of {length} steps, from transition {first} on"
        for count, number, length, first in sorted(runs, reverse=True)[:SHOWN]
    )
    return [
        f"{name}: the same {what} while the actions move in {share(len(runs), len(episodes_of(demos)))} episodes "
        f"(longest runs: {shown}{', ...' if len(runs) > SHOWN else ''}); "
        + ("nobody reads the robot there" if key == "state" else "the camera hangs there")
    ]


def _longest_run(same, moving):
    """Of runs of `same` (n,), the one with the most `moving` steps: how many, and where it begins."""
    best, begin, count = (0, 0), 0, 0
    for step, (stays, moves) in enumerate(zip(same, moving, strict=True)):
        if not stays:
            begin, count = step + 1, 0
            continue
        count += int(moves)
        if count > best[0]:
            best = count, begin
    return best


def _state_oddities(demos):
    states = np.stack([transition["observations"]["state"] for transition in demos.transitions])  # (N, D)
    largest = np.abs(states).max(axis=0)
    texts = _hanging(demos, "state")
    if (largest > LARGE_STATE).any():
        entries = np.flatnonzero(largest > LARGE_STATE)
        top = int(np.argmax(largest))
        texts.append(
            f"observations['state']: {len(entries)} of {len(largest)} entries go beyond {LARGE_STATE:g} (state[{top}] "
            f"up to {largest[top]:.5g}): encoder counts, millimetres or degrees? The network takes them as they are; "
            "scale them to about -1 to 1"
        )
    return texts


def start_bounds(demos):
    """Where an episode's first state may lie, (low, high) of (D,) each; None where the demos say too little.

    Beyond the first states of the demos it may lie by their spread, and by a share of the entry's range in all states.
    """
    episodes = episodes_of(demos)
    if not demos.state_dim or len(episodes) < START_EPISODES:
        return None
    states = np.stack([transition["observations"]["state"] for transition in demos.transitions])  # (N, D)
    first = states[[rows[0] for rows in episodes]]
    margin = np.ptp(first, axis=0) + START_MARGIN * np.ptp(states, axis=0) + 1e-6
    return first.min(axis=0) - margin, first.max(axis=0) + margin


def start_oddity(bounds, state):
    """A line where a first state (D,) lies outside `start_bounds`, else None."""
    low, high = bounds
    entries = np.flatnonzero((state < low) | (state > high))
    if not len(entries):
        return None
    shown = [f"state[{i}] = {state[i]:.4g}, in the demos {low[i]:.4g} to {high[i]:.4g}" for i in entries[:SHOWN]]
    shown += ["..."] * (len(entries) > SHOWN)
    return (
        f"the environment begins where no demo begins: {', '.join(shown)}; is it the task of the demos, with the state "
        "in their order and units?"
    )


# ---------------------------------------------------------------- what the summary counts, too


def actions_of(demos):
    return np.stack([transition["actions"] for transition in demos.transitions])  # (N, A)


def rewards_of(demos):
    return np.array([transition["rewards"] for transition in demos.transitions])  # (N,)


def no_ops(demos, actions, arm_only=False):
    """(N,) bool: the arm does not move but for a device's drift, and, unless arm_only, the gripper is not commanded."""
    arm = np.abs(actions[:, continuous_columns(demos.action_dim, demos.setup_mode)])
    still = (arm <= min(NO_OP, NO_OP_OF_LARGEST * arm.max())).all(axis=1)
    grippers = actions[:, gripper_columns(demos.action_dim, demos.setup_mode)]
    return still if arm_only else still & (grippers == 0).all(axis=1)


def episodes_of(demos):
    """Row indices of each episode, in order."""
    return np.split(np.arange(len(demos.episode_ids)), np.flatnonzero(np.diff(demos.episode_ids)) + 1)


def succeeds(demos, kind, rows):
    """Whether the episode with these rows succeeded, by what its rewards mean (`kind_of_rewards`)."""
    rewards = np.array([demos.transitions[row]["rewards"] for row in rows])
    return kind.reached(rewards, demos.transitions[rows[-1]]["masks"] == 0)


def share(count, total):
    return f"{count} of {total} ({count / total:.1%})"


def successes(demos):
    """How many episodes succeeded."""
    kind = kind_of_rewards(demos.transitions, demos.episode_ids)
    return sum(succeeds(demos, kind, rows) for rows in episodes_of(demos))


def _numbers(noun, numbers):
    shown = ", ".join(map(str, numbers[:SHOWN])) + ", ..." * (len(numbers) > SHOWN)
    return f"{noun}{'s' * (len(numbers) > 1)} {shown}"
