"""The hot path: hidden states and an unembedding to log-probabilities, entropy and KL, without logits."""

from jaxrlhf.kernels.fused import fused_token_loss as fused_token_loss
from jaxrlhf.kernels.linear_logprobs import linear_logprobs as linear_logprobs
from jaxrlhf.types import Head as Head
