"""A training loop of one's own around DROL's losses, on a task of a few steps.

In a clone of this repository: python -m results.toy.lifted
With this file in a folder of your own, beside routing.py: python lifted.py

    (echo "import torch"; sed -n '/^# -.* algorithm$/,/^# -.* data$/p' drol.py) > routing.py

A point starts in the middle of a square. The data leaves it on its four sides equally often. The
reward is on the right, and there the trained policy leaves it.
"""

import copy

import numpy as np
import torch
from routing import act, actor_loss, critic_loss, sample_latents
from torch import nn

S, A, B, K = 2, 2, 256, 16  # state and action dimensions, batch, candidates


class Net(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(S + A, 128), nn.GELU(), nn.Linear(128, outputs))

    def forward(self, s, x):  # (B, S), (B, A) or (B, K, S), (B, K, A)
        return self.layers(torch.cat([s, x], -1))


class TwinCritic(Net):
    def forward(self, s, a):
        return super().forward(s, a).T  # (2, B)


def play(policy, episodes):
    """Episodes at once. Returns their transitions, and the share of them that got the reward."""
    s, playing, rows = np.zeros((episodes, S)), np.ones(episodes, bool), []
    for _ in range(20):  # a time limit: where it ends an episode, mask stays 1
        a = policy(s).clip(-1, 1)
        next_s = s + 0.25 * a
        outside = (np.abs(next_s) > 1).any(1)
        rows.append([x[playing] for x in (s, a, next_s, next_s[:, 0] > 1, ~outside)])
        s, playing = next_s, playing & ~outside
    names = ("observations", "actions", "next_observations", "rewards", "masks")
    arrays = [np.concatenate(x) for x in zip(*rows, strict=True)]
    data = {n: torch.as_tensor(x).float() for n, x in zip(names, arrays, strict=True)}
    return data, data["rewards"].sum().item() / episodes


def main():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    rng = np.random.default_rng(0)
    directions = np.tile([[0.8, 0.0], [-0.8, 0.0], [0.0, 0.8], [0.0, -0.8]], (250, 1))
    data, data_score = play(lambda s: directions + rng.normal(0, 0.3, s.shape), 1_000)

    actor, critic = Net(A), TwinCritic(2)
    target_critic = copy.deepcopy(critic)
    optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=1e-3)
    for _ in range(500):
        index = torch.randint(len(data["rewards"]), (B,), generator=generator)
        batch = {name: x[index] for name, x in data.items()}
        next_z = sample_latents(B, A, generator=generator)
        candidate_z = sample_latents(B, K, A, generator=generator)
        loss_c, _ = critic_loss(actor, critic, target_critic, batch, next_z, 0.95, "mean")
        loss_a, _ = actor_loss(actor, critic, batch, candidate_z, bc_coef=1.0)
        optimizer.zero_grad()
        (loss_c + loss_a).backward()  # each loss trains its own network alone
        optimizer.step()
        for old, new in zip(target_critic.parameters(), critic.parameters(), strict=True):
            old.data.lerp_(new.data, 0.01)

    _, score = play(lambda s: act(actor, s, A, generator), 1_000)
    print(f"reward: data {data_score:.2f}, policy {score:.2f}")


if __name__ == "__main__":
    main()
