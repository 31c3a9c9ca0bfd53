"""The demo made small enough to walk in a test."""

from jaxrlhf.demo.config import Sizes

SMALL = Sizes(
    hidden_size=16,
    layers=1,
    pretraining_steps=8,
    sft_steps=2,
    ranked_prompts=40,
    reward_steps=2,
    ppo_steps=2,
    dpo_steps=2,
    held_out_prompts=8,
)
