from mmengine.config import read_base

with read_base():
    from .datasets.gsm8k.gsm8k_0shot_gen_a58960 import gsm8k_datasets as datasets
    from ..models.hf_llama.hf_llama3_8b_instruct import models
