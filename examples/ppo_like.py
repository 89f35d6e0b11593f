"""Proximal policy optimisation of a cart that balances a pole: rollouts without gradients, then epochs of minibatches.

python ppo_like.py --total-timesteps 20000
"""

import argparse
import time

import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical


class Carts:
    """Many carts with a pole each, simulated at once; one that falls starts anew."""

    def __init__(self, n, seed):
        self.draw = np.random.default_rng(seed)
        self.state = self.draw.uniform(-0.05, 0.05, (n, 4))
        self.age = np.zeros(n)

    def step(self, actions):
        """States (n, 4), rewards (n,), ended (n,), and how long those that ended had lasted."""
        x, v, angle, spin = self.state.T
        force = np.where(actions == 1, 10.0, -10.0)
        sine, cosine = np.sin(angle), np.cos(angle)
        push = (force + 0.05 * spin**2 * sine) / 1.1
        turn = (9.8 * sine - cosine * push) / (0.5 * (4 / 3 - 0.1 * cosine**2 / 1.1))
        shift = push - 0.05 * turn * cosine / 1.1
        self.state = np.stack([x + 0.02 * v, v + 0.02 * shift, angle + 0.02 * spin, spin + 0.02 * turn], axis=1)
        self.age += 1
        ended = (np.abs(self.state[:, 0]) > 2.4) | (np.abs(self.state[:, 2]) > 0.21) | (self.age >= 500)
        lasted = self.age[ended]
        self.state[ended] = self.draw.uniform(-0.05, 0.05, (int(ended.sum()), 4))
        self.age[ended] = 0
        return self.state, np.ones(len(ended)), ended, lasted


def network(outputs, gain):
    layers = [nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs)]
    for layer in layers[::2]:
        nn.init.orthogonal_(layer.weight, gain if layer is layers[-1] else 2**0.5)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.critic = network(1, 1.0)
        self.actor = network(2, 0.01)

    def value_of(self, states):
        return self.critic(states).flatten()

    def act(self, states, actions=None):
        """Actions, their log probabilities, entropies and the values of states."""
        chances = Categorical(logits=self.actor(states))
        actions = chances.sample() if actions is None else actions
        return actions, chances.log_prob(actions), chances.entropy(), self.value_of(states)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--total-timesteps", type=int, default=200_000)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--num-steps", type=int, default=128)
    parser.add_argument("--gamma", type=float, default=0.99)
    parser.add_argument("--gae-lambda", type=float, default=0.95)
    parser.add_argument("--num-minibatches", type=int, default=4)
    parser.add_argument("--update-epochs", type=int, default=4)
    parser.add_argument("--clip-coef", type=float, default=0.2)
    parser.add_argument("--ent-coef", type=float, default=0.01)
    parser.add_argument("--vf-coef", type=float, default=0.5)
    parser.add_argument("--max-grad-norm", type=float, default=0.5)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    carts = Carts(args.num_envs, args.seed)
    agent = Agent().to(device)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    shape = (args.num_steps, args.num_envs)
    states = torch.zeros((*shape, 4), device=device)
    actions, logprobs, rewards, ends, values = (torch.zeros(shape, device=device) for _ in range(5))

    batch = args.num_steps * args.num_envs
    updates = args.total_timesteps // batch
    state, ended = (
        torch.tensor(carts.state, dtype=torch.float32, device=device),
        torch.zeros(args.num_envs, device=device),
    )
    began = time.time()
    learned_s, lasted = 0.0, []
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - update / updates)
        for t in range(args.num_steps):
            states[t], ends[t] = state, ended
            with torch.no_grad():
                action, logprobs[t], _, values[t] = agent.act(state)
            actions[t] = action
            after, reward, fell, ages = carts.step(action.cpu().numpy())
            state = torch.tensor(after, dtype=torch.float32, device=device)
            rewards[t] = torch.tensor(reward, device=device)
            ended = torch.tensor(fell, dtype=torch.float32, device=device)
            lasted = [*lasted, *ages][-40:]

        with torch.no_grad():
            advantages = torch.zeros_like(rewards)
            gain, next_value, goes_on = 0.0, agent.value_of(state), 1 - ended
            for t in reversed(range(args.num_steps)):
                surprise = rewards[t] + args.gamma * next_value * goes_on - values[t]
                advantages[t] = gain = surprise + args.gamma * args.gae_lambda * goes_on * gain
                next_value, goes_on = values[t], 1 - ends[t]
            returns = advantages + values

        learning = time.perf_counter()
        flat = [part.flatten(0, 1) for part in (states, actions, logprobs, advantages, returns)]
        for _ in range(args.update_epochs):
            for rows in torch.randperm(batch, device=device).chunk(args.num_minibatches):
                s, a, old, advantage, goal = (part[rows] for part in flat)
                _, new, entropy, value = agent.act(s, a)
                ratio = (new - old).exp()
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
                policy_loss = -torch.min(ratio * advantage, clipped * advantage).mean()
                value_loss = (value - goal).pow(2).mean() / 2
                loss = policy_loss - args.ent_coef * entropy.mean() + args.vf_coef * value_loss
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()
        learned_s += time.perf_counter() - learning

        if update % 10 == 0 and lasted:
            speed = int((update + 1) * batch / (time.time() - began))
            print(f"update {update} return {np.mean(lasted):.1f} value loss {value_loss.item():.3f} SPS {speed}")
    steps = updates * args.update_epochs * args.num_minibatches
    print(f"{steps} steps in {learned_s:.2f} s")


if __name__ == "__main__":
    main()
