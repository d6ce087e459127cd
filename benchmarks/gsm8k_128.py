# GSM8K with answers of at most 128 tokens, on the demo model in float32.
from mmengine.config import read_base

with read_base():
    from ..datasets.gsm8k.gsm8k_0shot_gen_a58960 import gsm8k_datasets
    from ..models.hf_smollm.hf_smollm2_135m_instruct import models

inferencer = {**gsm8k_datasets[0]["infer_cfg"]["inferencer"], "max_out_len": 128}
infer_cfg = {**gsm8k_datasets[0]["infer_cfg"], "inferencer": inferencer}
datasets = [{**gsm8k_datasets[0], "infer_cfg": infer_cfg}]
