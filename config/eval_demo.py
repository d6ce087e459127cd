# What `make demo` runs: a real small model on questions that come with evalswap.
from mmengine.config import read_base

with read_base():
    from .datasets.demo.demo_gen import demo_datasets as datasets
    from .models.hf_smollm.hf_smollm2_135m_instruct import models
