# 64 easy questions that come with evalswap, asked and scored exactly like GSM8K. No download.
from mmengine.config import read_base

with read_base():
    from ..gsm8k.gsm8k_0shot_gen_a58960 import gsm8k_datasets

infer_cfg = {
    **gsm8k_datasets[0]['infer_cfg'],
    'inferencer': {**gsm8k_datasets[0]['infer_cfg']['inferencer'], 'max_out_len': 128},
}
demo_datasets = [{**gsm8k_datasets[0], 'abbr': 'demo', 'path': 'evalswap/demo', 'infer_cfg': infer_cfg}]
