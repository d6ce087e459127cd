# Method 2: a server that you started (here LMDeploy's default port), asked over its OpenAI API.
from mmengine.config import read_base
from opencompass.models import OpenAISDK

with read_base():
    from .datasets.gsm8k.gsm8k_0shot_gen_a58960 import gsm8k_datasets as datasets

api_meta_template = dict(
    round=[
        dict(role='HUMAN', api_role='HUMAN'),
        dict(role='BOT', api_role='BOT', generate=True),
    ],
    reserved_roles=[dict(role='SYSTEM', api_role='SYSTEM')],
)

models = [
    dict(
        abbr='Meta-Llama-3-8B-Instruct-LMDeploy-API',
        type=OpenAISDK,
        key='EMPTY',
        openai_api_base='http://0.0.0.0:23333/v1',
        path='Meta-Llama-3-8B-Instruct ',
        tokenizer_path='meta-llama/Meta-Llama-3-8B-Instruct',
        rpm_verbose=True,
        meta_template=api_meta_template,
        query_per_second=1,
        max_out_len=1024,
        max_seq_len=4096,
        temperature=0.01,
        batch_size=8,
        retry=3,
    )
]
