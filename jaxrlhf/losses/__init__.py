"""Pure losses: arrays in, a scalar and a dict of metrics out. Importing this costs jax and chex.

Every loss takes per-token arrays [B, T] with a bool mask, or per-sequence sums [B]. `denom=None` divides by the loss's
own count; a training step passes the total of the whole batch instead, so that micro-batches add up to it. Metrics are
`ops.Mean` and the like; `.value` is the number.
"""

from jaxrlhf.losses.advantages import gae as gae
from jaxrlhf.losses.grpo import fixed_length_mean as fixed_length_mean
from jaxrlhf.losses.grpo import group_advantages as group_advantages
from jaxrlhf.losses.grpo import group_std as group_std
from jaxrlhf.losses.grpo import grpo_loss as grpo_loss
from jaxrlhf.losses.grpo import sequence_mean as sequence_mean
from jaxrlhf.losses.kl import adapted_kl_coef as adapted_kl_coef
from jaxrlhf.losses.kl import kl_estimate as kl_estimate
from jaxrlhf.losses.kl import kl_shaped_rewards as kl_shaped_rewards
from jaxrlhf.losses.kl import own_token_credit as own_token_credit
from jaxrlhf.losses.kl import unbiased_kl as unbiased_kl
from jaxrlhf.losses.kto import kto_kl as kto_kl
from jaxrlhf.losses.kto import kto_loss as kto_loss
from jaxrlhf.losses.lm import lm_loss as lm_loss
from jaxrlhf.losses.policy import clipped_surrogate as clipped_surrogate
from jaxrlhf.losses.policy import ppo_policy_loss as ppo_policy_loss
from jaxrlhf.losses.preference import dpo_loss as dpo_loss
from jaxrlhf.losses.reward import kwise_reward_loss as kwise_reward_loss
from jaxrlhf.losses.reward import pairwise_reward_loss as pairwise_reward_loss
from jaxrlhf.losses.selection import best_of_group as best_of_group
from jaxrlhf.losses.value import ppo_value_loss as ppo_value_loss
from jaxrlhf.ops.masked import masked_mean as masked_mean
from jaxrlhf.ops.masked import whiten as whiten
from jaxrlhf.ops.masked import whiten_keep_mean as whiten_keep_mean
