"""Fine-tune the shipped policy by RL and by imitation, and compare what each forgot.

Takes about a minute and a half on two cores. Run it as a script, or cell by cell in an
editor that knows `# %%`.
"""

# %% How much to do. More episodes take longer, and narrow the intervals.
import os

import robo_razor as rr

UPDATES = int(os.environ.get("UPDATES", "2"))
EPISODES = int(os.environ.get("EPISODES", "24"))
REPORT = os.environ.get("REPORT", "report")

TASK = "PlaceCanInBin"
COLUMNS = ["step", "new_success_rate", "prior_success_rate", "kl_base_tuned/new_base_visited"]
COMMON = {
    "prior": "OpenDrawer,LiftCube,PlaceCubeInBin",
    "env": rr.EnvConfig(num_envs=16),
    "tracking": rr.TrackingConfig(
        every=max(1, UPDATES),
        episodes_new=8,
        episodes_new_sampled=0,
        final_episodes_new=8,
        episodes_prior=4,
        kl_states=64,
    ),
}

# %% Reinforcement learning: the policy tries, and learns from its own successes and failures.
base = rr.load_policy("razor-base")
method = rr.PPO(num_updates=UPDATES, episodes_per_update=EPISODES, value_warmup_updates=0)
ppo = rr.finetune(base, TASK, method, **COMMON)
print(ppo.table()[COLUMNS].to_string(index=False))

# %% Imitation: an expert shows how, in another style than that of the base's teacher.
method = rr.BC(episodes=EPISODES // 2, epochs=2, warmup_steps=5)
bc = rr.finetune(base, TASK, method, **COMMON)
print(bc.table()[COLUMNS].to_string(index=False))

# %% Compare, and write a page that opens in a browser.
comparison = rr.compare([ppo.path, bc.path])
print(comparison.headline)
for sentence in comparison.sentences:
    print("-", sentence)
print("Page:", comparison.save(REPORT).page)
