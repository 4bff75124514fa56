"""Compare two policies: what each can do from the same start states, and how far apart they are.

Takes a minute and a half on two cores. The second policy is the first after a little cloning. Use
any two policies instead that see the same cameras. Run this as a script, or cell by cell in an
editor that knows `# %%`.
"""

# %% How much to do.
import os

import robo_razor as rr

EPISODES = int(os.environ.get("EPISODES", "8"))

NEW = "PlaceCanInBin"
PRIOR = "OpenDrawer,LiftCube"
ENV = rr.EnvConfig(num_envs=16)

# %% Two policies. `rr.load_policy("path/to/pretrained_model")` loads one of yours.
base = rr.load_policy("razor-base")
run = rr.finetune(
    base,
    NEW,
    rr.BC(episodes=EPISODES, epochs=1, learning_rate=1e-4, warmup_steps=2),
    prior="none",
    env=ENV,
    tracking=rr.TrackingConfig(every=1, episodes_new=2, final_episodes_new=2),
)
tuned = run.last

# %% Success, from the same start states: row i of one is row i of the other.
before = rr.evaluate(base, f"{PRIOR},{NEW}", EPISODES, env=ENV)
after = rr.evaluate(tuned, f"{PRIOR},{NEW}", EPISODES, env=ENV)
for skill, result in before.items():
    pairs = list(zip(result.successes, after[skill].successes, strict=True))
    lost, gained = pairs.count((True, False)), pairs.count((False, True))
    print(
        f"{skill}: {result.success_rate:.0%} -> {after[skill].success_rate:.0%} "
        f"of {result.n} episodes, {lost} lost, {gained} gained"
    )

# %% Distance: how much less likely the base's actions have become, where it goes.
for states in (NEW, PRIOR):
    measured = rr.measure(base, tuned, on=states, states=64, env=ENV)
    kl = measured["kl_base_tuned"]
    print(f"KL(base || tuned) on {states}: {kl.mean:.3f} nats per decision ({kl.kind})")
print("Weights moved by (L2):", round(measured.distances["weight_l2"], 4))
