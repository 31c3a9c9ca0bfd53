"""The sampler."""

from jaxrlhf.generation.desk import Listener as Listener
from jaxrlhf.generation.prompts import pad_prompts as pad_prompts
from jaxrlhf.generation.sampler import Sampler as Sampler
from jaxrlhf.generation.settings import SamplingSettings as SamplingSettings
