"""Proximal policy optimization of a language model against any reward, with a KL penalty to where it started.

`build.py` puts a policy together (`policy.py`): a model, its value function (`value.py`, `value_init.py`) and its
reference (`reference.py`). One step of the trainer is one update (`trainer.py`, `PpoTrainer.training_step`):

1. `schedule.py`: which prompts this update takes
2. `rollout.py`: sample completions and score them with the rewards; `engine.py`: servers that sample in its place
3. `groups.py`, `score_shaping.py`: prompts whose completions all score the same; penalties, scaling and clipping of the
   scores
4. `scoring.py`: log-probabilities, reference log-probabilities and values of the whole rollout
5. `experience.py`, on `advantage.py`, `group_advantage.py` and `kl.py`: the KL penalty in the token rewards, advantages
   by a value function (GAE) or without one, whitening
6. `learner.py`: num_ppo_epochs × num_mini_batches optimizer steps on `loss.py`; `freed_memory.py`: what they
   free on a CPU
7. `metrics.py`, `health.py`, `record.py`: metrics, warnings, rollouts.jsonl, curves

`sharded.py` is what a policy needs that FSDP2 shards over processes, `policy_trainer.py` what transformers' trainer
needs to know of a policy: data, optimizer, checkpoints.

Shapes: B completions, P prompt tokens, T completion tokens, L = P + T prompt and completion, H hidden, V vocabulary, N
positions of any rows. A mask `[B, T]` is true where there is a token; what lies elsewhere is never read, not even where
it is not a number.

The objective, E[r(x, y) − β KL(π ‖ π_ref)], is that of Ziegler et al. 2019, eq. 2, and Ouyang et al. 2022, eq. 2; the
clipped loss that of Schulman et al. 2017, eq. 7; the advantages those of Schulman et al. 2016, eq. 16.
"""
