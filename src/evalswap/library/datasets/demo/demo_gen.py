# 64 easy questions that come with evalswap, asked and scored exactly like GSM8K. No download.
from mmengine.config import read_base

with read_base():
    from ..gsm8k.gsm8k_0shot_gen_a58960 import gsm8k_datasets as _gsm8k

_inferencer = {**_gsm8k[0]['infer_cfg']['inferencer'], 'max_out_len': 128}
_infer_cfg = {**_gsm8k[0]['infer_cfg'], 'inferencer': _inferencer}
demo_datasets = [{**_gsm8k[0], 'abbr': 'demo', 'path': 'evalswap/demo', 'infer_cfg': _infer_cfg}]
