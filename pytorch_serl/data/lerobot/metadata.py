"""What a LeRobot dataset says of itself: info.json, the table of episodes, the names of entries."""

import json

from pytorch_serl.data.checks import show
from pytorch_serl.data.lerobot.files import AGAIN, read_table

INFO, EPISODES = "meta/info.json", "meta/episodes"


def read_json(place, path):
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise place.error(path.name, str(error), "a JSON file", "repair or replace it") from None
    if not isinstance(content, dict):
        raise place.error(path.name, type(content).__name__, "a JSON object", "repair or replace it")
    return content


def check_info(place, info):
    def table(x):
        return isinstance(x, dict) and all(isinstance(f, dict) and isinstance(f.get("dtype"), str) for f in x.values())

    wanted = {
        "fps": ("frames per second", lambda x: isinstance(x, (int, float)) and x > 0),
        "features": ("a table of features with a dtype each", table),
    }
    for key, (what, fine) in wanted.items():
        if key not in info or not fine(info[key]):
            raise place.error(f"{INFO}: {key}", show(info[key]) if key in info else f"no {key}", what, AGAIN)


def read_episodes(place, root, numbers_of_frames):
    """The rows of the episodes' table, in order; numbers_of_frames (N,): the episode of each frame in the data's."""
    episodes = read_table(place, root, EPISODES).to_pylist()
    for number, episode in enumerate(episodes):
        if not isinstance(episode.get("episode_index"), int):
            raise place.error(
                f"{EPISODES}: row {number}: episode_index", show(episode.get("episode_index")), "its number", AGAIN
            )
    numbers = [episode["episode_index"] for episode in episodes]
    if len(set(numbers)) < len(numbers):
        twice = next(number for number in numbers if numbers.count(number) > 1)
        raise place.error(f"episode {twice}", f"{numbers.count(twice)} rows in {EPISODES}", "one", AGAIN)
    if unknown := sorted(set(numbers_of_frames.tolist()) - set(numbers)):
        raise place.error(f"episode {unknown[0]}", f"frames in data, no row in {EPISODES}", "both", AGAIN)
    for episode in episodes:
        found = int((numbers_of_frames == episode["episode_index"]).sum())
        first, end = episode.get("dataset_from_index"), episode.get("dataset_to_index")
        wanted = end - first if isinstance(first, int) and isinstance(end, int) else None
        if found == 0 or wanted not in (None, found):
            wanted = "at least one" if wanted is None else f"{wanted}, as {EPISODES} has it"
            raise place.error(f"episode {episode['episode_index']}", f"{found} frames in data", wanted, AGAIN)
    return sorted(episodes, key=lambda episode: episode["episode_index"])


def entry_names(names):
    """The names of a feature's entries in order: a list, or a dict of indices, or such things below other names.

    {"x": 0, "y": 1} is ordered by its numbers; where one is left out, an empty name stands in its place.
    """
    if isinstance(names, str):
        return [names]
    if isinstance(names, (list, tuple)):
        return [name for part in names for name in entry_names(part)]
    if not isinstance(names, dict):
        return []
    indices = {name: index for name, index in names.items() if isinstance(index, (int, float)) and 0 <= index < 10_000}
    if names and len(indices) == len(names):
        result = [""] * (int(max(indices.values())) + 1)
        for name, index in indices.items():
            result[int(index)] = name
        return result
    return [name for part in names.values() for name in entry_names(part)]
