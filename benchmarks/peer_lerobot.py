"""LeRobot's half of benchmarks/peer.py, run in LeRobot's environment: the same work by its own classes.

Its policy, SAC algorithm, replay buffer, mixer and processors are used as they are, with its options set as HIL-SERL
has them. Its published backbone has to be fetched; a random network of the same layout, ours, stands in for it.
"""

import json
import sys
from types import SimpleNamespace

import lerobot
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies import make_pre_post_processors
from lerobot.policies.gaussian_actor import modeling_gaussian_actor as modeling
from lerobot.policies.gaussian_actor.configuration_gaussian_actor import GaussianActorConfig
from lerobot.rl.algorithms.sac import SACAlgorithm, SACAlgorithmConfig
from lerobot.rl.buffer import ReplayBuffer
from lerobot.rl.data_sources import OnlineOfflineMixer
from lerobot.rl.trainer import preprocess_rl_batch
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE
from timing import serve
from torch.utils.flop_counter import FlopCounterMode

from pytorch_serl.networks.resnet import IMAGENET_MEAN, IMAGENET_STD, ResNet10

NUM_FRAMES = 8  # different ones


class StandIn(ResNet10):
    """ResNet-10 on images that are float (B, 3, H, W) and normalised already, with the output that LeRobot reads."""

    def preprocess(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def forward(self, images: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.stages(images)[-1])  # (B, 512, 4, 4)


def make_config(plan):
    """One arm, a discrete gripper, cameras and a state."""
    cameras = [f"{OBS_IMAGES}.camera{i}" for i in range(plan["cameras"])]
    image = {"mean": [[[x]] for x in IMAGENET_MEAN], "std": [[[x]] for x in IMAGENET_STD]}
    state, action = plan["state_dim"], plan["arm_actions"]
    inputs = {key: PolicyFeature(type=FeatureType.VISUAL, shape=(3, *[plan["image_size"]] * 2)) for key in cameras}
    inputs[OBS_STATE] = PolicyFeature(type=FeatureType.STATE, shape=(state,))
    stats = dict.fromkeys(cameras, image) | {
        name: {"min": [-1.0] * size, "max": [1.0] * size} for name, size in ((OBS_STATE, state), (ACTION, action))
    }
    return GaussianActorConfig(
        input_features=inputs,
        output_features={ACTION: PolicyFeature(type=FeatureType.ACTION, shape=(action,))},
        dataset_stats=stats,
        num_discrete_actions=3,
        vision_encoder_name="lerobot/resnet10",
        freeze_vision_encoder=plan["backbone"] != "trainable",
        device="cpu",
        storage_device="cpu",
    )


def random_observation(config):
    images = {key: torch.rand(1, *feature.shape) for key, feature in config.input_features.items() if key != OBS_STATE}
    return images | {OBS_STATE: torch.rand(1, *config.input_features[OBS_STATE].shape) * 2 - 1}


def make_buffer(config, transitions, episode_steps):
    """A full buffer in its memory-saving mode, with its own random shifts."""
    buffer = ReplayBuffer(transitions, device="cpu", storage_device="cpu", optimize_memory=True)
    observations = [random_observation(config) for _ in range(NUM_FRAMES)]
    for step in range(transitions):
        done = (step + 1) % episode_steps == 0
        state, next_state = (observations[i % NUM_FRAMES] for i in (step, step + 1))
        arm = torch.rand(1, *config.output_features[ACTION].shape) * 2 - 1
        action = torch.cat([arm, torch.randint(0, 3, (1, 1)).float()], -1)
        info = {"discrete_penalty": torch.zeros(1)}
        buffer.add(state, action, float(done), next_state, done, truncated=False, complementary_info=info)
    return buffer


def tensors_of(value):
    """Every tensor in nested dicts."""
    return [t for v in value.values() for t in tensors_of(v)] if isinstance(value, dict) else [value]


def bytes_per_transition(buffer):
    """Bytes of the buffer's arrays, each counted once."""
    parts = (buffer.states, buffer.next_states, buffer.actions, buffer.rewards, buffer.dones, buffer.truncateds)
    storages = [t.untyped_storage() for part in (*parts, buffer.complementary_info) for t in tensors_of(part)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()) / buffer.capacity


def main(plan):
    torch.set_num_threads(plan["threads"])
    torch.manual_seed(0)
    modeling.PretrainedImageEncoder._load_pretrained_vision_encoder = lambda self, config: (StandIn(), 512)
    config = make_config(plan)
    policy = modeling.GaussianActorPolicy(config).train()
    before, after = make_pre_post_processors(policy_cfg=config, dataset_stats=config.dataset_stats)
    settings = SACAlgorithmConfig.from_policy_config(config)
    settings.temperature_init, settings.use_backup_entropy = 1e-2, False
    algorithm = SACAlgorithm(policy=policy, config=settings)
    algorithm.make_optimizers_and_scheduler()
    buffers = [make_buffer(config, plan["transitions"], plan["episode_steps"]) for _ in range(2)]
    mixer = OnlineOfflineMixer(*buffers, online_ratio=0.5)
    obs = random_observation(config)

    def sampled(size):
        return preprocess_rl_batch(before, mixer.sample(size))

    def act():
        policy.eval()
        action = policy.select_action(before.process_observation(dict(obs)))
        after.process_action(action[..., :-1])
        policy.train()

    works, gflop = {}, {}
    for size in plan["batch_sizes"]:
        batch = sampled(size)
        with FlopCounterMode(display=False) as counter:
            algorithm.update(iter([dict(batch)]))
        gflop[f"update {size}"] = counter.get_total_flops() / 1e9
        works[f"update {size}"] = lambda batch=batch: algorithm.update(iter([dict(batch)]))
        works[f"sample and update {size}"] = lambda size=size: algorithm.update(iter([sampled(size)]))
    works[f"sample {plan['sample_size']}"] = lambda: buffers[0].sample(plan["sample_size"])
    works["act"] = act
    facts = {"lerobot": lerobot.__version__, "torch": torch.__version__, "gflop": gflop}
    serve(works, facts | {"bytes_per_transition": bytes_per_transition(buffers[0])})


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
