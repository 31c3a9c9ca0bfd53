"""Small array mathematics: masked reductions, whitening, metrics that add up, log-probabilities from logits."""

from jaxrlhf.ops.logprobs import entropy_from_logits as entropy_from_logits
from jaxrlhf.ops.logprobs import kl_from_logits as kl_from_logits
from jaxrlhf.ops.logprobs import logprobs_from_logits as logprobs_from_logits
from jaxrlhf.ops.masked import masked_count as masked_count
from jaxrlhf.ops.masked import masked_mean as masked_mean
from jaxrlhf.ops.masked import masked_sum as masked_sum
from jaxrlhf.ops.masked import whiten as whiten
from jaxrlhf.ops.masked import whiten_keep_mean as whiten_keep_mean
from jaxrlhf.ops.masked import whitening_scale as whitening_scale
from jaxrlhf.ops.moments import RunningMoments as RunningMoments
from jaxrlhf.ops.moments import add_values as add_values
from jaxrlhf.ops.moments import no_moments as no_moments
from jaxrlhf.ops.stats import Difference as Difference
from jaxrlhf.ops.stats import Max as Max
from jaxrlhf.ops.stats import Mean as Mean
from jaxrlhf.ops.stats import Min as Min
from jaxrlhf.ops.stats import Sum as Sum
from jaxrlhf.ops.stats import max_of as max_of
from jaxrlhf.ops.stats import mean_of as mean_of
from jaxrlhf.ops.stats import min_of as min_of
from jaxrlhf.ops.stats import reduce_stacked as reduce_stacked
from jaxrlhf.ops.stats import values_of as values_of
from jaxrlhf.ops.trees import overlay as overlay
